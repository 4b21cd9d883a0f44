"""A repeated write gets the first answer, by organisation, actor, method and request id."""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import asyncpg
from google.protobuf.message import Message

from trunkline.api.errors.v1 import reason_pb2
from trunkline_server.db import Executor
from trunkline_server.errors import Aborted, AlreadyExists
from trunkline_server.rpc.caller import caller

REMEMBERED_S = 24 * 3600
SWEEP_ROWS_MAX = 10_000

Reply = TypeVar("Reply", bound=Message)
Digest = Callable[[bytes], bytes]


class RequestIdReused(AlreadyExists):
    reason = reason_pb2.REASON_REQUEST_ID_REUSED
    text = "The request_id was used before with another payload."


class RequestInProgress(Aborted):
    reason = reason_pb2.REASON_REQUEST_IN_PROGRESS
    text = "The first request with this request_id is still running."


class Write(Protocol):
    """A request message that carries a request id."""

    @property
    def request_id(self) -> str: ...
    def SerializeToString(self, *, deterministic: bool = ...) -> bytes: ...  # noqa: N802


def sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


# An expired row is taken over, as if it had been swept already.
_CLAIM = """
INSERT INTO requests (org_id, actor_id, method, request_id, request_digest, expires_at)
VALUES ($1, $2, $3, $4, $5, now() + make_interval(secs => $6))
ON CONFLICT (org_id, actor_id, method, request_id) DO UPDATE
SET request_digest = excluded.request_digest, response = NULL, created_at = now(),
    expires_at = excluded.expires_at
WHERE requests.expires_at <= now()
RETURNING true
"""
_FIRST_ANSWER = """
SELECT request_digest, response FROM requests
WHERE org_id = $1 AND actor_id = $2 AND method = $3 AND request_id = $4
"""
_REMEMBER = """
UPDATE requests SET response = $5
WHERE org_id = $1 AND actor_id = $2 AND method = $3 AND request_id = $4
"""


async def once(
    tx: Executor,
    request: Write,
    reply_type: type[Reply],
    produce: Callable[[], Awaitable[Reply]],
    *,
    remembered: Callable[[Reply], Reply] | None = None,
    digest: Digest = sha256,
) -> Reply:
    """The reply of `produce`, which runs once per request id and in the same transaction.

    A second call waits until the first has committed. `remembered` makes what repeats get, where
    that must be less than the first reply; `digest` is keyed where a request holds a secret.
    """
    if not request.request_id:
        return await produce()
    who = caller()
    key = (who.org_id, who.actor_id, reply_type.DESCRIPTOR.full_name, request.request_id)
    request_digest = digest(request.SerializeToString(deterministic=True))
    if not await _claim(tx, key, request_digest):
        first = await tx.fetchrow(_FIRST_ANSWER, *key)
        if first is None or first["response"] is None:
            raise RequestInProgress(retry_after_s=0.1)
        if first["request_digest"] != request_digest:
            raise RequestIdReused
        return reply_type.FromString(first["response"])
    reply = await produce()
    kept = remembered(reply) if remembered else reply
    await tx.execute(_REMEMBER, *key, kept.SerializeToString())
    return reply


async def _claim(tx: Executor, key: tuple[object, ...], request_digest: bytes) -> bool:
    try:
        return bool(await tx.fetchval(_CLAIM, *key, request_digest, REMEMBERED_S))
    except asyncpg.LockNotAvailableError:
        raise RequestInProgress(retry_after_s=0.5) from None


_SWEEP = """
DELETE FROM requests WHERE (org_id, actor_id, method, request_id) IN (
    SELECT org_id, actor_id, method, request_id FROM requests
    WHERE expires_at <= now() LIMIT $1
)
"""


async def sweep(db: Executor) -> int:
    """Forgets expired answers of all organisations; for the worker's role."""
    return int((await db.execute(_SWEEP, SWEEP_ROWS_MAX)).rpartition(" ")[2])
