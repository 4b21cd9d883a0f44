"""Services that say what a test told them to: statuses, pages, tokens and streams in turn."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from trunkline.api.identity.v1 import identity_service_pb2 as identity
from trunkline.api.identity.v1.identity_service_pb2_grpc import (
    IdentityServiceServicer,
    add_IdentityServiceServicer_to_server,
)
from trunkline.api.members.v1 import members_service_pb2 as members
from trunkline.api.members.v1.members_service_pb2_grpc import (
    MemberServiceServicer,
    add_MemberServiceServicer_to_server,
)
from trunkline_server.rpc.options import SERVER_OPTIONS

MEMBERS = 25
_Context = Any


@dataclass(frozen=True)
class Fault:
    """How a call ends; `pushback_ms` as the server's trailer says it."""

    code: grpc.StatusCode
    pushback_ms: int | None = None
    retry_after_s: int | None = None

    async def happen(self, context: _Context) -> None:
        trailers: list[tuple[str, str | bytes]] = []
        if self.pushback_ms is not None:
            trailers.append(("grpc-retry-pushback-ms", str(self.pushback_ms)))
        if self.retry_after_s is not None:
            status = status_pb2.Status(code=self.code.value[0], message="The test says no.")
            delay = Duration(seconds=self.retry_after_s)
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
            trailers.append(("grpc-status-details-bin", status.SerializeToString()))
        await context.abort(self.code, "The test says no.", tuple(trailers))


@dataclass(frozen=True)
class Call:
    """One attempt as it arrived."""

    at_s: float
    call_id: str
    authorization: str
    request: Any


Streamed = members.WatchMembersResponse | Fault


@dataclass
class Script(MemberServiceServicer, IdentityServiceServicer):
    faults: deque[Fault] = field(default_factory=deque)
    calls: list[Call] = field(default_factory=list)
    # What each WatchMembers says before it ends; one that finds none left stays open.
    streams: deque[list[Streamed]] = field(default_factory=deque)
    refreshes: list[str] = field(default_factory=list)
    refresh_fault: Fault | None = None
    may_refresh: asyncio.Event = field(default_factory=asyncio.Event)

    async def _arrived(self, request: Any, context: _Context) -> None:
        sent = dict(context.invocation_metadata())
        now_s = time.monotonic()
        self.calls.append(Call(now_s, sent["x-request-id"], sent["authorization"], request))
        if self.faults:
            await self.faults.popleft().happen(context)

    async def CreateMember(
        self, request: members.CreateMemberRequest, context: _Context
    ) -> members.CreateMemberResponse:
        await self._arrived(request, context)
        return members.CreateMemberResponse(member=request.member)

    async def ListMembers(
        self, request: members.ListMembersRequest, context: _Context
    ) -> members.ListMembersResponse:
        await self._arrived(request, context)
        first = int(request.page_token or 0)
        numbers = range(first, min(first + request.page_size, MEMBERS))
        return members.ListMembersResponse(
            members=[members.Member(member_number=str(number)) for number in numbers],
            next_page_token=str(numbers.stop) if numbers.stop < MEMBERS else "",
        )

    async def WatchMembers(
        self, request: members.WatchMembersRequest, context: _Context
    ) -> AsyncIterator[members.WatchMembersResponse]:
        await self._arrived(request, context)
        if not self.streams:
            await asyncio.Event().wait()
        for streamed in self.streams.popleft():
            if isinstance(streamed, Fault):
                await streamed.happen(context)
            else:
                yield streamed

    async def WhoAmI(
        self, request: identity.WhoAmIRequest, context: _Context
    ) -> identity.WhoAmIResponse:
        await self._arrived(request, context)
        return identity.WhoAmIResponse()

    async def Refresh(
        self, request: identity.RefreshRequest, context: _Context
    ) -> identity.RefreshResponse:
        self.refreshes.append(request.refresh_token)
        await self.may_refresh.wait()
        if self.refresh_fault is not None:
            await self.refresh_fault.happen(context)
        count = len(self.refreshes)
        pair = identity.TokenPair(access_token=f"access-{count}", refresh_token=f"refresh-{count}")
        pair.access_expire_time.FromSeconds(int(time.time()) + 900)
        return identity.RefreshResponse(tokens=pair)

    async def let_refresh(self) -> None:
        self.may_refresh.set()


class Scripted:
    def __init__(self, script: Script, address: str) -> None:
        self.script = script
        self.address = address


@asynccontextmanager
async def scripted() -> AsyncIterator[Scripted]:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    script = Script()  # type: ignore[abstract]
    add_MemberServiceServicer_to_server(script, server)
    add_IdentityServiceServicer_to_server(script, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield Scripted(script, f"127.0.0.1:{port}")
    finally:
        await server.stop(0)


def changed(number: str, checkpoint: str, *, go_away: bool = False) -> Streamed:
    """A message of a watch: one change, and where to go on after it."""
    member = members.Member(member_number=number)
    change = members.MemberChange(member=member)
    return members.WatchMembersResponse(changes=[change], checkpoint=checkpoint, go_away=go_away)
