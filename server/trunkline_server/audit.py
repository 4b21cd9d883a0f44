"""The audit log: appended with the change it tells of, sealed into a chain, verified.

Appending takes no lock, so writers of one organisation do not queue. The order is given when a
worker seals: from then on a changed, removed or slipped-in event breaks the chain.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from trunkline_server.audit_chain import CHAIN_START, AuditEntry, chain_hash
from trunkline_server.db import Database, Executor, Record
from trunkline_server.ids import uuid7
from trunkline_server.rpc.caller import CURRENT, Caller

SEAL_EVENTS_MAX = 1_000
VERIFY_EVENTS_AT_ONCE = 1_000
ORGS_AT_ONCE = 1_000
_REQUEST_ID_CHARS_MAX = 200
_PEER_CHARS_MAX = 64

# One statement, so that an event without its place in the queue cannot exist.
_APPEND = """
WITH entry AS (
    INSERT INTO audit_log (
        org_id, audit_id, actor_kind, actor_id, role, action, resource_type, resource_id,
        outcome, reason, request_id, peer, details
    ) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13::jsonb)
    RETURNING org_id, audit_id, at
)
INSERT INTO audit_unsealed (org_id, audit_id, at) SELECT org_id, audit_id, at FROM entry
"""


async def append(
    tx: Executor,
    org_id: UUID,
    action: str,
    *,
    resource_type: str = "",
    resource_id: UUID | str = "",
    outcome: str = "OK",
    reason: str = "",
    details: Mapping[str, str] | None = None,
    actor: Caller | None = None,
) -> None:
    """In the transaction of what happened. `details` holds no personal data and no secrets."""
    request = CURRENT.get(None)
    actor = actor or (request.caller if request else None)
    await tx.execute(
        _APPEND,
        org_id,
        uuid7(),
        actor.actor_kind.upper() if actor else "SERVICE",
        actor.actor_id if actor else None,
        actor.role.name if actor else None,
        action,
        resource_type,
        str(resource_id),
        outcome,
        reason,
        request.request_id[:_REQUEST_ID_CHARS_MAX] if request else "",
        request.peer[:_PEER_CHARS_MAX] if request else "",
        json.dumps(dict(details or {})),
    )


_UNSEALED_ORGS = "SELECT DISTINCT org_id FROM audit_unsealed LIMIT $1"


async def seal(db: Database) -> int:
    """Seals what is unsealed, in all organisations; returns how many events. Worker's role."""
    async with db.system_tx() as tx:
        orgs = [row["org_id"] for row in await tx.fetch(_UNSEALED_ORGS, ORGS_AT_ONCE)]
    sealed = 0
    for org_id in orgs:
        sealed += await seal_org(db, org_id)
    return sealed


# Two sealers must not both continue the same chain. NO KEY: inserts that refer to the row go on.
_LOCK = "SELECT org_id FROM orgs WHERE org_id = $1 FOR NO KEY UPDATE"
_HEAD = """
SELECT sequence, hash FROM audit_seals WHERE org_id = $1 ORDER BY sequence DESC LIMIT 1
"""
_ENTRY_COLUMNS = """
    l.actor_kind, l.actor_id, l.role, l.action, l.resource_type, l.resource_id, l.outcome,
    l.reason, l.request_id, l.peer, l.details, l.audit_id IS NOT NULL AS there
"""
_UNSEALED = f"""
SELECT q.org_id, q.audit_id, q.at, {_ENTRY_COLUMNS}
FROM audit_unsealed q
LEFT JOIN audit_log l ON l.org_id = q.org_id AND l.audit_id = q.audit_id AND l.at = q.at
WHERE q.org_id = $1
ORDER BY q.at, q.audit_id LIMIT $2
"""  # noqa: S608 - made of constants
_SEAL = """
INSERT INTO audit_seals (org_id, sequence, audit_id, at, hash)
SELECT $1, t.sequence, t.audit_id, t.at, t.hash
FROM unnest($2::bigint[], $3::uuid[], $4::timestamptz[], $5::bytea[])
    AS t (sequence, audit_id, at, hash)
"""
_SEALED = "DELETE FROM audit_unsealed WHERE org_id = $1 AND audit_id = ANY($2)"


async def seal_org(db: Database, org_id: UUID) -> int:
    """One organisation's next links, up to SEAL_EVENTS_MAX."""
    async with db.tenant_tx(org_id) as tx:
        await tx.execute(_LOCK, org_id)
        rows = await tx.fetch(_UNSEALED, org_id, SEAL_EVENTS_MAX)
        head = await tx.fetchrow(_HEAD, org_id)
        sequence, previous = (head["sequence"], head["hash"]) if head else (0, CHAIN_START)
        sequences, hashes = [], []
        for row in rows:
            sequence += 1
            previous = chain_hash(previous, sequence, _entry(row))
            sequences.append(sequence)
            hashes.append(previous)
        audit_ids = [row["audit_id"] for row in rows]
        await tx.execute(_SEAL, org_id, sequences, audit_ids, [row["at"] for row in rows], hashes)
        await tx.execute(_SEALED, org_id, audit_ids)
    return len(rows)


