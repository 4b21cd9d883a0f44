"""Protobuf that is broken, too large or means nothing, through a real channel."""

from __future__ import annotations

import uuid
from typing import Any

import grpc.aio
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from tests.badinput.conftest import House
from tests.running import Metadata, details
from trunkline.api.identity.v1 import identity_service_pb2 as identity
from trunkline.api.imports.v1 import imports_service_pb2 as imports
from trunkline.api.members.v1 import members_service_pb2 as members
from trunkline_server.rpc.caller import Role
from trunkline_server.rpc.options import MESSAGE_BYTES_MAX

IDENTITY = "/trunkline.api.identity.v1.IdentityService/"
IMPORTS = "/trunkline.api.imports.v1.ImportService/"
MEMBERS = "/trunkline.api.members.v1.MemberService/"
TIMEOUT_S = 10
NESTED = 101
STRANGER = str(uuid.uuid4())


class Caller:
    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self._channel = channel
        self._metadata = metadata

    async def raw(self, path: str, content: bytes) -> bytes:
        call: Any = self._channel.unary_unary(path)
        reply: bytes = await call(content, metadata=self._metadata, timeout=TIMEOUT_S)
        return reply

    async def refused(self, path: str, content: bytes, code: StatusCode) -> dict[str, Any]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.raw(path, content)
        assert caught.value.code() is code, caught.value
        return details(caught.value)


@pytest.fixture
def caller(house: House, channel: grpc.aio.Channel) -> Caller:
    return Caller(channel, house.org.as_(Role.ADMIN))


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",  # a varint without an end
        b"\x0a\xff\xff\xff\xff\x0fabc",  # a text of 4 GiB announced
        b"\x0a\x05ab",  # cut off
        b"\x0f\x01",  # a wire type that does not exist
        b"\x00\x01",  # field number 0
        b"\x0c",  # the end of a group that never began
    ],
    ids=["varint", "length", "short", "type", "zero", "group"],
)
async def test_corrupt_wire(caller: Caller, content: bytes) -> None:
    found = await caller.refused(MEMBERS + "ValidateMember", content, StatusCode.INVALID_ARGUMENT)
    assert found["reason"] == "MALFORMED_MESSAGE"


async def test_bad_utf8_in_a_text(caller: Caller) -> None:
    found = await caller.refused(
        MEMBERS + "ValidateMember", b"\x0a\x02\xc3\x28", StatusCode.INVALID_ARGUMENT
    )
    assert found["reason"] == "MALFORMED_MESSAGE"


async def test_unknown_fields_are_ignored(caller: Caller) -> None:
    unknown = b"\xf8\xff\xff\xff\x0f\x01" + b"\xa2\x1f\x03abc"
    assert await caller.raw(IDENTITY + "WhoAmI", unknown)


async def test_nesting_over_100(caller: Caller) -> None:
    # Groups of an unknown field, one in another.
    deep = b"\x9b\x06" * NESTED + b"\x9c\x06" * NESTED
    await caller.refused(IDENTITY + "WhoAmI", deep, StatusCode.INVALID_ARGUMENT)
    assert await caller.raw(IDENTITY + "WhoAmI", b"\x9b\x06" * 90 + b"\x9c\x06" * 90)


def timestamp(seconds: int) -> Timestamp:
    return Timestamp(seconds=seconds)


