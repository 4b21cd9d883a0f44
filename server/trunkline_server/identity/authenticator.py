"""Who is behind an `authorization` value: from memory where it was seen, else from PostgreSQL.

A verified credential is remembered for TTL_S. Revocations arrive over the link within
milliseconds; while the link is down nothing is remembered longer than TTL_WITHOUT_LINK_S.
"""

import asyncio
import hashlib
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from trunkline_server.db import Database, Executor, Record, translated
from trunkline_server.errors import AppError, PermissionDenied, Unauthenticated, Unavailable
from trunkline_server.identity import rules
from trunkline_server.identity.errors import LoginLocked, OrgSuspended, UserSuspended
from trunkline_server.identity.lockout import Lockout
from trunkline_server.identity.rules import Peppers
from trunkline_server.identity.tokens import AccessTokens
from trunkline_server.link import Link
from trunkline_server.rpc.caller import Caller, Role, current_request

TTL_S = 30.0
TTL_WITHOUT_LINK_S = 0.5
ENTRIES_MAX = 20_000
AUTHORIZATION_CHARS_MAX = 4_096
PURPOSE_API_KEY = "api-key"

TOPIC_CREDENTIAL = "credential"
TOPIC_USER = "user"
TOPIC_ORG = "org"

_SCHEME = "bearer "
_JUDGED = (Unauthenticated, PermissionDenied, LoginLocked)


@dataclass(frozen=True, slots=True)
class _Entry:
    caller: Caller
    until: float  # monotonic


