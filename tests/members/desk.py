"""Calls to MemberService as a test makes them, in one role or another."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import grpc.aio
import pytest

from tests.running import Org, details
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline.api.members.v1.members_service_pb2_grpc import MemberServiceStub
from trunkline.api.members.v1.validation_reason_pb2 import ValidationReason
from trunkline_server.rpc.caller import Role

DEADLINE_S = 10.0


@dataclass
class Refusal:
    """What an expected error said."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""
    details: dict[str, Any] | None = None

    def fields(self) -> list[str]:
        assert self.details is not None
        return [each.field for each in self.details["BadRequest"].field_violations]


@contextlib.contextmanager
def refused(code: grpc.StatusCode, reason: str = "") -> Iterator[Refusal]:
    """The block ends in an error of that code (and reason)."""
    refusal = Refusal()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield refusal
    assert caught.value.code() is code, caught.value.details()
    refusal.code = caught.value.code()
    refusal.details = details(caught.value)
    refusal.reason = refusal.details["reason"]
    if reason:
        assert refusal.reason == reason


class Desk:
    def __init__(self, channel: grpc.aio.Channel, org: Org, database_url: str) -> None:
        self.org = org
        self.database_url = database_url
        self.stub: Any = MemberServiceStub(channel)

    def options(self, role: Role) -> dict[str, Any]:
        return {"metadata": self.org.as_(role), "timeout": DEADLINE_S}

    async def call(self, method: str, request: Any, role: Role = Role.ADMIN) -> Any:
        return await getattr(self.stub, method)(request, **self.options(role))

    async def validate(self, number: str, role: Role = Role.AGENT, **given: Any) -> Any:
        request = pb.ValidateMemberRequest(member_number=number, **given)
        return await self.call("ValidateMember", request, role)

    async def decision(self, number: str, role: Role = Role.AGENT, **given: Any) -> str:
        reply = await self.validate(number, role, **given)
        return pb.Decision.Name(reply.validation.decision).removeprefix("DECISION_")

    async def create(self, number: str, role: Role = Role.ADMIN, **fields: Any) -> pb.Member:
        request = pb.CreateMemberRequest(member=pb.Member(member_number=number, **fields))
        member: pb.Member = (await self.call("CreateMember", request, role)).member
        return member

    async def update(self, member: pb.Member, **fields: Any) -> pb.Member:
        changed = pb.Member(member_id=member.member_id, etag=member.etag, **fields)
        request = pb.UpdateMemberRequest(member=changed)
        request.update_mask.paths.extend(fields)
        updated: pb.Member = (await self.call("UpdateMember", request)).member
        return updated

    async def delete(self, member: pb.Member) -> pb.Member:
        request = pb.DeleteMemberRequest(member_id=member.member_id)
        deleted: pb.Member = (await self.call("DeleteMember", request)).member
        return deleted

    async def get(self, role: Role = Role.ADMIN, **named: Any) -> pb.Member:
        found: pb.Member = (await self.call("GetMember", pb.GetMemberRequest(**named), role)).member
        return found

    async def search(self, text: str, role: Role = Role.ADMIN, **given: Any) -> list[str]:
        request = pb.SearchMembersRequest(query=text, **given)
        reply = await self.call("SearchMembers", request, role)
        return [match.member.member_number for match in reply.matches]

    async def export(self, **given: Any) -> bytes:
        request = pb.ExportMembersRequest(**given)
        parts = self.stub.ExportMembers(request, **self.options(Role.ADMIN))
        return b"".join([part.data async for part in parts])

    async def set_rules(self, **rules: Any) -> None:
        """The organisation's member rules, as the database keeps them; no process is told."""
        async with self.database() as database:
            await database.execute(
                "UPDATE orgs SET member_rules = $2, version = version + 1 WHERE org_id = $1",
                self.org.org_id,
                json.dumps(rules),
            )

    async def imported_name(self, given_name: str) -> None:
        """Gives it to all members, as a file can: RPCs take no control characters."""
        async with self.database() as database:
            await database.execute(
                "UPDATE members SET given_name = $2 WHERE org_id = $1",
                self.org.org_id,
                given_name,
            )

    @contextlib.asynccontextmanager
    async def database(self) -> AsyncIterator[asyncpg.Connection]:
        """The superuser's connection: row-level security does not hold it."""
        connection = await asyncpg.connect(self.database_url)
        try:
            yield connection
        finally:
            await connection.close()


def reasons(reply: pb.ValidateMemberResponse) -> list[str]:
    return [
        ValidationReason.Name(reason.code).removeprefix("VALIDATION_REASON_")
        for reason in reply.validation.reasons
    ]
