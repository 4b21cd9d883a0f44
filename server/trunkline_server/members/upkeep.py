"""What the worker does for members: index what imports wrote, purge, forget what has aged."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from trunkline_server import orgs
from trunkline_server.db import Connection, Database, Executor
from trunkline_server.ids import uuid7
from trunkline_server.jobs import Done, Lease, Outcome, Schedule, Yield
from trunkline_server.link import Link
from trunkline_server.members import queries
from trunkline_server.members.queries import Change
from trunkline_server.members.validation import TOPIC_MEMBERS

INDEX_MEMBERS = "members.index"
PURGE_MEMBERS = "members.purge"
INDEX_EVERY = timedelta(seconds=2)
PURGE_EVERY = timedelta(hours=1)
CHANGES_AT_ONCE = 50
PURGED_AT_ONCE = 1_000
FORGOTTEN_AT_ONCE = 10_000
WORDS_AT_ONCE = 2_000
# A watch that has slept longer has to list the members again anyway.
TOMBSTONES_KEPT = timedelta(days=90)

SCHEDULES = (Schedule(INDEX_MEMBERS, INDEX_EVERY), Schedule(PURGE_MEMBERS, PURGE_EVERY))

# While an import runs, or has handed its turn on, the search waits for its end: both together
# would only take longer.
_TO_INDEX = """
SELECT b.org_id, b.seq FROM orgs_to_index() b
WHERE NOT EXISTS (
    SELECT FROM jobs j
    WHERE j.org_id = b.org_id AND j.kind = 'imports.run'
      AND (j.state = 'RUNNING' OR (j.state = 'QUEUED' AND j.run_after <= now()))
)
"""
_IS_IMPORTING = """
SELECT EXISTS (
    SELECT FROM jobs
    WHERE org_id = $1 AND kind = 'imports.run'
      AND (state = 'RUNNING' OR (state = 'QUEUED' AND run_after <= now()))
)
"""
_UNINDEXED = """
SELECT change_id, seq FROM member_changes
WHERE org_id = $1 AND seq > $2 ORDER BY seq LIMIT $3
"""
_INDEX = "SELECT index_members($1, $2)"
_UNINDEX = "SELECT unindex_members($1, $2)"
_INDEXED = """
INSERT INTO member_search_states (org_id, seq) VALUES ($1, $2)
ON CONFLICT (org_id) DO UPDATE SET seq = greatest(member_search_states.seq, excluded.seq)
"""


async def index(db: Database, lease: Lease) -> Outcome:
    """Brings the search up to the last change of each organisation."""
    async with db.system_tx() as tx:
        behind = await tx.fetch(_TO_INDEX)
    for row in behind:
        seq: int | None = row["seq"]
        while seq is not None:
            seq = await _index_some(db, row["org_id"], seq, lease)
            if lease.should_yield():
                return Yield()
    return Done()


async def _index_some(db: Database, org_id: UUID, after: int, lease: Lease) -> int | None:
    """A transaction for each change: an import's batch is ten thousand members."""
    async with db.tenant_tx(org_id) as tx:
        changes = await tx.fetch(_UNINDEXED, org_id, after, CHANGES_AT_ONCE)
    for change in changes:
        async with db.tenant_tx(org_id) as tx:
            await lease.fence(tx)
            if await tx.fetchval(_IS_IMPORTING, org_id):
                return None
            await tx.execute(_INDEX, org_id, change["change_id"])
            await tx.execute(_UNINDEX, org_id, change["change_id"])
            await tx.execute(_INDEXED, org_id, change["seq"])
    return changes[-1]["seq"] if changes else None


_TO_PURGE = "SELECT org_id FROM orgs_to_purge()"
_ORGS = "SELECT org_id FROM org_ids()"
_DUE = """
SELECT member_id, member_number FROM members
WHERE org_id = $1 AND purge_at <= now() ORDER BY purge_at LIMIT $2 FOR UPDATE SKIP LOCKED
"""
_BURY = """
INSERT INTO member_tombstones (org_id, change_id, member_id, member_number)
SELECT $1, $2, t.member_id, t.member_number
FROM unnest($3::uuid[], $4::text[]) AS t (member_id, member_number)
"""
_REMOVE = (
    "DELETE FROM members WHERE org_id = $1 AND member_id = ANY ($2::uuid[])",
    "DELETE FROM member_history WHERE org_id = $1 AND member_id = ANY ($2::uuid[])",
    "DELETE FROM member_search WHERE org_id = $1 AND member_id = ANY ($2::uuid[])",
)


