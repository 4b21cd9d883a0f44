"""Log-ins: a session, its access tokens, and refresh tokens that work once."""

import os
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from trunkline.api.identity.v1 import identity_service_pb2 as pb
from trunkline_server import audit
from trunkline_server.db import Executor, Record
from trunkline_server.identity import present, queries, rules
from trunkline_server.identity.errors import (
    OrgSuspended,
    RefreshTokenInvalid,
    RefreshTokenReused,
    UserSuspended,
)
from trunkline_server.identity.rules import Peppers
from trunkline_server.identity.tokens import AccessTokens
from trunkline_server.ids import uuid7

SESSION_LIFETIME = timedelta(days=30)
# A client that lost the answer may ask again. It gets the very same successor, so there is never
# more than one living token: if a thief asked, the next use by either of the two gives him away.
REUSE_GRACE = timedelta(seconds=10)
PURPOSE_REFRESH = "refresh-token"
_PURPOSE_SUCCESSOR = "refresh-successor"
_SECRET_BYTES = 36


@dataclass(frozen=True, slots=True)
class Reused:
    """The session was ended, which must be committed before the caller is told."""

    session_id: UUID


class Sessions:
    """Opens and continues log-ins, always in the caller's transaction."""

    def __init__(self, *, tokens: AccessTokens, peppers: Peppers) -> None:
        self._tokens = tokens
        self._peppers = peppers

    async def open(self, tx: Executor, org_id: UUID, user_id: UUID) -> tuple[UUID, pb.TokenPair]:
        session_id, token_id = uuid7(), uuid7()
        refresh = rules.refresh_token(token_id, os.urandom(_SECRET_BYTES))
        expires_at = await queries.create_session(tx, org_id, session_id, user_id, SESSION_LIFETIME)
        digest = self._peppers.digest(PURPOSE_REFRESH, refresh.encode())
        await queries.create_refresh_token(tx, org_id, token_id, session_id, digest)
        return session_id, self._pair(org_id, user_id, session_id, refresh, expires_at)

    async def refresh(
        self, tx: Executor, org_id: UUID, token_id: UUID, token: str
    ) -> pb.TokenPair | Reused:
        row = await queries.lock_refresh_token(tx, org_id, token_id, REUSE_GRACE)
        if row is None or not self._peppers.match(PURPOSE_REFRESH, token.encode(), row["digest"]):
            raise RefreshTokenInvalid
        if not row["live"]:
            raise RefreshTokenInvalid
        if row["org_status"] != "ACTIVE":
            raise OrgSuspended
        if row["user_status"] != "ACTIVE":
            raise UserSuspended
        if not row["used"]:
            return await self._rotate(tx, org_id, token_id, token, row)
        again = await self._same_successor(tx, org_id, token, row)
        if again is None:
            await queries.end_session(tx, org_id, row["session_id"], "REUSE")
            return Reused(row["session_id"])
        return self._pair(org_id, row["user_id"], row["session_id"], again, row["expires_at"])

    async def _rotate(
        self, tx: Executor, org_id: UUID, token_id: UUID, token: str, row: Record
    ) -> pb.TokenPair:
        successor_id = uuid7()
        successor = _successors(self._peppers, token, successor_id)[0]
        digest = self._peppers.digest(PURPOSE_REFRESH, successor.encode())
        await queries.create_refresh_token(tx, org_id, successor_id, row["session_id"], digest)
        await queries.use_refresh_token(tx, org_id, token_id, successor_id)
        return self._pair(org_id, row["user_id"], row["session_id"], successor, row["expires_at"])

    async def _same_successor(
        self, tx: Executor, org_id: UUID, token: str, row: Record
    ) -> str | None:
        """The token that the lost answer held, or None where this is a reuse."""
        if not row["used_lately"]:
            return None
        made = await queries.successor(tx, org_id, row["successor_id"])
        if made is None or made["used"]:
            return None
        for candidate in _successors(self._peppers, token, row["successor_id"]):
            if self._peppers.match(PURPOSE_REFRESH, candidate.encode(), made["digest"]):
                return candidate
        return None

    def _pair(
        self,
        org_id: UUID,
        user_id: UUID,
        session_id: UUID,
        refresh: str,
        refresh_expires_at: datetime,
    ) -> pb.TokenPair:
        issued = self._tokens.issue(org_id, user_id, session_id)
        return pb.TokenPair(
            access_token=issued.token,
            access_expire_time=present.seconds(issued.expires_at),
            refresh_token=refresh,
            refresh_expire_time=present.timestamp(refresh_expires_at),
        )


def _successors(peppers: Peppers, token: str, successor_id: UUID) -> list[str]:
    """Derived, not drawn: a lost answer can be given again although only digests are stored."""
    content = token.encode() + successor_id.bytes
    first = peppers.candidates(_PURPOSE_SUCCESSOR, content)
    second = peppers.candidates(_PURPOSE_SUCCESSOR + "-2", content)
    return [
        rules.refresh_token(successor_id, a + b[:4]) for a, b in zip(first, second, strict=True)
    ]


async def audit_reuse(tx: Executor, org_id: UUID, session_id: UUID) -> None:
    await audit.append(
        tx,
        org_id,
        "identity.Refresh",
        resource_type="session",
        resource_id=session_id,
        outcome="REFUSED",
        reason=RefreshTokenReused().reason_name,
    )