class Authenticator:
    """`cached` is for the hot path; `authenticate` decides, and remembers."""

    def __init__(
        self,
        *,
        db: Database,
        tokens: AccessTokens,
        peppers: Peppers,
        lockout: Lockout,
        link: Link | None,
        ttl_s: float = TTL_S,
        ttl_without_link_s: float = TTL_WITHOUT_LINK_S,
        entries_max: int = ENTRIES_MAX,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._db = db
        self._tokens = tokens
        self._peppers = peppers
        self._lockout = lockout
        self._ttl_s = ttl_s if link is not None else ttl_without_link_s
        self._ttl_linked_s = ttl_s
        self._ttl_without_link_s = ttl_without_link_s
        self._entries_max = entries_max
        self._clock = clock
        self._wall_clock = wall_clock
        # Keyed, so that a memory dump does not hold digests of credentials to guess against.
        self._secret = os.urandom(16)
        self._entries: dict[bytes, _Entry] = {}
        self._loads: dict[bytes, asyncio.Task[Caller]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._generation = 0
        if link is not None:
            for topic in (TOPIC_CREDENTIAL, TOPIC_USER, TOPIC_ORG):
                link.subscribe(topic, self._forget)
            link.on_recovery(self._link_back)
            link.on_loss(self._link_lost)

    def cached(self, authorization: str) -> Caller | None:
        entry = self._entries.get(self._key(authorization))
        if entry is None or entry.until <= self._clock():
            return None
        return entry.caller

    async def authenticate(self, authorization: str) -> Caller:
        """The caller, or Unauthenticated, PermissionDenied, LoginLocked, Unavailable."""
        if len(authorization) > AUTHORIZATION_CHARS_MAX or not authorization.isascii():
            raise Unauthenticated
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            raise Unauthenticated
        key, credential = self._key(authorization), authorization[len(_SCHEME) :].strip()
        load = self._loads.get(key)
        if load is not None:
            # The same credential is being judged: wait for that, but not for its mishaps.
            try:
                return await asyncio.shield(load)
            except _JUDGED:
                raise
            except AppError:
                return await self._load(key, credential)
        load = asyncio.create_task(self._load(key, credential))
        self._loads[key] = load
        load.add_done_callback(lambda _: self._loads.pop(key, None))
        try:
            return await asyncio.shield(load)
        except asyncio.CancelledError:
            load.add_done_callback(_seen)
            raise

    @property
    def entries(self) -> int:
        return len(self._entries)

    async def close(self) -> None:
        await asyncio.gather(*self._background, *self._loads.values(), return_exceptions=True)

    def _key(self, authorization: str) -> bytes:
        return hashlib.blake2b(
            authorization.encode(), digest_size=16, key=self._secret, usedforsecurity=False
        ).digest()

    async def _load(self, key: bytes, credential: str) -> Caller:
        generation = self._generation
        try:
            if credential.startswith(rules.API_KEY_SCHEME + "_"):
                caller, valid_s = await self._by_api_key(credential)
            else:
                caller, valid_s = await self._by_access_token(credential)
        except AppError:
            raise
        except Exception as error:
            known = translated(error)
            if known is None:
                raise
            # Who calls cannot be told now: that is no verdict on the credential.
            raise Unavailable(retry_after_s=0.5) from None
        # What was revoked while it was being read must not be remembered.
        if generation == self._generation:
            self._remember(key, caller, valid_s)
        return caller

    async def _by_access_token(self, token: str) -> tuple[Caller, float]:
        claims = self._tokens.read(token)
        row = await self._db.readers.fetchrow(
            _SESSION, claims.org_id, claims.user_id, claims.session_id
        )
        if row is None or not row["session_live"]:
            raise Unauthenticated
        _refuse_suspended(row)
        if row["user_status"] != "ACTIVE":
            raise UserSuspended
        caller = Caller(
            org_id=claims.org_id,
            actor_id=claims.user_id,
            actor_kind="user",
            role=Role[row["role"]],
            credential_id=claims.session_id,
            actor_name=row["display_name"],
        )
        return caller, claims.expires_at - self._wall_clock()

    async def _by_api_key(self, key: str) -> tuple[Caller, float]:
        prefix = rules.api_key_prefix(key)
        if prefix is None:
            raise Unauthenticated
        address = current_request().peer
        self._lockout.check("key", prefix, address)
        content = key.encode()
        for row in await self._db.readers.fetch(_API_KEY, prefix):
            if self._peppers.match(PURPOSE_API_KEY, content, row["digest"]):
                return self._key_caller(prefix, content, row)
        await self._lockout.attempt("key", prefix, address)
        raise Unauthenticated

    def _key_caller(self, prefix: str, content: bytes, row: Record) -> tuple[Caller, float]:
        if not row["live"]:
            raise Unauthenticated
        _refuse_suspended(row)
        caller = Caller(
            org_id=row["org_id"],
            actor_id=row["key_id"],
            actor_kind="key",
            role=Role[row["role"]],
            credential_id=row["key_id"],
            actor_name=row["display_name"],
        )
        old_pepper = not self._peppers.is_current(PURPOSE_API_KEY, content, row["digest"])
        if row["use_is_stale"] or old_pepper:
            digest = self._peppers.digest(PURPOSE_API_KEY, content)
            self._in_background(self._note_use(caller, prefix, digest))
        return caller, float("inf") if row["live_for_s"] is None else row["live_for_s"]

    async def _note_use(self, caller: Caller, prefix: str, digest: bytes) -> None:
        """When it was used, and the digest under today's pepper. Best effort."""
        try:
            async with self._db.tenant_tx(caller.org_id) as tx:
                await note_key_use(tx, caller.org_id, caller.actor_id, prefix, digest)
        except Exception as error:
            if translated(error) is None:
                raise

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _remember(self, key: bytes, caller: Caller, valid_s: float) -> None:
        lasting_s = min(self._ttl_s, valid_s)
        if lasting_s <= 0:
            return
        if key not in self._entries and len(self._entries) >= self._entries_max:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = _Entry(caller, self._clock() + lasting_s)

    def _forget(self, identifier: str) -> None:
        """Everything that stands on this credential, user or organisation."""
        self._generation += 1
        try:
            gone = UUID(identifier)
        except ValueError:
            self._entries.clear()
            return
        doomed = [
            key
            for key, entry in self._entries.items()
            if gone in (entry.caller.credential_id, entry.caller.actor_id, entry.caller.org_id)
        ]
        for key in doomed:
            del self._entries[key]

    def _link_lost(self) -> None:
        self._generation += 1
        self._entries.clear()
        self._ttl_s = self._ttl_without_link_s

    def _link_back(self) -> None:
        self._generation += 1
        self._entries.clear()
        self._ttl_s = self._ttl_linked_s


_SESSION = """
SELECT org_status, display_name, role, user_status, session_live FROM auth_session($1, $2, $3)
"""
_API_KEY = """
SELECT org_id, org_status, key_id, display_name, role, digest, live, live_for_s, use_is_stale
FROM auth_api_key($1)
"""
_NOTE_KEY_USE = "UPDATE api_keys SET last_used_at = now() WHERE org_id = $1 AND key_id = $2"
_NOTE_DIGEST = "UPDATE api_key_secrets SET digest = $3 WHERE org_id = $1 AND prefix = $2"


async def note_key_use(
    db: Executor, org_id: UUID, key_id: UUID, prefix: str, digest: bytes
) -> None:
    await db.execute(_NOTE_KEY_USE, org_id, key_id)
    await db.execute(_NOTE_DIGEST, org_id, prefix, digest)


def _refuse_suspended(row: Record) -> None:
    if row["org_status"] != "ACTIVE":
        raise OrgSuspended


def _seen(task: "asyncio.Task[Caller]") -> None:
    if not task.cancelled():
        task.exception()