async def purge(db: Database, link: Link, lease: Lease) -> Outcome:
    """Members whose time has come go with their history; then what retention does not keep."""
    async with db.system_tx() as tx:
        due = [row["org_id"] for row in await tx.fetch(_TO_PURGE)]
        everyone = [row["org_id"] for row in await tx.fetch(_ORGS)]
    for org_id in due:
        while await _purge_some(db, org_id, lease):
            pass
        await link.publish(TOPIC_MEMBERS, str(org_id))
        await _forget_words(db, org_id, lease)
    for org_id in everyone:
        await _forget(db, org_id, lease)
        if lease.should_yield():
            return Yield()
    return Done()


async def _purge_some(db: Database, org_id: UUID, lease: Lease) -> int:
    async with db.tenant_tx(org_id) as tx:
        await lease.fence(tx)
        due = await tx.fetch(_DUE, org_id, PURGED_AT_ONCE)
        if not due:
            return 0
        change = Change(uuid7(), "PURGED", "WORKER", None, "")
        member_ids = [row["member_id"] for row in due]
        numbers = [row["member_number"] for row in due]
        await tx.execute(_BURY, org_id, change.change_id, member_ids, numbers)
        for remove in _REMOVE:
            await tx.execute(remove, org_id, member_ids)
        await queries.record(tx, org_id, change)
    return len(due)


_FORGET_HISTORY = """
DELETE FROM member_history
WHERE (org_id, member_id, version, superseded_at) IN (
    SELECT org_id, member_id, version, superseded_at FROM member_history
    WHERE org_id = $1 AND superseded_at < now() - $2::interval LIMIT $3
)
"""
_FORGET_VALIDATIONS = """
DELETE FROM validation_log
WHERE (org_id, validation_id, at) IN (
    SELECT org_id, validation_id, at FROM validation_log
    WHERE org_id = $1 AND at < now() - $2::interval LIMIT $3
)
"""
_FORGET_TOMBSTONES = """
DELETE FROM member_tombstones
WHERE (org_id, change_id, member_id) IN (
    SELECT org_id, change_id, member_id FROM member_tombstones
    WHERE org_id = $1 AND purged_at < now() - $2::interval LIMIT $3
)
"""


async def _forget(db: Database, org_id: UUID, lease: Lease) -> None:
    async with db.tenant_tx(org_id) as tx:
        settings = await orgs.read(tx, org_id)
    if settings is None:
        return
    kept = settings.retention
    for statement, age in (
        (_FORGET_HISTORY, timedelta(days=kept.member_history_days)),
        (_FORGET_VALIDATIONS, timedelta(days=kept.audit_days)),
        (_FORGET_TOMBSTONES, TOMBSTONES_KEPT),
    ):
        while True:
            async with db.tenant_tx(org_id) as tx:
                await lease.fence(tx)
                if await _deleted(tx, statement, org_id, age) < FORGOTTEN_AT_ONCE:
                    break


async def _deleted(tx: Executor, statement: str, org_id: UUID, age: timedelta) -> int:
    status = await tx.execute(statement, org_id, age, FORGOTTEN_AT_ONCE)
    return int(status.rpartition(" ")[2])


_WORDS = "SELECT word, is_used FROM unused_member_words($1, $2, $3)"
_FORGET_WORDS = "DELETE FROM member_words WHERE org_id = $1 AND word = ANY ($2::text[])"


async def _forget_words(db: Database, org_id: UUID, lease: Lease) -> None:
    """Words that were only in the names of those who are gone."""
    after: str | None = ""
    while after is not None:
        async with db.tenant_tx(org_id) as tx:
            await lease.fence(tx)
            after = await _forget_some_words(tx, org_id, after)


async def _forget_some_words(tx: Connection, org_id: UUID, after: str) -> str | None:
    rows = await tx.fetch(_WORDS, org_id, after, WORDS_AT_ONCE)
    unused = [row["word"] for row in rows if not row["is_used"]]
    if unused:
        await tx.execute(_FORGET_WORDS, org_id, unused)
    return rows[-1]["word"] if rows else None
