"""Undoing an import: members it made go, members it changed are what they were, others are kept.

A member is the import's to take back as long as its change is one of the import's: any later
write gave it another. Each transaction takes some such members out of that range, so a worker that
takes over just goes on, and nothing is taken back twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

from trunkline_server.db import Connection, Database, Executor
from trunkline_server.failpoints import failpoint
from trunkline_server.ids import uuid7
from trunkline_server.imports import change_ids
from trunkline_server.imports.merge import BY_KEY
from trunkline_server.imports.merge_sql import COLUMNS, IMAGE
from trunkline_server.imports.work import Work
from trunkline_server.jobs import Lease
from trunkline_server.members import queries as member_queries
from trunkline_server.members.queries import Change

UNDO_ROWS = 10_000
_BY_KEY = BY_KEY.format(local="LOCAL")
_KEPT_MESSAGE = "The member was changed after the import."
_FAILED_MESSAGE = "What the member was before is no longer kept."

_CHANGES = """
SELECT change_id FROM member_changes
WHERE org_id = $1 AND import_id = $2 AND change_id BETWEEN $3 AND $4 ORDER BY change_id
"""

# Version 1 was made by the import. Else the newest image of before it decides; none that reaches
# back to a beginning within the import means that history was dropped.
_TAKE_BACK = f"""
WITH touched AS MATERIALIZED (
    SELECT m.member_id, m.member_number, m.version, coalesce(m.row_no, 0) AS row_no
    FROM members m
    WHERE m.org_id = $1 AND m.change_id = $3
      AND NOT EXISTS (
          SELECT FROM import_undo u
          WHERE u.org_id = $1 AND u.import_id = $2 AND u.row_no = coalesce(m.row_no, 0)
            AND u.member_id = m.member_id
      )
    LIMIT $5
), images AS MATERIALIZED (
    SELECT DISTINCT ON (h.member_id) h.member_id AS image_of, h.version AS image_version,
           h.superseded_at AS image_at, h.change_id BETWEEN $6 AND $7 AS is_own
    FROM touched t JOIN member_history h ON h.org_id = $1 AND h.member_id = t.member_id
    WHERE t.version > 1 AND (h.change_id NOT BETWEEN $6 AND $7 OR h.version = 1)
    ORDER BY h.member_id, h.version DESC
), judged AS MATERIALIZED (
    SELECT t.*, i.image_version, i.image_at,
           CASE WHEN t.version = 1 OR i.is_own THEN 'DELETE'
                WHEN i.image_of IS NOT NULL THEN 'RESTORE' ELSE 'FAIL' END AS verdict
    FROM touched t LEFT JOIN images i ON i.image_of = t.member_id
), gone AS (
    DELETE FROM members m USING judged j
    WHERE m.org_id = $1 AND m.member_id = j.member_id AND m.version = j.version
      AND j.verdict = 'DELETE'
    RETURNING m.member_id, m.member_number
), buried AS (
    INSERT INTO member_tombstones (org_id, change_id, member_id, member_number)
    SELECT $1, $4, g.member_id, g.member_number FROM gone g
), unindexed AS (
    DELETE FROM member_search s USING gone g WHERE s.org_id = $1 AND s.member_id = g.member_id
), kept AS (
    INSERT INTO member_history (org_id, {IMAGE}, superseded_by)
    SELECT $1, {", ".join(f"m.{c}" for c in IMAGE.split(", "))}, $4
    FROM judged j JOIN members m ON m.org_id = $1 AND m.member_id = j.member_id
    WHERE j.verdict = 'RESTORE'
), restored AS (
    UPDATE members m
    SET {", ".join(f"{c} = h.{c}" for c in COLUMNS)}, deleted_at = h.deleted_at,
        purge_at = h.purge_at, change_id = $4, row_no = NULL, version = m.version + 1,
        updated_at = now()
    FROM judged j
    JOIN member_history h ON h.org_id = $1 AND h.member_id = j.member_id
        AND h.version = j.image_version AND h.superseded_at = j.image_at
    WHERE m.org_id = $1 AND m.member_id = j.member_id AND m.version = j.version
      AND j.verdict = 'RESTORE'
    RETURNING 1
), listed AS (
    INSERT INTO import_undo (org_id, import_id, row_no, member_id, member_number, outcome, message)
    SELECT $1, $2, j.row_no, j.member_id, j.member_number,
           CASE j.verdict WHEN 'FAIL' THEN 'FAILED' ELSE 'REVERSED' END,
           CASE j.verdict WHEN 'FAIL' THEN $8 ELSE '' END
    FROM judged j
)
SELECT count(*) FILTER (WHERE verdict <> 'FAIL') AS reversed,
       count(*) FILTER (WHERE verdict = 'FAIL') AS failed,
       (SELECT count(*) FROM gone) + (SELECT count(*) FROM restored) AS written
FROM judged
"""  # noqa: S608 - made of constants

# The usual case, and the quick one: nobody but the import has ever written the member.
_REMOVE = """
WITH gone AS (
    DELETE FROM members m
    WHERE m.org_id = $1 AND m.change_id = $3 AND m.version = 1
      AND ($5::bigint IS NULL OR m.member_id = ANY (ARRAY(
          SELECT k.member_id FROM members k
          WHERE k.org_id = $1 AND k.change_id = $3 AND k.version = 1
          ORDER BY k.member_id LIMIT $5
      )))
    RETURNING m.row_no, m.member_id, m.member_number
)
INSERT INTO import_undo_batches (
    org_id, import_id, change_id, members, first_row, last_row, row_nos, member_ids, member_numbers
)
SELECT $1, $2, $4, count(*), min(g.row_no), max(g.row_no), array_agg(g.row_no),
       array_agg(g.member_id), array_agg(g.member_number)