def _entry(row: Record) -> AuditEntry | None:
    if not row["there"]:
        return None
    return AuditEntry(
        org_id=row["org_id"],
        audit_id=row["audit_id"],
        at=row["at"],
        actor_kind=row["actor_kind"],
        actor_id=row["actor_id"],
        role=row["role"],
        action=row["action"],
        resource_type=row["resource_type"],
        resource_id=row["resource_id"],
        outcome=row["outcome"],
        reason=row["reason"],
        request_id=row["request_id"],
        peer=row["peer"],
        details=json.loads(row["details"]),
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    checked: int
    first_broken: int  # 0: none
    head_sequence: int
    head_hash: bytes
    unsealed: int


_LINK_BEFORE = "SELECT hash, at FROM audit_seals WHERE org_id = $1 AND sequence = $2"
_LINKS = f"""
SELECT s.sequence, s.hash, s.org_id, s.audit_id, s.at, {_ENTRY_COLUMNS}
FROM audit_seals s
LEFT JOIN audit_log l ON l.org_id = s.org_id AND l.audit_id = s.audit_id AND l.at = s.at
WHERE s.org_id = $1 AND s.sequence > $2 AND s.sequence <= $3
ORDER BY s.sequence LIMIT $4
"""  # noqa: S608 - made of constants
_COUNT_UNSEALED = "SELECT count(audit_id) FROM audit_unsealed WHERE org_id = $1"
# An event that went round the queue: somebody else wrote it, to sit between sealed ones.
_SLIPPED_IN = """
SELECT count(l.audit_id) FROM audit_log l
WHERE l.org_id = $1
  AND ($2::timestamptz IS NULL OR l.at > $2) AND ($3::timestamptz IS NULL OR l.at <= $3)
  AND NOT EXISTS (
      SELECT FROM audit_seals s WHERE s.org_id = $1 AND s.audit_id = l.audit_id AND s.at = l.at)
  AND NOT EXISTS (
      SELECT FROM audit_unsealed q WHERE q.org_id = $1 AND q.audit_id = l.audit_id)
"""


async def verify(
    db: Executor, org_id: UUID, *, first: int = 0, last: int = 0, expected_hash: bytes = b""
) -> Verdict:
    """Recomputes the links `first` to `last` (0: the ends); `expected_hash` is that of `last`."""
    head = await db.fetchrow(_HEAD, org_id)
    head_sequence, head_hash = (head["sequence"], head["hash"]) if head else (0, CHAIN_START)
    walk = _Walk(db, org_id, max(first, 1))
    broken = await walk.to(min(last or head_sequence, head_sequence))
    if not broken and last > head_sequence:
        broken = head_sequence + 1  # the end that was asked for is gone
    if not broken and expected_hash and walk.last_hash != expected_hash:
        broken = last
    if not broken and not last and await walk.slipped_in(walk.until, None):
        broken = head_sequence + 1
    unsealed = await db.fetchval(_COUNT_UNSEALED, org_id)
    return Verdict(walk.checked, broken, head_sequence, head_hash, unsealed)


class _Walk:
    """Along the chain, some links at a time."""

    def __init__(self, db: Executor, org_id: UUID, first: int) -> None:
        self._db = db
        self._org_id = org_id
        self._first = first
        self.checked = 0
        self.last_hash = CHAIN_START
        self.until: datetime | None = None

    async def to(self, last: int) -> int:
        """Walks up to `last`; returns the first broken sequence, or 0."""
        if not await self._start():
            return self._first - 1
        while (done := self._first - 1 + self.checked) < last:
            rows = await self._db.fetch(_LINKS, self._org_id, done, last, VERIFY_EVENTS_AT_ONCE)
            if not rows:
                return done + 1
            if broken := self._check(done, rows):
                return broken
            newest = max(row["at"] for row in rows)
            if self.until is None or newest > self.until:
                if await self.slipped_in(self.until, newest):
                    return done + 1
                self.until = newest
        return 0

    async def slipped_in(self, after: datetime | None, until: datetime | None) -> bool:
        return bool(await self._db.fetchval(_SLIPPED_IN, self._org_id, after, until))

    async def _start(self) -> bool:
        if self._first > 1:
            before = await self._db.fetchrow(_LINK_BEFORE, self._org_id, self._first - 1)
            if before is None:
                return False
            self.last_hash, self.until = before["hash"], before["at"]
        return True

    def _check(self, done: int, rows: list[Record]) -> int:
        for sequence, row in enumerate(rows, start=done + 1):
            entry = _entry(row)
            expected = chain_hash(self.last_hash, sequence, entry)
            if row["sequence"] != sequence or entry is None or row["hash"] != expected:
                return sequence
            self.last_hash = expected
            self.checked += 1
        return 0


_SWEEP_SESSIONS = """
DELETE FROM sessions WHERE (org_id, session_id) IN (
    SELECT org_id, session_id FROM sessions WHERE expires_at <= now() LIMIT $1
)
"""
_ENSURE_PARTITION = """
SELECT ensure_month_partition('audit_log', (now() + make_interval(months => $1))::date)
"""
SWEEP_SESSIONS_MAX = 10_000
PARTITION_MONTHS_AHEAD = 2


async def sweep_sessions(db: Executor) -> int:
    """Forgets log-ins that ended, with their refresh tokens; for the worker's role."""
    return int((await db.execute(_SWEEP_SESSIONS, SWEEP_SESSIONS_MAX)).rpartition(" ")[2])


async def ensure_partitions(db: Executor) -> None:
    """This month's partition and the next ones; for the worker's role."""
    for months in range(PARTITION_MONTHS_AHEAD + 1):
        await db.fetchval(_ENSURE_PARTITION, months)
