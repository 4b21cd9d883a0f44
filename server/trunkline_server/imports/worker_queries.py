"""The SQL of imports on the worker's side, but for the statements made from a file's columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from trunkline_server.db import Executor, Record
from trunkline_server.imports.csv import Batch, Reject
from trunkline_server.imports.rules import Cursor

_COLUMNS = """
org_id, import_id, state, spec, validate_only, layout, actor_kind, actor_id, actor_name, file_name,
batch_rows, persisted_bytes, plan_etag, committed_at, applied_at, rows_read, rejected, created,
updated, unchanged, superseded, terminated, plan, undo_actor_id, undo_actor_name, undo_failed
"""
_BEGIN = f"""
UPDATE imports SET state = 'RUNNING', attempts = attempts + 1,
                   started_at = coalesce(started_at, now()),
                   batch_rows = coalesce(batch_rows, $3)
WHERE org_id = $1 AND import_id = $2 AND state IN ('QUEUED', 'RUNNING')
RETURNING {_COLUMNS}
"""  # noqa: S608


async def begin(db: Executor, org_id: UUID, import_id: UUID, batch_rows: int) -> Record | None:
    """None: it was cancelled or has ended."""
    return await db.fetchrow(_BEGIN, org_id, import_id, batch_rows)


# Begun, and with a worker: one that was killed leaves its import RUNNING, but not its job.
_RUNNING = """
SELECT count(*) FROM imports i JOIN jobs j ON j.org_id = i.org_id AND j.job_id = i.job_id
WHERE i.org_id = $1 AND i.import_id <> $2 AND i.state = 'RUNNING' AND j.state = 'RUNNING'
"""


async def running(db: Executor, org_id: UUID, but: UUID) -> int:
    return int(await db.fetchval(_RUNNING, org_id, but))


_LOCK = f"""
SELECT {_COLUMNS} FROM imports WHERE org_id = $1 AND import_id = $2 FOR NO KEY UPDATE
"""  # noqa: S608


async def lock(db: Executor, org_id: UUID, import_id: UUID) -> Record | None:
    return await db.fetchrow(_LOCK, org_id, import_id)


# ---- The file ----

_CHUNKS = """
SELECT byte_offset, data FROM import_chunks
WHERE org_id = $1 AND import_id = $2 AND byte_offset >= coalesce((
    SELECT max(f.byte_offset) FROM import_chunks f
    WHERE f.org_id = $1 AND f.import_id = $2 AND f.byte_offset <= $3
), 0)
ORDER BY byte_offset LIMIT $4
"""


async def chunks(
    db: Executor, org_id: UUID, import_id: UUID, start: int, count: int
) -> list[bytes]:
    """The bytes from start on, as they lie."""
    rows = await db.fetch(_CHUNKS, org_id, import_id, start, count)
    parts = [bytes(row["data"]) for row in rows]
    if rows and rows[0]["byte_offset"] < start:
        parts[0] = parts[0][start - rows[0]["byte_offset"] :]
    return [part for part in parts if part]


# ---- Batches ----

_BATCHES = """
SELECT batch_no, start_byte, start_row, start_line, end_byte, end_row, end_line
FROM import_batches WHERE org_id = $1 AND import_id = $2 ORDER BY batch_no
"""


@dataclass(frozen=True, slots=True)
class Finished:
    """A batch that is done: where it lies in the file."""

    batch_no: int
    start: Cursor
    end: Cursor


async def finished(db: Executor, org_id: UUID, import_id: UUID) -> list[Finished]:
    return [
        Finished(
            row["batch_no"],
            Cursor(row["start_byte"], row["start_row"], row["start_line"]),
            Cursor(row["end_byte"], row["end_row"], row["end_line"]),
        )
        for row in await db.fetch(_BATCHES, org_id, import_id)
    ]


@dataclass(slots=True)
class Counts:
    """What became of a batch's rows."""

    created: int = 0
    updated: int = 0
    unchanged: int = 0
    rejected: int = 0
    superseded: int = 0

    def of_row(self) -> tuple[int, int, int, int, int]:
        return (self.created, self.updated, self.unchanged, self.rejected, self.superseded)


# The primary key is what makes a batch happen once; a state that is no longer RUNNING stops it.
_FINISH_BATCH = """
WITH done AS (
    INSERT INTO import_batches (
        org_id, import_id, batch_no, lane, start_byte, start_row, start_line, end_byte, end_row,
        end_line, change_id, created, updated, unchanged, rejected, superseded
    )
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
)
UPDATE imports SET
    bytes_processed = bytes_processed + $8 - CASE WHEN $3 = 0 THEN 0 ELSE $5 END,
    rows_read = rows_read + $9 - $6, created = created + $12, updated = updated + $13,
    unchanged = unchanged + $14, rejected = rejected + $15, superseded = superseded + $16
WHERE org_id = $1 AND import_id = $2 AND state = 'RUNNING'
RETURNING rejected
"""


