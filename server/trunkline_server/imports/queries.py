"""The SQL of imports on the serving side; the worker's is in worker_queries.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from trunkline_server.db import Executor, Record
from trunkline_server.imports.errors import ImportNotFound
from trunkline_server.imports.flow import Backlog
from trunkline_server.imports.protocol import Batch

JOB_RUN = "imports.run"
JOB_COMMIT = "imports.commit"
JOB_UNDO = "imports.undo"

START_PERIOD = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class NewImport:
    import_id: UUID
    spec_json: str
    validate_only: bool
    parent_import_id: UUID | None
    file_name: str
    actor_kind: str
    actor_id: UUID
    actor_name: str
    expire_after: timedelta


_CREATE = """
INSERT INTO imports (
    org_id, import_id, spec, validate_only, parent_import_id, file_name, actor_kind, actor_id,
    actor_name, expires_at
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now() + $10::interval)
"""


async def create(db: Executor, org_id: UUID, new: NewImport) -> None:
    await db.execute(
        _CREATE,
        *(org_id, new.import_id, new.spec_json, new.validate_only, new.parent_import_id),
        *(new.file_name, new.actor_kind, new.actor_id, new.actor_name, new.expire_after),
    )


# The place in the queue is counted for those that wait, corrections for those that have any: both
# through partial indexes.
_COLUMNS = """
    i.import_id, i.state, i.spec, i.validate_only, i.parent_import_id, i.actor_id, i.actor_name,
    i.layout, i.persisted_bytes, i.bytes_processed, i.rows_read, i.created, i.updated,
    i.unchanged, i.rejected, i.superseded, i.terminated, i.problem, i.plan, i.attempts, i.version,
    i.created_at, i.upload_ended_at, i.started_at, i.ended_at, i.expires_at, i.start_not_before,
    i.undo_requested_at, i.undo_ended_at, i.undo_actor_id, i.undo_reversed, i.undo_kept,
    i.undo_failed, j.run_after, now() AS read_at,
    CASE WHEN i.state = 'QUEUED' THEN (
        SELECT count(*) FROM imports w WHERE w.org_id = i.org_id AND w.state = 'QUEUED'
          AND (w.start_not_before, w.import_id) <= (i.start_not_before, i.import_id)
    ) END AS position,
    CASE WHEN i.state = 'QUEUED' THEN (
        SELECT count(*) FROM imports r WHERE r.org_id = i.org_id AND r.state = 'RUNNING'
    ) END AS running,
    c.child_ids, c.child_created, c.child_updated, c.child_accepted
FROM imports i
LEFT JOIN jobs j ON j.org_id = i.org_id AND j.job_id = i.job_id
LEFT JOIN LATERAL (
    SELECT (array_agg(k.import_id ORDER BY k.import_id))[:100] AS child_ids,
           sum(k.created)::bigint AS child_created, sum(k.updated)::bigint AS child_updated,
           sum(k.created + k.updated + k.unchanged)::bigint AS child_accepted
    FROM imports k
    WHERE k.org_id = i.org_id AND k.parent_import_id = i.import_id AND NOT k.validate_only
      AND k.state <> 'UNDONE'
) c ON true
"""
_GET = f"SELECT {_COLUMNS} WHERE i.org_id = $1 AND i.import_id = $2"


async def get(db: Executor, org_id: UUID, import_id: UUID) -> Record:
    row = await db.fetchrow(_GET, org_id, import_id)
    if row is None:
        raise ImportNotFound
    return row


_LIST = f"""
SELECT {_COLUMNS}
WHERE i.org_id = $1
  AND ($2::text[] IS NULL OR i.state = ANY ($2))
  AND ($3::timestamptz IS NULL OR i.created_at >= $3)
  AND ($4::timestamptz IS NULL OR i.created_at < $4)
  AND ($5::uuid IS NULL OR i.actor_id = $5)
  AND ($6::uuid IS NULL OR i.parent_import_id = $6)
  AND ($7::timestamptz IS NULL OR (i.created_at, i.import_id) < ($7, $8::uuid))