INVALID = {
    "unknown enum": (
        IDENTITY + "ListUsers",
        identity.ListUsersRequest(roles=[77]),  # type: ignore[list-item]
        "roles[0]",
    ),
    "empty oneof": (
        IMPORTS + "CreateImport",
        imports.CreateImportRequest(
            spec=imports.ImportSpec(columns=[imports.ColumnMapping(column="a")])
        ),
        "spec.columns[0].target",
    ),
    "NaN": (
        IMPORTS + "CreateImport",
        imports.CreateImportRequest(spec=imports.ImportSpec(max_reject_ratio=float("nan"))),
        "spec.max_reject_ratio",
    ),
    "infinity": (
        IMPORTS + "CreateImport",
        imports.CreateImportRequest(spec=imports.ImportSpec(max_reject_ratio=float("inf"))),
        "spec.max_reject_ratio",
    ),
    "inverted range": (
        IDENTITY + "ListAuditEvents",
        identity.ListAuditEventsRequest(from_time=timestamp(200), to_time=timestamp(100)),
        "to_time",
    ),
    "NUL": (
        MEMBERS + "ValidateMember",
        members.ValidateMemberRequest(member_number="A\x001"),
        "member_number",
    ),
    "NUL where no rule looks": (
        IDENTITY + "ListUsers",
        identity.ListUsersRequest(page_token="a\x00"),
        "page_token",
    ),
    "no UUID": (
        IDENTITY + "RevokeApiKey",
        identity.RevokeApiKeyRequest(key_id="not-a-uuid"),
        "key_id",
    ),
    "over 1,000": (
        MEMBERS + "BatchValidateMembers",
        members.BatchValidateMembersRequest(
            queries=[members.MemberQuery(member_number="A") for _ in range(1_001)]
        ),
        "queries",
    ),
    "field mask": (
        IDENTITY + "UpdateUser",
        identity.UpdateUserRequest(
            user=identity.User(user_id=STRANGER), update_mask=FieldMask(paths=["password_hash"])
        ),
        "update_mask",
    ),
    "star mask": (
        IDENTITY + "UpdateUser",
        identity.UpdateUserRequest(
            user=identity.User(user_id=STRANGER), update_mask=FieldMask(paths=["*"])
        ),
        "update_mask",
    ),
    "page size": (
        IDENTITY + "ListUsers",
        identity.ListUsersRequest(page_size=-1),
        "page_size",
    ),
}


@pytest.mark.parametrize("name", INVALID)
async def test_the_field_is_named(caller: Caller, name: str) -> None:
    path, request, field = INVALID[name]
    found = await caller.refused(path, request.SerializeToString(), StatusCode.INVALID_ARGUMENT)
    fields = [violation.field for violation in found["BadRequest"].field_violations]
    assert any(each.startswith(field) for each in fields), fields


async def test_a_page_size_over_the_maximum_counts_as_the_maximum(caller: Caller) -> None:
    request = identity.ListUsersRequest(page_size=2**31 - 1)
    await caller.raw(IDENTITY + "ListUsers", request.SerializeToString())


@pytest.mark.parametrize("prefix", ["%", "_", "\\", "%ex%", "\\%", "a_", "'; --"])
async def test_wildcards_are_literal(caller: Caller, prefix: str) -> None:
    names = ["Ada", "100% Bea", "%ex% Cleo", "_ Dora", "\\% Ede"]
    for name in names:
        create = identity.CreateUserRequest(
            request_id=str(uuid.uuid5(uuid.NAMESPACE_OID, name)),
            email=f"{uuid.uuid5(uuid.NAMESPACE_OID, name)}@example.org",
            display_name=name,
            role=1,  # type: ignore[arg-type]
        )
        await caller.raw(IDENTITY + "CreateUser", create.SerializeToString())
    raw = await caller.raw(
        IDENTITY + "ListUsers", identity.ListUsersRequest(prefix=prefix).SerializeToString()
    )
    found = [user.display_name for user in identity.ListUsersResponse.FromString(raw).users]
    assert sorted(found) == sorted(n for n in names if n.lower().startswith(prefix.lower()))


@pytest.mark.parametrize("size", [MESSAGE_BYTES_MAX + 1, 5 << 20])
async def test_a_message_over_4_mib(house: House, channel: grpc.aio.Channel, size: int) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        call: Any = channel.unary_unary(IDENTITY + "WhoAmI")
        await call(bytes(size), metadata=house.org.as_(Role.ADMIN), timeout=TIMEOUT_S)
    assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED


async def test_another_organisations_id_is_no_id(caller: Caller, house: House) -> None:
    # Its error is byte for byte the one of an id that nobody has.
    admin = Caller(caller._channel, house.other.as_(Role.ADMIN))
    raw = await admin.raw(IDENTITY + "ListApiKeys", b"")
    foreign = identity.ListApiKeysResponse.FromString(raw).api_keys[0].key_id
    answers = [
        await caller.refused(
            IDENTITY + "RevokeApiKey",
            identity.RevokeApiKeyRequest(key_id=key_id).SerializeToString(),
            StatusCode.NOT_FOUND,
        )
        for key_id in (foreign, STRANGER)
    ]
    assert str(answers[0]).replace(foreign, "") == str(answers[1]).replace(STRANGER, "")