# A plan may have to be made again, and counters only grow; what it would do is counted at its end.
_FINISH_PLANNED = """
WITH done AS (
    INSERT INTO import_batches (
        org_id, import_id, batch_no, lane, start_byte, start_row, start_line, end_byte, end_row,
        end_line, change_id, created, updated, unchanged, rejected, superseded
    )
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
), before AS (
    SELECT coalesce(sum(rejected), 0)::bigint AS rejected,
           coalesce(sum(superseded), 0)::bigint AS superseded
    FROM import_batches WHERE org_id = $1 AND import_id = $2
)
UPDATE imports i SET
    bytes_processed = greatest(i.bytes_processed, $8), rows_read = greatest(i.rows_read, $9),
    rejected = greatest(i.rejected, b.rejected + $15),
    superseded = greatest(i.superseded, b.superseded + $16)
FROM before b
WHERE i.org_id = $1 AND i.import_id = $2 AND i.state = 'RUNNING'
RETURNING i.rejected
"""


async def finish_batch(
    db: Executor,
    org_id: UUID,
    import_id: UUID,
    *,
    batch_no: int,
    lane: int,
    batch: Batch,
    change_id: UUID | None,
    counts: Counts,
    planned: bool,
) -> int | None:
    """The import's rejects so far; None when it does not run any more."""
    rejected: int | None = await db.fetchval(
        _FINISH_PLANNED if planned else _FINISH_BATCH,
        *(org_id, import_id, batch_no, lane),
        *(batch.start.byte_offset, batch.start.row_no, batch.start.line_no),
        *(batch.end.byte_offset, batch.end.row_no, batch.end.line_no),
        change_id,
        *counts.of_row(),
    )
    return rejected


# ---- Rejects ----

_ADD_REJECTS = """
INSERT INTO import_rejects (
    org_id, import_id, row_no, line_no, byte_offset, column_name, code, message, raw
)
SELECT $1, $2, r.row_no, r.line_no, r.byte_offset, r.column_name, r.code, r.message, r.raw
FROM unnest($3::bigint[], $4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::text[],
            $9::bytea[])
    AS r (row_no, line_no, byte_offset, column_name, code, message, raw)
"""


async def add_rejects(
    db: Executor, org_id: UUID, import_id: UUID, rejects: Sequence[Reject]
) -> None:
    columns = [list(column) for column in zip(*rejects, strict=True)]
    await db.execute(_ADD_REJECTS, org_id, import_id, *columns)


_ADD_UNLOCATED = """
INSERT INTO import_unlocated (org_id, import_id, row_no) SELECT $1, $2, unnest($3::bigint[])
"""


async def add_unlocated(
    db: Executor, org_id: UUID, import_id: UUID, row_nos: Sequence[int]
) -> None:
    await db.execute(_ADD_UNLOCATED, org_id, import_id, row_nos)


_UNLOCATED = """
SELECT row_no FROM import_unlocated
WHERE org_id = $1 AND import_id = $2 AND row_no > $3 AND row_no <= $4 ORDER BY row_no
"""


async def unlocated(
    db: Executor, org_id: UUID, import_id: UUID, after: int, until: int
) -> list[int]:
    rows = await db.fetch(_UNLOCATED, org_id, import_id, after, until)
    return [row["row_no"] for row in rows]


_FIRST_UNLOCATED = """
SELECT min(row_no) FROM import_unlocated WHERE org_id = $1 AND import_id = $2
"""


async def first_unlocated(db: Executor, org_id: UUID, import_id: UUID) -> int | None:
    row_no: int | None = await db.fetchval(_FIRST_UNLOCATED, org_id, import_id)
    return row_no


_FORGET_UNLOCATED = """
DELETE FROM import_unlocated WHERE org_id = $1 AND import_id = $2 AND row_no = ANY ($3)
"""


async def forget_unlocated(
    db: Executor, org_id: UUID, import_id: UUID, row_nos: Sequence[int]
) -> None:
    await db.execute(_FORGET_UNLOCATED, org_id, import_id, row_nos)


# Numbers of rows that were refused: a SYNC must not take their members for absent.
_ADD_NAMED = """
INSERT INTO import_seen (org_id, import_id, member_number, row_no, is_changed)
SELECT $1, $2, n.member_number, 0, false FROM unnest($3::text[]) AS n (member_number)
ON CONFLICT DO NOTHING
"""


async def add_named(db: Executor, org_id: UUID, import_id: UUID, numbers: Sequence[str]) -> None:
    await db.execute(_ADD_NAMED, org_id, import_id, numbers)


