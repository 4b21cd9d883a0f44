"""Credentials on the wire: an API key, or a log-in whose tokens are renewed in the background."""

import time
from typing import Protocol

import grpc

from trunkline._shared import tasks_async as tasks
from trunkline._shared.contract import default_deadline_s
from trunkline._shared.credentials import (
    EXPIRY_MARGIN_S,
    Login,
    Metadata,
    Tokens,
    TokenStore,
    bearer,
    tokens_of,
)
from trunkline.api.identity.v1 import identity_service_pb2 as pb
from trunkline.api.identity.v1 import identity_service_pb2_grpc as stubs
from trunkline.errors import TrunklineError, Unauthenticated, from_grpc

LOCK_POLL_S = 0.05
# After a background renewal failed the token in use is still good: no hurry.
RENEW_AGAIN_AFTER_S = 5.0

_METHODS = pb.DESCRIPTOR.services_by_name["IdentityService"].methods_by_name
_LOGIN_S = default_deadline_s(_METHODS["Login"])
_REFRESH_S = default_deadline_s(_METHODS["Refresh"])


class AsyncAuth(Protocol):
    """Gives each call its metadata."""

    def fresh(self) -> Metadata | None:
        """The metadata if it is at hand; must not wait."""

    async def fetch(self) -> Metadata:
        """The metadata, waited for."""

    async def renew(self, refused: Metadata) -> Metadata | None:
        """Other metadata after a server refused these; None if there is no other."""


class KeyAuth:
    """An API key, or nothing: health checks and log-ins need none."""

    def __init__(self, api_key: str | None) -> None:
        self._metadata = bearer(api_key) if api_key else ()

    def fresh(self) -> Metadata | None:
        return self._metadata

    async def fetch(self) -> Metadata:
        return self._metadata

    async def renew(self, refused: Metadata) -> Metadata | None:
        return None


class TokenAuth:
    """Tokens of a log-in. They are renewed before they end, once for all calls that wait."""

    def __init__(
        self,
        identity: "stubs.IdentityServiceAsyncStub",
        address: str,
        store: TokenStore,
        login: Login | None,
    ) -> None:
        self._identity = identity
        self._address = address
        self._store = store
        self._login = login
        self._lock = tasks.Lock()
        self._renewing = False
        self._metadata: Metadata = ()
        self._due_at_s = self._ends_at_s = 0.0

    def fresh(self) -> Metadata | None:
        now_s = time.time()
        if now_s < self._due_at_s:
            return self._metadata
        if now_s >= self._ends_at_s:
            return None
        if not self._renewing:
            self._renewing = True
            tasks.spawn(self._renew_quietly, self._metadata)
        return self._metadata

    async def fetch(self) -> Metadata:
        async with self._lock:
            if time.time() < self._ends_at_s:
                return self._metadata
            return await self._obtain(None)

    async def renew(self, refused: Metadata) -> Metadata | None:
        async with self._lock:
            if self._metadata != refused:
                return self._metadata
            try:
                return await self._obtain(refused)
            except Unauthenticated:
                return None

    async def _renew_quietly(self, current: Metadata) -> None:
        try:
            async with self._lock:
                await self._obtain(current)
        except TrunklineError:
            self._due_at_s = time.time() + RENEW_AGAIN_AFTER_S
        finally:
            self._renewing = False

    async def _obtain(self, unwanted: Metadata | None) -> Metadata:
        """Tokens from the store if another process renewed them, else by a refresh or log-in."""
        while not self._store.try_lock():
            await tasks.sleep(LOCK_POLL_S)
        try:
            tokens = self._store.load()
            if tokens is None or not _usable(tokens) or bearer(tokens.access) == unwanted:
                tokens = await self._new_tokens(tokens)
                self._store.save(tokens)
        finally:
            self._store.unlock()
        self._metadata = bearer(tokens.access)
        self._due_at_s, self._ends_at_s = tokens.due_at_s, tokens.expires_at_s - EXPIRY_MARGIN_S
        return self._metadata

    async def _new_tokens(self, tokens: Tokens | None) -> Tokens:
        try:
            if tokens is not None:
                try:
                    request = pb.RefreshRequest(refresh_token=tokens.refresh)
                    refreshed = await self._identity.Refresh(request, timeout=_REFRESH_S)
                    return tokens_of(refreshed.tokens)
                except grpc.RpcError as error:
                    if self._login is None or _code(error) != grpc.StatusCode.UNAUTHENTICATED:
                        raise
            if self._login is None:
                raise Unauthenticated(
                    "There is no log-in.", remedy="Log in (trunkline login), or set an API key."
                )
            opened = await self._identity.Login(_login_request(self._login), timeout=_LOGIN_S)
            return tokens_of(opened.tokens)
        except grpc.RpcError as error:
            raise from_grpc(error, self._address) from None


def _usable(tokens: Tokens) -> bool:
    return time.time() < tokens.expires_at_s - EXPIRY_MARGIN_S


def _login_request(login: Login) -> pb.LoginRequest:
    return pb.LoginRequest(org_slug=login.org_slug, email=login.email, password=login.password)


def _code(error: grpc.RpcError) -> grpc.StatusCode | None:
    return error.code() if hasattr(error, "code") else None