ORDER BY i.created_at DESC, i.import_id DESC LIMIT $9
"""


async def page(
    db: Executor,
    org_id: UUID,
    *,
    states: Sequence[str] | None,
    times: tuple[datetime | None, datetime | None],
    actor_id: UUID | None,
    parent_import_id: UUID | None,
    after: tuple[datetime | None, UUID | None],
    limit: int,
) -> list[Record]:
    return await db.fetch(_LIST, org_id, states, *times, actor_id, parent_import_id, *after, limit)


_VERSION = "SELECT version FROM imports WHERE org_id = $1 AND import_id = $2"


async def version(db: Executor, org_id: UUID, import_id: UUID) -> int | None:
    found: int | None = await db.fetchval(_VERSION, org_id, import_id)
    return found


# ---- The upload ----

_UPLOAD_COLUMNS = """
import_id, state, spec, validate_only, upload_epoch, persisted_bytes, crc32, total_bytes, layout,
problem, expires_at, state IN ('CREATED', 'UPLOADING') AND expires_at <= now() AS is_expired
"""
_UPLOAD = f"SELECT {_UPLOAD_COLUMNS} FROM imports WHERE org_id = $1 AND import_id = $2"  # noqa: S608


async def upload(db: Executor, org_id: UUID, import_id: UUID) -> Record:
    row = await db.fetchrow(_UPLOAD, org_id, import_id)
    if row is None:
        raise ImportNotFound
    return row


# From here on whatever an older stream sends is refused. An ended upload has no writers to fence.
_OPEN = f"""
UPDATE imports SET upload_epoch = upload_epoch + 1
WHERE org_id = $1 AND import_id = $2 AND state IN ('CREATED', 'UPLOADING') AND expires_at > now()
RETURNING {_UPLOAD_COLUMNS}
"""  # noqa: S608


async def open_upload(db: Executor, org_id: UUID, import_id: UUID) -> Record:
    row = await db.fetchrow(_OPEN, org_id, import_id)
    return row or await upload(db, org_id, import_id)


# The piece that holds the byte before the offset, cut there.
_PREFIX = """
SELECT prefix_crc32, substring(data FROM 1 FOR ($3 - byte_offset)::integer) AS head
FROM import_chunks WHERE org_id = $1 AND import_id = $2 AND byte_offset < $3
ORDER BY byte_offset DESC LIMIT 1
"""


async def prefix(db: Executor, org_id: UUID, import_id: UUID, offset: int) -> Record | None:
    """The last piece before the offset; its prefix_crc32 continued over head is the prefix's."""
    return await db.fetchrow(_PREFIX, org_id, import_id, offset)


_STORED = """
SELECT byte_offset, substring(
    data FROM greatest($3 - byte_offset, 0)::integer + 1
         FOR (least(byte_offset + length(data), $4) - greatest(byte_offset, $3))::integer
) AS part
FROM import_chunks
WHERE org_id = $1 AND import_id = $2 AND byte_offset < $4 AND byte_offset >= coalesce((
    SELECT max(f.byte_offset) FROM import_chunks f
    WHERE f.org_id = $1 AND f.import_id = $2 AND f.byte_offset <= $3
), 0)
ORDER BY byte_offset
"""


async def stored(db: Executor, org_id: UUID, import_id: UUID, start: int, end: int) -> bytes:
    """The stored bytes from start up to end."""
    rows = await db.fetch(_STORED, org_id, import_id, start, end)
    return b"".join(row["part"] for row in rows)


# The fence and the bytes in one statement. Pieces go where the upload ends, or nowhere.
_STORE = """
WITH mine AS (
    UPDATE imports
    SET state = 'UPLOADING', persisted_bytes = $5, crc32 = $6,
        layout = coalesce(layout, $7::jsonb)
    WHERE org_id = $1 AND import_id = $2 AND upload_epoch = $3 AND persisted_bytes = $4
      AND state IN ('CREATED', 'UPLOADING') AND expires_at > now()
    RETURNING org_id, import_id
), pieces AS (
    INSERT INTO import_chunks (org_id, import_id, byte_offset, prefix_crc32, data)
    SELECT m.org_id, m.import_id, p.byte_offset, p.prefix_crc32, p.data
    FROM mine m, unnest($8::bigint[], $9::bigint[], $10::bytea[])
        AS p (byte_offset, prefix_crc32, data)
)
SELECT count(*) FROM mine
"""


async def store(
    db: Executor,
    org_id: UUID,
    import_id: UUID,
    epoch: int,
    batch: Batch,
    layout_json: str | None,
) -> bool:
    """False: this stream may not write any more."""
    return bool(
        await db.fetchval(
            _STORE,
            *(org_id, import_id, epoch, batch.pieces[0].offset, batch.persisted, batch.crc32),
            layout_json,
            [piece.offset for piece in batch.pieces],
            [piece.prefix_crc32 for piece in batch.pieces],
            [piece.data for piece in batch.pieces],
        )
    )