# Batches that were noted as a whole, row by row where this span of numbers reaches into them.
_SPELL_OUT = """
WITH hit AS (
    DELETE FROM import_seen_batches
    WHERE org_id = $1 AND import_id = $2 AND low <= $4 AND high >= $3
    RETURNING member_numbers, row_nos
)
INSERT INTO import_seen (org_id, import_id, member_number, row_no, is_changed)
SELECT $1, $2, u.member_number, u.row_no, false
FROM hit h, unnest(h.member_numbers, h.row_nos) AS u (member_number, row_no)
ORDER BY u.member_number
"""


async def spell_out(db: Executor, org_id: UUID, import_id: UUID, low: str, high: str) -> bool:
    """True: there were such."""
    return str(await db.execute(_SPELL_OUT, org_id, import_id, low, high)) != "INSERT 0 0"


# ---- The organisation's members ----

# Whether anybody but this import wrote any: two looks into an index.
_IS_EMPTY = """
SELECT NOT EXISTS (SELECT FROM members WHERE org_id = $1 AND change_id < $2)
   AND NOT EXISTS (SELECT FROM members WHERE org_id = $1 AND change_id > $3)
"""


async def is_empty(db: Executor, org_id: UUID, first_change: UUID, last_change: UUID) -> bool:
    return bool(await db.fetchval(_IS_EMPTY, org_id, first_change, last_change))


_COUNT = """
SELECT count(*) FROM (
    SELECT FROM members WHERE org_id = $1 AND deleted_at IS NULL LIMIT $2
) m
"""


async def count_members(db: Executor, org_id: UUID, limit: int) -> int:
    return int(await db.fetchval(_COUNT, org_id, limit))


# Somebody's job that would have begun long ago if any worker were free.
_OTHERS_WAIT = """
SELECT EXISTS (
    SELECT FROM jobs WHERE state = 'QUEUED' AND org_id <> $1
      AND run_after < clock_timestamp() - $2::interval
)
"""


async def others_wait(db: Executor, org_id: UUID, patience: timedelta) -> bool:
    return bool(await db.fetchval(_OTHERS_WAIT, org_id, patience))


# ---- How it ends ----

_HAND_ON = """
UPDATE imports SET state = 'QUEUED' WHERE org_id = $1 AND import_id = $2 AND state = 'RUNNING'
"""


async def hand_on(db: Executor, org_id: UUID, import_id: UUID) -> None:
    """Back to the queue: the next worker begins it again."""
    await db.execute(_HAND_ON, org_id, import_id)


# The job's last attempt is the import's.
_IS_LAST = "SELECT attempts >= max_attempts FROM jobs WHERE org_id = $1 AND job_id = $2"


async def is_last_attempt(db: Executor, org_id: UUID, job_id: UUID) -> bool:
    return bool(await db.fetchval(_IS_LAST, org_id, job_id))


_BEGIN_AGAIN = tuple(
    f"DELETE FROM {table} WHERE org_id = $1 AND import_id = $2"  # noqa: S608 - constants
    for table in (
        "import_plan", "import_batches", "import_rejects", "import_unlocated", "import_seen",
        "import_seen_batches",
    )
)  # fmt: skip


async def begin_again(db: Executor, org_id: UUID, import_id: UUID) -> None:
    """Forget a plan that nobody has seen."""
    for statement in _BEGIN_AGAIN:
        await db.execute(statement, org_id, import_id)


_END = """
UPDATE imports SET state = $3, problem = $4, ended_at = now(), expires_at = now() + $5::interval
WHERE org_id = $1 AND import_id = $2 AND state IN ('QUEUED', 'RUNNING', 'UNDOING')
RETURNING import_id
"""
_UNDONE = """
UPDATE imports SET state = 'UNDONE', undo_ended_at = now(), expires_at = now() + $3::interval
WHERE org_id = $1 AND import_id = $2 AND state = 'UNDOING'
"""
_AWAIT = """
UPDATE imports SET state = 'AWAITING_COMMIT', problem = $3
WHERE org_id = $1 AND import_id = $2 AND state = 'RUNNING'
"""


async def undone(db: Executor, org_id: UUID, import_id: UUID, keep: timedelta) -> None:
    await db.execute(_UNDONE, org_id, import_id, keep)


async def await_commit(db: Executor, org_id: UUID, import_id: UUID, problem: str) -> None:
    await db.execute(_AWAIT, org_id, import_id, problem)


async def end(
    db: Executor, org_id: UUID, import_id: UUID, state: str, problem: str | None, keep: timedelta
) -> bool:
    found = await db.fetchval(_END, org_id, import_id, state, problem, keep)
    return found is not None
