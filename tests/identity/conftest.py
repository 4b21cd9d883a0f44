"""IdentityService behind the real wrapper and a real channel, as many processes as a test wants."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from trunkline.api.identity.v1 import identity_service_pb2 as pb
from trunkline.api.identity.v1.identity_service_pb2_grpc import IdentityServiceStub
from trunkline_server.db import Database
from trunkline_server.identity import admin
from trunkline_server.identity.authenticator import Authenticator
from trunkline_server.identity.lockout import Lockout
from trunkline_server.identity.passwords import Passwords
from trunkline_server.identity.rules import Peppers
from trunkline_server.identity.service import IdentityService
from trunkline_server.identity.sessions import Sessions
from trunkline_server.identity.tokens import AccessTokens, new_signing_key
from trunkline_server.link import Link
from trunkline_server.paging import PageTokens
from trunkline_server.rpc.caller import Caller, Role
from trunkline_server.rpc.options import SERVER_OPTIONS
from trunkline_server.rpc.wrapper import Wrapper
from trunkline_server.valkey import Valkey

PASSWORD = "violet harbour 92 kites"
SERVICE = pb.DESCRIPTOR.services_by_name["IdentityService"]


@dataclass
class Secrets:
    """What all processes of an installation share."""

    peppers: list[bytes] = field(default_factory=lambda: [os.urandom(32)])
    pages: list[bytes] = field(default_factory=lambda: [os.urandom(32)])
    signing_keys: list[str] = field(default_factory=lambda: [new_signing_key()])


class Steps:
    """The wrapper's other steps, which refuse nothing and note incidents."""

    def __init__(self) -> None:
        self.failures: list[BaseException] = []

    def take(self, caller: Caller, cost: int) -> None: ...
    def admit(self, priority: int, remaining_s: float | None) -> None: ...
    def release(self, latency_s: float | None, ok: bool) -> None: ...
    def rpc(self, method: str) -> Steps:
        return self

    def record(self, code: int, seconds: float) -> None: ...
    def start_span(self, method: str, traceparent: str | bytes | None) -> None: ...
    def failure(self, method: str, incident: str, error: BaseException) -> None:
        self.failures.append(error)

    def check(self) -> None:
        """No call of the test may have ended in an unknown exception."""
        assert self.failures == []


class CountingReaders:
    """The readers, and how often they were asked."""

    def __init__(self, readers: Any) -> None:
        self._readers = readers
        self.asked = 0
        self.after: Callable[[], Awaitable[object]] | None = None

    async def fetchrow(self, query: str, *args: Any) -> Any:
        self.asked += 1
        return await self._readers.fetchrow(query, *args)

    async def fetch(self, query: str, *args: Any) -> Any:
        self.asked += 1
        rows = await self._readers.fetch(query, *args)
        if self.after is not None:
            await self.after()
        return rows

    async def close(self) -> None:
        await self._readers.close()


@dataclass
class Process:
    """One server process, as far as identity goes."""

    db: Database
    passwords: Passwords
    authenticator: Authenticator
    link: Link | None
    stub: Any
    steps: Steps
    readers: CountingReaders