_REFUSE = """
UPDATE imports SET state = 'FAILED', problem = $4, ended_at = now(),
                   expires_at = now() + $5::interval
WHERE org_id = $1 AND import_id = $2 AND upload_epoch = $3
  AND state IN ('CREATED', 'UPLOADING')
RETURNING import_id
"""


async def refuse(
    db: Executor, org_id: UUID, import_id: UUID, epoch: int, problem_json: str, keep: timedelta
) -> bool:
    """The file itself is at fault: the import ends here."""
    row = await db.fetchval(_REFUSE, org_id, import_id, epoch, problem_json, keep)
    return row is not None


# ---- The queue ----

# Whoever queues an import of the organisation waits for his turn: the start quota, the waiting list
# and "the same file" are decided one after the other.
_TURN = "SELECT pg_advisory_xact_lock(4004, hashtext($1::uuid::text))"


async def turn(db: Executor, org_id: UUID) -> None:
    await db.execute(_TURN, org_id)


_SAME_FILE = """
SELECT import_id FROM imports
WHERE org_id = $1 AND sha256 = $2 AND total_bytes = $3 AND import_id <> $4 AND NOT validate_only
  AND state IN ('QUEUED', 'RUNNING', 'AWAITING_COMMIT', 'SUCCEEDED')
ORDER BY created_at, import_id LIMIT 1
"""


async def same_file(
    db: Executor, org_id: UUID, sha256: bytes, total_bytes: int, but: UUID
) -> UUID | None:
    found: UUID | None = await db.fetchval(_SAME_FILE, org_id, sha256, total_bytes, but)
    return found


@dataclass(frozen=True, slots=True)
class Waiting:
    """The organisation's waiting list, and when its next import may start."""

    count: int
    first_start_in_s: float
    earliest_start: datetime


_WAITING = """
SELECT count(*) FILTER (WHERE i.state = 'QUEUED') AS count,
       coalesce(extract(epoch FROM
           min(i.start_not_before) FILTER (WHERE i.state = 'QUEUED') - now()
       ), 0)::float8 AS first_start_in_s,
       greatest(now(), coalesce((
           SELECT s.start_not_before + $3::interval FROM imports s
           WHERE s.org_id = $1 AND s.start_not_before IS NOT NULL
           ORDER BY s.start_not_before DESC OFFSET $2 LIMIT 1
       ), now())) AS earliest_start
FROM imports i WHERE i.org_id = $1 AND i.state = 'QUEUED'
"""


async def waiting(db: Executor, org_id: UUID, starts_per_minute: int) -> Waiting:
    """A start is planned one period after the one that many places before it."""
    row = await db.fetchrow(_WAITING, org_id, starts_per_minute - 1, START_PERIOD)
    assert row is not None
    return Waiting(row["count"], row["first_start_in_s"], row["earliest_start"])


_LOCK = f"""
SELECT {_UPLOAD_COLUMNS}, now() AS read_at, plan, plan_etag, applied_at, committed_at,
       started_at, ended_at, job_id, undo_requested_at, undo_ended_at, content_dropped_at
FROM imports WHERE org_id = $1 AND import_id = $2 FOR NO KEY UPDATE
"""  # noqa: S608


async def lock(db: Executor, org_id: UUID, import_id: UUID) -> Record:
    row = await db.fetchrow(_LOCK, org_id, import_id)
    if row is None:
        raise ImportNotFound
    return row


# The header can turn out whole at Finish, when there is nothing left to store.
_KEEP_LAYOUT = """
UPDATE imports SET layout = $3 WHERE org_id = $1 AND import_id = $2 AND layout IS NULL
"""


async def keep_layout(db: Executor, org_id: UUID, import_id: UUID, layout_json: str | None) -> None:
    await db.execute(_KEEP_LAYOUT, org_id, import_id, layout_json)


_QUEUE = """
UPDATE imports
SET state = 'QUEUED', total_bytes = coalesce(total_bytes, $3), sha256 = coalesce(sha256, $4),
    upload_ended_at = coalesce(upload_ended_at, now()), start_not_before = $5, job_id = $6,
    expires_at = NULL, problem = NULL, ended_at = NULL
WHERE org_id = $1 AND import_id = $2
"""


async def queue(
    db: Executor,
    org_id: UUID,
    import_id: UUID,
    *,
    file: tuple[int | None, bytes | None],
    start_not_before: datetime,
    job_id: UUID,
) -> None:
    await db.execute(_QUEUE, org_id, import_id, *file, start_not_before, job_id)


# ---- Decisions ----

_CANCEL = """
UPDATE imports
SET state = 'CANCELLED', problem = $3, ended_at = now(), expires_at = now() + $4::interval,
    start_not_before = CASE WHEN started_at IS NULL THEN NULL ELSE start_not_before END
WHERE org_id = $1 AND import_id = $2
"""