FROM gone g HAVING count(*) > 0
RETURNING members
"""

# Versions that the import wrote and that neither it nor its undoing replaced.
_LIST_KEPT = """
INSERT INTO import_undo (org_id, import_id, row_no, member_id, member_number, outcome, message)
SELECT $1, $2, h.row_no, h.member_id, h.member_number, 'KEPT_BECAUSE_EDITED', $6
FROM member_history h
WHERE h.org_id = $1 AND h.change_id = $3 AND h.row_no IS NOT NULL
  AND h.superseded_by NOT BETWEEN $4 AND $5
  AND NOT EXISTS (
      SELECT FROM import_undo u
      WHERE u.org_id = $1 AND u.import_id = $2 AND u.row_no = h.row_no
        AND u.member_id = h.member_id
  )
"""
_EDITED = """
SELECT DISTINCT h.change_id FROM member_history h
WHERE h.org_id = $1 AND h.change_id BETWEEN $2 AND $3 AND h.row_no IS NOT NULL
  AND h.superseded_by NOT BETWEEN $2 AND $3
"""
_COUNT = """
UPDATE imports SET undo_reversed = undo_reversed + $3, undo_kept = undo_kept + $4,
                   undo_failed = undo_failed + $5
WHERE org_id = $1 AND import_id = $2 AND state = 'UNDOING'
RETURNING import_id
"""


class UndoStopped(Exception):
    """The import is not being undone any more."""


class _MemberMoved(Exception):
    """A member was changed between being looked at and being taken back."""


@dataclass(frozen=True, slots=True)
class Undoing:
    work: Work
    actor_id: UUID | None
    actor_name: str
    has_others: bool  # it did more than create members, each once

    def change(self, change_id: UUID) -> Change:
        work = self.work
        return Change(
            change_id, "IMPORT_UNDONE", "USER", self.actor_id, self.actor_name, work.import_id,
            work.file_name,
        )  # fmt: skip


async def changes(db: Executor, work: Work) -> list[UUID]:
    rows = await db.fetch(
        _CHANGES, work.org_id, work.import_id, work.first_change, work.last_change
    )
    return [row["change_id"] for row in rows]


async def take_back(
    db: Database, lease: Lease, undoing: Undoing, change_id: UUID, news: asyncio.Event
) -> bool:
    """All that one change of the import left unedited. False: another turn has to go on."""
    if not await _until_none(db, lease, undoing, change_id, news, _removed):
        return False
    if not undoing.has_others:
        return True
    return await _until_none(db, lease, undoing, change_id, news, _some)


_Step = Callable[[Connection, Lease, Undoing, UUID], Awaitable[int]]


async def _until_none(
    db: Database,
    lease: Lease,
    undoing: Undoing,
    change_id: UUID,
    news: asyncio.Event,
    step: _Step,
) -> bool:
    while not lease.should_yield():
        try:
            async with db.tenant_tx(undoing.work.org_id) as tx:
                await tx.execute(_BY_KEY)
                await lease.fence(tx)
                done = await step(tx, lease, undoing, change_id)
                failpoint("undo.before_commit")
        except _MemberMoved:
            continue
        failpoint("undo.committed")
        news.set()
        if done < UNDO_ROWS or (step is _removed and not _is_large(undoing.work, change_id)):
            return True
    return False


def _is_large(work: Work, change_id: UUID) -> bool:
    """A batch is a bounded change; a published plan is not."""
    return change_id == change_ids.of_publish(work.import_id)


async def _removed(tx: Connection, lease: Lease, undoing: Undoing, change_id: UUID) -> int:
    work, own = undoing.work, uuid7()
    limit = UNDO_ROWS if _is_large(work, change_id) else None
    removed: int | None = await tx.fetchval(
        _REMOVE, work.org_id, work.import_id, change_id, own, limit
    )
    if removed:
        await _count(tx, work, removed, 0, 0)
        await member_queries.record(tx, work.org_id, undoing.change(own))
    return removed or 0


async def _some(tx: Connection, lease: Lease, undoing: Undoing, change_id: UUID) -> int:
    work, own = undoing.work, uuid7()
    row = await tx.fetchrow(
        _TAKE_BACK,
        *(work.org_id, work.import_id, change_id, own, UNDO_ROWS),
        *(work.first_change, work.last_change, _FAILED_MESSAGE),
    )
    assert row is not None
    if row["written"] != row["reversed"]:
        raise _MemberMoved
    if row["reversed"] or row["failed"]:
        await _count(tx, work, row["reversed"], 0, row["failed"])
    if row["reversed"]:
        await member_queries.record(tx, work.org_id, undoing.change(own))
    return int(row["reversed"] + row["failed"])


async def edited(db: Executor, work: Work) -> list[UUID]:
    """The import's changes that wrote what somebody, or the undoing, replaced."""
    rows = await db.fetch(_EDITED, work.org_id, work.first_change, work.last_change)
    return [row["change_id"] for row in rows]


async def list_kept(db: Database, lease: Lease, work: Work, change_id: UUID) -> None:
    async with db.tenant_tx(work.org_id) as tx:
        await tx.execute(_BY_KEY)
        await lease.fence(tx)
        tag = await tx.execute(
            _LIST_KEPT,
            *(work.org_id, work.import_id, change_id, work.first_change, work.last_change),
            _KEPT_MESSAGE,
        )
        kept = int(tag.rpartition(" ")[2])
        if kept:
            await _count(tx, work, 0, kept, 0)


async def _count(tx: Executor, work: Work, reversed_: int, kept: int, failed: int) -> None:
    found = await tx.fetchval(_COUNT, work.org_id, work.import_id, reversed_, kept, failed)
    if found is None:
        raise UndoStopped