class House:
    """Starts processes on one database and one Valkey."""

    def __init__(self, database_url: str, redis_url: str | None, stack: AsyncExitStack) -> None:
        self._database_url = database_url
        self._redis_url = redis_url
        self._stack = stack
        self.secrets = Secrets()
        self.target = ""  # the address of the process started last

    async def process(
        self, *, address: str = "127.0.0.1", without_valkey: bool = False, **given: Any
    ) -> Process:
        stack = self._stack
        db = await Database.open(self._database_url, pool_size=5)
        stack.push_async_callback(db.close)
        readers = CountingReaders(db.readers)
        db.readers = readers  # type: ignore[assignment]
        url = None if without_valkey else self._redis_url
        link = await self._link(url)
        valkey = None
        if url:
            valkey = Valkey(url)
            stack.push_async_callback(valkey.close)
        passwords = Passwords(threads=2)
        stack.callback(passwords.close)
        tokens = AccessTokens(self.secrets.signing_keys)
        peppers = Peppers(self.secrets.peppers)
        lockout = given.get("lockout") or Lockout(valkey)
        authenticator = Authenticator(
            db=db, tokens=tokens, peppers=peppers, lockout=lockout, link=link
        )
        stack.push_async_callback(authenticator.close)
        service = IdentityService(
            db=db,
            passwords=passwords,
            logins=Sessions(tokens=tokens, peppers=peppers),
            peppers=peppers,
            lockout=lockout,
            pages=PageTokens(self.secrets.pages),
            link=link,
            check_member_rules=_check_member_rules,
        )
        steps = Steps()
        stack.callback(steps.check)
        wrapper = Wrapper(
            authenticator=authenticator, limits=steps, shedder=steps, telemetry=steps, journal=steps
        )  # fmt: skip
        wrapper.bind(SERVICE, service)
        stub = await self._serve(wrapper, address)
        return Process(db, passwords, authenticator, link, stub, steps, readers)

    async def _link(self, url: str | None) -> Link | None:
        if url is None:
            return None
        link = Link(url)
        assert await link.start()
        self._stack.push_async_callback(link.close)
        return link

    async def _serve(self, wrapper: Wrapper, address: str) -> Any:
        server = grpc.aio.server(options=SERVER_OPTIONS)
        server.add_generic_rpc_handlers((wrapper,))
        port = server.add_insecure_port(f"{address}:0")
        await server.start()
        self._stack.push_async_callback(server.stop, 0)
        self.target = f"{address}:{port}"
        channel = grpc.aio.insecure_channel(self.target)
        self._stack.push_async_callback(channel.close)
        return IdentityServiceStub(channel)


def _check_member_rules(rules: pb.MemberRules) -> None:
    if rules.number_pattern == "(":
        raise ValueError("number_pattern does not compile")


@pytest.fixture
async def house(database_url: str, redis_url: str) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        yield House(database_url, redis_url, stack)


@pytest.fixture
async def process(house: House) -> Process:
    return await house.process()


@dataclass
class Org:
    """An organisation with an administrator, who logged in, and a key for each role."""

    org_id: UUID
    slug: str
    admin_id: UUID
    email: str
    access: str
    refresh: str
    keys: dict[Role, str]

    @property
    def auth(self) -> tuple[tuple[str, str], ...]:
        return bearer(self.access)


def bearer(credential: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {credential}"),)


MakeOrg = Callable[..., Awaitable[Org]]


@pytest.fixture
def make_org(house: House, process: Process) -> MakeOrg:
    async def make(slug: str | None = None) -> Org:
        slug = slug or f"org-{uuid4().hex[:12]}"
        peppers = Peppers(house.secrets.peppers)
        org_id = await admin.create_org(process.db, slug, "Acme")
        email = f"ada@{slug}.example"
        user = await admin.create_user(
            process.db, process.passwords, slug, email=email, display_name="Ada",
            role=Role.ADMIN, password=PASSWORD,
        )  # fmt: skip
        keys = {
            role: (
                await admin.create_key(
                    process.db, peppers, slug, display_name=role.name.lower(), role=role
                )
            ).secret
            for role in Role
        }
        reply = await process.stub.Login(
            pb.LoginRequest(org_slug=slug, email=email, password=PASSWORD)
        )
        tokens = reply.tokens
        return Org(
            org_id, slug, user.user_id, email, tokens.access_token, tokens.refresh_token, keys
        )

    return make


@pytest.fixture
async def org(make_org: MakeOrg) -> Org:
    return await make_org()


@pytest.fixture
async def superuser(database_url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """One whom no policy and no missing grant stops."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


class Refused(Exception):
    """A status, unpacked."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        super().__init__(f"{error.code()} {error.details()}")
        self.code = error.code()
        self.text = error.details() or ""
        status = status_pb2.Status()
        for key, value in error.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                assert isinstance(value, bytes)
                status.ParseFromString(value)
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        self.fields: list[str] = []
        bad = error_details_pb2.BadRequest()
        self.retry_s: float | None = None
        for detail in status.details:
            if detail.Unpack(info):
                continue
            if detail.Unpack(retry):
                self.retry_s = retry.retry_delay.ToTimedelta().total_seconds()
            elif detail.Unpack(bad):
                self.fields = [violation.field for violation in bad.field_violations]
        self.reason = info.reason
        self.raw = status.SerializeToString()


async def refusal(call: Awaitable[Any]) -> Refused:
    try:
        reply = await call
    except grpc.aio.AioRpcError as error:
        return Refused(error)
    raise AssertionError(f"not refused: {type(reply).__name__}")
