"""The audit log: appended with the change it tells of, sealed into a chain, verified.

Appending takes no lock, so writers of one organisation do not queue. The order is given when a
worker seals: from then on a changed, removed or slipped-in event breaks the chain.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from trunkline_server.db import Database, Executor, Record
from trunkline_server.identity.rules import CHAIN_START, AuditEntry, chain_hash
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


_LINK_BEFORE = "SELECT hash FROM audit_seals WHERE org_id = $1 AND sequence = $2"
_LINKS = f"""
SELECT s.sequence, s.hash, s.org_id, s.audit_id, s.at, {_ENTRY_COLUMNS}
FROM audit_seals s
LEFT JOIN audit_log l ON l.org_id = s.org_id AND l.audit_id = s.audit_id AND l.at = s.at
WHERE s.org_id = $1 AND s.sequence > $2 AND s.sequence <= $3
ORDER BY s.sequence LIMIT $4
"""  # noqa: S608 - made of constants
_COUNT_UNSEALED = "SELECT count(audit_id) FROM audit_unsealed WHERE org_id = $1"
# An event that went round the queue: someone else wrote it. The place it pretends to is told.
_SLIPPED_IN = """
SELECT coalesce(
    (SELECT min(s.sequence) FROM audit_seals s WHERE s.org_id = $1 AND s.at >= l.at), $2 + 1
)
FROM audit_log l
WHERE l.org_id = $1
  AND NOT EXISTS (
      SELECT FROM audit_seals s WHERE s.org_id = $1 AND s.audit_id = l.audit_id AND s.at = l.at)
  AND NOT EXISTS (
      SELECT FROM audit_unsealed q WHERE q.org_id = $1 AND q.audit_id = l.audit_id)
ORDER BY l.at LIMIT 1
"""


async def verify(
    db: Executor, org_id: UUID, *, first: int = 0, last: int = 0, expected_hash: bytes = b""
) -> Verdict:
    """Recomputes the links `first` to `last` (0: the ends); `expected_hash` is that of `last`.

    To be run in a repeatable-read transaction: what is sealed meanwhile would look slipped in.
    """
    head = await db.fetchrow(_HEAD, org_id)
    head_sequence, head_hash = (head["sequence"], head["hash"]) if head else (0, CHAIN_START)
    first, wanted_last = max(first, 1), last or head_sequence
    checked, broken, last_hash = await _walk(db, org_id, first, min(wanted_last, head_sequence))
    if not broken and wanted_last > head_sequence:
        broken = head_sequence + 1  # the end that was asked for is gone
    if not broken and expected_hash and last_hash != expected_hash:
        broken = wanted_last
    if not broken and first == 1:
        broken = await db.fetchval(_SLIPPED_IN, org_id, head_sequence) or 0
    unsealed = await db.fetchval(_COUNT_UNSEALED, org_id)
    return Verdict(checked, broken, head_sequence, head_hash, unsealed)


async def _walk(db: Executor, org_id: UUID, first: int, last: int) -> tuple[int, int, bytes]:
    """(events checked, first broken sequence or 0, hash of the last link)."""
    previous = CHAIN_START
    if first > 1:
        previous = await db.fetchval(_LINK_BEFORE, org_id, first - 1) or b""
        if not previous:
            return 0, first - 1, b""
    done = first - 1
    while done < last:
        rows = await db.fetch(_LINKS, org_id, done, last, VERIFY_EVENTS_AT_ONCE)
        if not rows:
            return done - first + 1, done + 1, previous
        for row in rows:
            entry = _entry(row)
            expected = chain_hash(previous, done + 1, entry)
            if row["sequence"] != done + 1 or entry is None or row["hash"] != expected:
                return done - first + 1, done + 1, previous
            previous, done = expected, done + 1
    return done - first + 1, 0, previous


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