async def cancel(
    db: Executor, org_id: UUID, import_id: UUID, problem_json: str, keep: timedelta
) -> None:
    """An import that never started gives its place in the start quota back."""
    await db.execute(_CANCEL, org_id, import_id, problem_json, keep)


_COMMIT = """
UPDATE imports SET state = 'QUEUED', committed_at = now(), job_id = $3, problem = NULL,
                   ended_at = NULL, expires_at = NULL,
                   start_not_before = coalesce(start_not_before, now())
WHERE org_id = $1 AND import_id = $2
"""


async def commit(db: Executor, org_id: UUID, import_id: UUID, job_id: UUID) -> None:
    await db.execute(_COMMIT, org_id, import_id, job_id)


_UNDO = """
UPDATE imports SET state = 'UNDOING', job_id = $3, expires_at = NULL, undo_ended_at = NULL,
                   undo_requested_at = coalesce(undo_requested_at, now()),
                   undo_actor_id = coalesce(undo_actor_id, $4),
                   undo_actor_name = coalesce(nullif(undo_actor_name, ''), $5)
WHERE org_id = $1 AND import_id = $2
"""


@dataclass(frozen=True, slots=True)
class Actor:
    actor_id: UUID
    name: str


async def undo(
    db: Executor, org_id: UUID, import_id: UUID, job_id: UUID, actor: Actor | None
) -> None:
    """No actor: it goes on in the name of the one who asked first."""
    who = (None, "") if actor is None else (actor.actor_id, actor.name)
    await db.execute(_UNDO, org_id, import_id, job_id, *who)


# ---- Lists of an import ----

_REJECTS = """
SELECT row_no, line_no, byte_offset, column_name, code, message, raw
FROM import_rejects
WHERE org_id = $1 AND import_id = $2 AND row_no > $3 AND ($4::text[] IS NULL OR code = ANY ($4))
ORDER BY row_no LIMIT $5
"""


async def rejects(
    db: Executor, org_id: UUID, import_id: UUID, after: int, codes: Sequence[str] | None, limit: int
) -> list[Record]:
    return await db.fetch(_REJECTS, org_id, import_id, after, codes, limit)


# Members that went are listed by the batch (import_undo_batches): as many batches are opened as a
# page can need, and some more, since lanes may have let neighbouring ones overlap.
_UNDO_RESULTS = """
WITH ahead AS (
    SELECT b.change_id, b.first_row, b.last_row, b.members,
           sum(b.members) OVER (ORDER BY b.first_row, b.change_id) AS upto,
           max(b.members) OVER () AS largest
    FROM import_undo_batches b
    WHERE b.org_id = $1 AND b.import_id = $2 AND b.last_row >= $3
      AND ($5::text[] IS NULL OR 'REVERSED' = ANY ($5))
), reach AS (
    SELECT max(a.last_row) AS last_row FROM ahead a WHERE a.upto - a.members <= $6 + 3 * a.largest
), listed AS (
    SELECT u.row_no, u.member_id, u.member_number, u.outcome, u.message
    FROM import_undo u
    WHERE u.org_id = $1 AND u.import_id = $2 AND ($5::text[] IS NULL OR u.outcome = ANY ($5))
    UNION ALL
    SELECT m.row_no, m.member_id, m.member_number, 'REVERSED', ''
    FROM reach r
    JOIN import_undo_batches b ON b.org_id = $1 AND b.import_id = $2
        AND b.last_row >= $3 AND b.first_row <= r.last_row
    CROSS JOIN LATERAL unnest(b.row_nos, b.member_ids, b.member_numbers)
        AS m (row_no, member_id, member_number)
)
SELECT l.row_no, l.member_id, l.member_number, l.outcome, l.message FROM listed l
WHERE (l.row_no, l.member_id) > ($3, $4::uuid)
ORDER BY l.row_no, l.member_id LIMIT $6
"""


async def undo_results(
    db: Executor,
    org_id: UUID,
    import_id: UUID,
    after: tuple[int, UUID],
    outcomes: Sequence[str] | None,
    limit: int,
) -> list[Record]:
    return await db.fetch(_UNDO_RESULTS, org_id, import_id, *after, outcomes, limit)


_BACKLOG = "SELECT all_bytes, org_bytes, all_draining, org_draining FROM import_backlog($1)"


async def backlog(db: Executor, org_id: UUID) -> Backlog:
    row: Any = await db.fetchrow(_BACKLOG, org_id)
    return Backlog(*row)
