"""Every method, every role, two organisations: through the real server, from the descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import statistics
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import grpc.aio
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode

from tests.isolation.requests import filled, id_fields, ids_in, takes_ids, timeless
from tests.running import Metadata, Org, Running, details
from trunkline.api.identity.v1 import identity_service_pb2 as identity
from trunkline.api.members.v1 import members_service_pb2 as members
from trunkline_server.app import SERVICES
from trunkline_server.jobs import queue
from trunkline_server.logs import JsonFormatter
from trunkline_server.rpc.caller import Role
from trunkline_server.rpc.policy import MethodPolicy, policy_of

CANARY = "Canaria"
TIMEOUT_S = 3.0
TIMING_ROUNDS = 60
TIMING_RATIO_MAX = 2.0
# Names of ids that some request takes.
ASKED_FOR = frozenset(
    name
    for service in SERVICES
    for method in service.methods
    for name in id_fields(method.input_type)
)
# Ids that the walk has to have found in the other organisation, or it walks past nothing.
MUST_FIND = frozenset({"user_id", "key_id", "job_id", "org_id"})
# Methods that have to answer NOT_FOUND to another organisation's id.
MUST_HIDE = frozenset({
    "UpdateUser", "ResetPassword", "RotateApiKey", "RevokeApiKey", "RetryJob", "CancelJob",
})  # fmt: skip
# There a number is a new name in the caller's own organisation, not a question for another's.
NAMES_ITS_OWN = frozenset({"CreateMember"})
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for service in SERVICES
    for method in service.methods
}


@dataclass(frozen=True)
class Answer:
    """All that a caller gets to see."""

    code: StatusCode
    replies: tuple[bytes, ...]
    text: str
    reason: str
    trailers: tuple[tuple[str, str | bytes], ...]
    reply_class: Any

    def without(self, *ids: str) -> tuple[object, ...]:
        """Comparable: without the ids that were asked for, and without times."""
        replies = [timeless(self.reply_class.FromString(raw)) for raw in self.replies]
        shown = repr((self.code, replies, self.text, self.reason))
        for each in ids:
            shown = shown.replace(each, "*")
        return (shown,)

    @property
    def bytes(self) -> bytes:
        return b"".join(self.replies) + repr((self.text, self.trailers)).encode()


class Walker:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def call(
        self,
        path: str,
        request: Message | bytes,
        metadata: Metadata = (),
        timeout_s: float = TIMEOUT_S,
    ) -> Answer:
        content = request if isinstance(request, bytes) else request.SerializeToString()
        replies: list[bytes] = []
        reply_class = GetMessageClass(METHODS[path].output_type)
        try:
            await self._run(METHODS[path], path, content, metadata, timeout_s, replies)
        except grpc.aio.AioRpcError as error:
            trailers = tuple((str(key), value) for key, value in error.trailing_metadata() or ())
            reason = ""
            with contextlib.suppress(KeyError):
                reason = details(error)["reason"]
            text = error.details() or ""
            return Answer(error.code(), tuple(replies), text, reason, trailers, reply_class)
        return Answer(StatusCode.OK, tuple(replies), "", "", (), reply_class)

    async def _run(
        self,
        method: MethodDescriptor,
        path: str,
        content: bytes,
        metadata: Metadata,
        timeout_s: float,
        replies: list[bytes],
    ) -> None:
        options: dict[str, Any] = {"metadata": metadata, "timeout": timeout_s}

        async def sent() -> AsyncIterator[bytes]:
            yield content

        request = sent() if method.client_streaming else content
        if method.server_streaming:
            kind: Any = (
                self._channel.stream_stream
                if method.client_streaming
                else self._channel.unary_stream
            )
            async for reply in kind(path)(request, **options):
                replies.append(reply)
                if len(replies) == 10:
                    return
        else:
            kind = (
                self._channel.stream_unary if method.client_streaming else self._channel.unary_unary
            )
            replies.append(await kind(path)(request, **options))


def policies() -> dict[str, MethodPolicy]:
    return {path: policy_of(method) for path, method in METHODS.items()}


def closed_methods() -> dict[str, MethodPolicy]:
    return {path: policy for path, policy in policies().items() if not policy.anonymous}


@pytest.fixture
async def walker(server: Running) -> Walker:
    return Walker(server.channel)


async def test_nobody_gets_in_without_a_credential(walker: Walker) -> None:
    assert len(METHODS) > 60
    wrong = {}
    for path in closed_methods():
        for metadata in ((), (("authorization", "Bearer nobody"),)):
            answer = await walker.call(path, b"", metadata)
            if answer.code is not StatusCode.UNAUTHENTICATED:
                wrong[path] = answer.code
    assert wrong == {}


async def test_the_policy_decides_for_every_method_and_role(
    walker: Walker, server: Running
) -> None:
    org = await server.org("acme")
    wrong = []
    for path, policy in closed_methods().items():
        for role in Role:
            # A message that no method can read: a handler that saw it would be a finding.
            answer = await walker.call(path, b"\xff\xff", org.as_(role))
            if role in policy.roles:
                fine = (answer.code, answer.reason) == (
                    StatusCode.INVALID_ARGUMENT,
                    "MALFORMED_MESSAGE",
                ) or answer.code is StatusCode.UNIMPLEMENTED
            else:
                fine = (answer.code, answer.reason) == (
                    StatusCode.PERMISSION_DENIED,
                    "ROLE_NOT_ALLOWED",
                )
            if not fine:
                wrong.append((path, role.name, answer.code, answer.reason))
    assert wrong == []


class Neighbours:
    """An organisation that looks, and one full of canaries that must not be seen."""

    def __init__(self, walker: Walker, ours: Org, theirs: Org, job_id: str) -> None:
        self.walker = walker
        self.ours = ours
        self.theirs = theirs
        self.job_id = job_id
        self.ids: dict[str, str] = {}

    async def settle(self) -> None:
        """Things of each kind in the other organisation, and their ids."""
        for path, request in self._creations():
            answer = await self.walker.call(path, request, self.theirs.as_(Role.ADMIN))
            assert answer.code in (StatusCode.OK, StatusCode.UNIMPLEMENTED), (path, answer)
        found: dict[str, str] = {"job_id": self.job_id, "org_id": str(self.theirs.org_id)}
        for path, method in METHODS.items():
            if method.name.startswith(("List", "Get", "WhoAmI")):
                request = filled(method.input_type, found)
                policy = policy_of(method)
                role = max(policy.roles)
                answer = await self.walker.call(path, request, self.theirs.as_(role))
                for raw in answer.replies:
                    reply = GetMessageClass(method.output_type).FromString(raw)
                    for name, value in ids_in(reply):
                        found.setdefault(name, value)
        self.ids = {
            name: value for name, value in found.items() if name in ASKED_FOR or name == "org_id"
        }

    def _creations(self) -> list[tuple[str, Message]]:
        base = "/trunkline.api."
        return [
            (
                f"{base}identity.v1.IdentityService/CreateUser",
                identity.CreateUserRequest(
                    email=f"{CANARY.lower()}@example.org",
                    display_name=CANARY,
                    role=1,  # type: ignore[arg-type]
                ),
            ),
            (
                f"{base}identity.v1.IdentityService/CreateApiKey",
                identity.CreateApiKeyRequest(display_name=CANARY, role=1),  # type: ignore[arg-type]
            ),
            (
                f"{base}members.v1.MemberService/CreateMember",
                members.CreateMemberRequest(
                    member=members.Member(
                        member_number="CAN-1",
                        given_name=CANARY,
                        family_name=CANARY,
                        effective_from="2020-01-01",
                        status=2,  # type: ignore[arg-type]
                    )
                ),
            ),
        ]


@pytest.fixture
async def neighbours(walker: Walker, server: Running) -> Neighbours:
    ours, theirs = await server.org("acme"), await server.org("other")
    connection = await asyncpg.connect(server.database_url)
    job_id = await queue.enqueue(connection, theirs.org_id, "nobody.does", payload={"a": CANARY})
    await connection.close()
    found = Neighbours(walker, ours, theirs, str(job_id))
    await found.settle()
    return found


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def seen_in_log(caplog: pytest.LogCaptureFixture) -> str:
    formatter = JsonFormatter("test")
    return "\n".join(
        formatter.format(record) for record in caplog.records if record.name.startswith("trunkline")
    )


async def test_another_organisations_ids_are_no_ids(
    neighbours: Neighbours, log: pytest.LogCaptureFixture
) -> None:
    assert neighbours.ids.keys() >= MUST_FIND
    names = frozenset(neighbours.ids)
    nowhere = {name: "CAN-2" if name == "member_number" else str(uuid.uuid4()) for name in names}
    differing, leaking, hidden = [], [], set()
    for path, method in METHODS.items():
        policy = policies()[path]
        if policy.anonymous or not takes_ids(method.input_type, names):
            continue
        if method.name in NAMES_ITS_OWN:
            continue
        for role in policy.roles:
            caller = neighbours.ours.as_(role)
            timeout_s = 0.5 if method.server_streaming else TIMEOUT_S
            theirs, none = [
                await neighbours.walker.call(
                    path, filled(method.input_type, ids), caller, timeout_s
                )
                for ids in (neighbours.ids, nowhere)
            ]
            if theirs.without(*neighbours.ids.values()) != none.without(*nowhere.values()):
                differing.append((path, role.name, theirs, none))
            if CANARY.encode() in theirs.bytes or CANARY.lower().encode() in theirs.bytes:
                leaking.append((path, role.name))
            if theirs.code is StatusCode.NOT_FOUND:
                hidden.add(method.name)
    assert differing == []
    assert leaking == []
    assert hidden >= MUST_HIDE
    assert CANARY.lower() not in seen_in_log(log).lower()


async def test_nothing_of_another_organisation_is_in_any_reply(
    neighbours: Neighbours, log: pytest.LogCaptureFixture
) -> None:
    leaking = []
    foreign = set(neighbours.ids.values()) - {"CAN-1"}
    for path, method in METHODS.items():
        policy = policies()[path]
        for role in policy.roles:
            timeout_s = 0.3 if method.server_streaming else TIMEOUT_S
            answer = await neighbours.walker.call(
                path, filled(method.input_type, {}), neighbours.ours.as_(role), timeout_s
            )
            shown = answer.bytes.decode("utf-8", "replace")
            if CANARY.lower() in shown.lower() or any(each in shown for each in foreign):
                leaking.append((path, role.name, answer))
    assert leaking == []
    assert CANARY.lower() not in seen_in_log(log).lower()


async def test_the_walk_can_see_a_leak(neighbours: Neighbours) -> None:
    """A control: the other organisation itself does see its canaries."""
    answer = await neighbours.walker.call(
        "/trunkline.api.identity.v1.IdentityService/ListUsers",
        b"",
        neighbours.theirs.as_(Role.ADMIN),
    )
    assert CANARY.encode() in answer.bytes


@pytest.mark.parametrize("name", ["RevokeApiKey", "ResetPassword"])
async def test_a_foreign_id_takes_as_long_as_none(neighbours: Neighbours, name: str) -> None:
    path = f"/trunkline.api.identity.v1.IdentityService/{name}"
    field = "key_id" if name == "RevokeApiKey" else "user_id"
    method, caller = METHODS[path], neighbours.ours.as_(Role.ADMIN)
    seconds: dict[str, list[float]] = {"foreign": [], "none": []}
    for _ in range(TIMING_ROUNDS):
        for kind, value in (("foreign", neighbours.ids[field]), ("none", str(uuid.uuid4()))):
            request = filled(method.input_type, {field: value})
            started = time.perf_counter()
            answer = await neighbours.walker.call(path, request, caller)
            seconds[kind].append(time.perf_counter() - started)
            assert answer.code is StatusCode.NOT_FOUND, answer
        await asyncio.sleep(0)
    ratio = statistics.median(seconds["foreign"]) / statistics.median(seconds["none"])
    assert 1 / TIMING_RATIO_MAX < ratio < TIMING_RATIO_MAX
