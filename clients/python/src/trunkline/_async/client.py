"""The client: one connection, one credential, a namespace for each area."""

import os
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from trunkline._async.content import AsyncContent
from trunkline._async.identity import AsyncIdentity
from trunkline._async.imports import AsyncImports
from trunkline._async.members import AsyncMembers
from trunkline._async.ops import AsyncOps
from trunkline._async.raw import AsyncRaw
from trunkline._async.session import AsyncSession
from trunkline._async.stats import AsyncStats
from trunkline._shared.connection import DEFAULT_ADDRESS, target_of
from trunkline._shared.credentials import Login, MemoryTokens, TokenStore
from trunkline._shared.health import (
    HEALTH_METHOD,
    HEALTH_TIMEOUT_S,
    question_about,
    status_of,
)
from trunkline._shared.profiles import resolve
from trunkline._shared.version import USER_AGENT
from trunkline.errors import ConfigurationError, from_grpc


class AsyncClient:
    """A client of one organisation. Use it as a context manager, one for the whole process.

    Give it one credential: an `api_key`, a `login`, or `tokens` that a log-in left.
    The address is `host:port`; TLS is spoken with everything but the loopback unless `tls` or a
    scheme (`https://`, `http://`) says otherwise.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        api_key: str | None = None,
        login: Login | None = None,
        tokens: TokenStore | None = None,
        tls: bool | None = None,
        ca_file: Path | str | None = None,
        user_agent: str = "",
    ) -> None:
        if api_key and (login or tokens):
            raise ConfigurationError(
                "An API key and a log-in were given.", remedy="Give one credential."
            )
        self._session = AsyncSession(
            target_of(address, tls, ca_file),
            f"{user_agent} {USER_AGENT}".strip(),
            api_key=api_key,
            login=login,
            tokens=tokens or (MemoryTokens() if login else None),
        )

    @classmethod
    def from_env(cls, profile: str | None = None, *, user_agent: str = "") -> Self:
        """A client as the environment says, then the profile: `TRUNKLINE_ADDRESS`,
        `TRUNKLINE_API_KEY`, `TRUNKLINE_TLS`, `TRUNKLINE_CA_FILE`; `TRUNKLINE_PROFILE` names a
        profile of `~/.config/trunkline/config.toml` if the argument does not."""
        found = resolve(profile, os.environ)
        return cls(
            found.address,
            api_key=found.api_key,
            tokens=found.tokens,
            tls=found.tls,
            ca_file=found.ca_file,
            user_agent=user_agent,
        )

    @property
    def address(self) -> str:
        """The server's address as it is used."""
        return self._session.target.address

    @cached_property
    def identity(self) -> AsyncIdentity:
        """Who may do what: users, API keys, the organisation's settings, the audit log."""
        return AsyncIdentity(self._session)

    @cached_property
    def members(self) -> AsyncMembers:
        """Members: validate, register, search, change, export, watch."""
        return AsyncMembers(self._session)

    @cached_property
    def imports(self) -> AsyncImports:
        """Rosters in CSV: upload, follow, correct, undo."""
        return AsyncImports(self._session)

    @cached_property
    def content(self) -> AsyncContent:
        """Articles, FAQs and training material."""
        return AsyncContent(self._session)

    @cached_property
    def stats(self) -> AsyncStats:
        """Events and what they add up to."""
        return AsyncStats(self._session)

    @cached_property
    def ops(self) -> AsyncOps:
        """Server, jobs and quotas."""
        return AsyncOps(self._session)

    @cached_property
    def raw(self) -> AsyncRaw:
        """The generated stubs on the shared channel, for what the namespaces do not offer."""
        return AsyncRaw(self._session)

    async def health(self, service: str = "", *, timeout_s: float = HEALTH_TIMEOUT_S) -> str:
        """`SERVING` or another short name of grpc.health.v1, for a service's full name; without
        one, whether the server lives at all. Needs no credential."""
        check: Any = self._session.channel.unary_unary(HEALTH_METHOD)
        try:
            return status_of(await check(question_about(service), timeout=timeout_s))
        except grpc.RpcError as error:
            raise from_grpc(error, self.address) from None

    async def close(self) -> None:
        """Close the connections. The client cannot be used afterwards."""
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
