"""Imports without the upload: bytes put where it would put them, and a runner to work them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

from tests.daemons import POLL_S
from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline_server.db import Database
from trunkline_server.ids import uuid7
from trunkline_server.imports import present
from trunkline_server.imports.queries import JOB_COMMIT, JOB_RUN, JOB_UNDO
from trunkline_server.imports.retention import JOB_RETENTION, ImportRetention
from trunkline_server.imports.rules import read_layout
from trunkline_server.imports.spec import file_spec
from trunkline_server.imports.worker import ImportWorker
from trunkline_server.jobs import Runner, Timings, enqueue
from trunkline_server.link import Link
from trunkline_server.orgs import Orgs

QUICK = Timings(heartbeat_s=0.5, poll_s=0.05, backoff_s=0.01, backoff_s_max=0.05, grace_s=2.0)
ENDED = ("SUCCEEDED", "FAILED", "CANCELLED", "DEAD", "AWAITING_COMMIT", "UNDONE")
CHUNK_BYTES = 64 << 10
WITHIN_S = 60.0

_ORG = "INSERT INTO orgs (org_id, slug, display_name, quotas) VALUES ($1, $2, $2, $3)"
_IMPORT = """
INSERT INTO imports (
    org_id, import_id, state, spec, validate_only, file_name, actor_kind, actor_id, actor_name,
    persisted_bytes, total_bytes, sha256, layout, start_not_before, job_id, upload_ended_at
)
VALUES ($1, $2, 'QUEUED', $3, $4, $5, 'USER', $6, 'Rita Registrar', $7, $7, $8, $9, now(), $10,
        now())
"""
_CHUNK = """
INSERT INTO import_chunks (org_id, import_id, byte_offset, prefix_crc32, data)
VALUES ($1, $2, $3, $4, $5)
"""


async def make_org(connection: asyncpg.Connection, slug: str = "acme", **quotas: int) -> UUID:
    org_id = uuid7()
    await connection.execute(_ORG, org_id, slug, json.dumps(quotas))
    return org_id


def pieces(content: bytes, cuts: Sequence[int] = ()) -> list[bytes]:
    """Cut at these offsets, or every CHUNK_BYTES."""
    borders = [0, *(cuts or range(CHUNK_BYTES, len(content), CHUNK_BYTES)), len(content)]
    return [content[a:b] for a, b in itertools.pairwise(borders) if a < b]


async def put(
    connection: asyncpg.Connection,
    org_id: UUID,
    content: bytes,
    spec: pb.ImportSpec | None = None,
    *,
    cuts: Sequence[int] = (),
    max_attempts: int = 8,
) -> UUID:
    """Queue an import of these bytes, as a finished upload does."""
    spec = spec or pb.ImportSpec()
    layout = read_layout(content[: 1 << 20], file_spec(spec), is_whole=True)
    assert layout is not None
    import_id = uuid7()
    async with connection.transaction():
        job_id = await enqueue(
            connection, org_id, JOB_RUN, subject_id=import_id, dedup_key=str(import_id),
            max_attempts=max_attempts,
        )  # fmt: skip
        await connection.execute(
            _IMPORT,
            *(org_id, import_id, present.stored(spec), spec.validate_only, spec.file_name),
            *(uuid7(), len(content), bytes(32), json.dumps(layout.to_json()), job_id),
        )
        offset = crc32 = 0
        for piece in pieces(content, cuts):
            await connection.execute(_CHUNK, org_id, import_id, offset, crc32, piece)
            offset, crc32 = offset + len(piece), zlib.crc32(piece, crc32)
    return import_id


_QUEUE_AGAIN = """
UPDATE imports SET state = $3, job_id = $4, problem = NULL, ended_at = NULL, expires_at = NULL,
    committed_at = CASE WHEN $3 = 'QUEUED' THEN now() ELSE committed_at END,
    undo_requested_at = CASE WHEN $3 = 'UNDOING' THEN now() END,
    undo_actor_name = CASE WHEN $3 = 'UNDOING' THEN 'Ada Admin' ELSE '' END
WHERE org_id = $1 AND import_id = $2
"""


async def queue_again(
    connection: asyncpg.Connection, org_id: UUID, import_id: UUID, kind: str
) -> None:
    """What CommitImport (JOB_COMMIT), UndoImport (JOB_UNDO) and RetryImport (JOB_RUN) do."""
    async with connection.transaction():
        job_id = await enqueue(
            connection, org_id, kind, subject_id=import_id, dedup_key=str(import_id)
        )
        state = "UNDOING" if kind == JOB_UNDO else "QUEUED"
        await connection.execute(_QUEUE_AGAIN, org_id, import_id, state, job_id)


async def row(connection: asyncpg.Connection, import_id: UUID) -> dict[str, Any]:
    found = await connection.fetchrow("SELECT * FROM imports WHERE import_id = $1", import_id)
    assert found is not None
    return dict(found)


async def ended(connection: asyncpg.Connection, import_id: UUID) -> dict[str, Any]:
    """The import once it has ended, or awaits a commit."""
    async with asyncio.timeout(WITHIN_S):
        while (found := await row(connection, import_id))["state"] not in ENDED:
            await asyncio.sleep(POLL_S)
    return found


async def rejects(connection: asyncpg.Connection, import_id: UUID) -> list[tuple[Any, ...]]:
    rows = await connection.fetch(
        "SELECT row_no, line_no, byte_offset, column_name, code, raw FROM import_rejects"
        " WHERE import_id = $1 ORDER BY row_no",
        import_id,
    )
    return [tuple(found) for found in rows]


@dataclass
class Working:
    """A worker of the test's own process."""

    runner: Runner
    imports: ImportWorker


@contextlib.asynccontextmanager
async def working(
    database_url: str,
    redis_url: str,
    *,
    lanes: int = 2,
    batch_rows: int = 10,
    timings: Timings = QUICK,
    slots: int = 2,
) -> AsyncIterator[Working]:
    db = await Database.open(
        database_url, role="trunkline_worker", pool_size=10, readers=1, statement_timeout_s=60
    )
    link = Link(redis_url)
    await link.start()
    orgs = Orgs(db, link)
    imports = ImportWorker(db=db, orgs=orgs, link=link, lanes=lanes, batch_rows=batch_rows)
    retention = ImportRetention(db=db, orgs=orgs)
    runner = Runner(
        db,
        database_url,
        {**imports.handlers(), JOB_RETENTION: retention.run},
        slots=slots,
        timings=timings,
    )
    task = asyncio.create_task(runner.run())
    try:
        yield Working(runner, imports)
    finally:
        runner.stop()
        await task
        await link.close()
        await db.close()


__all__ = [
    "JOB_COMMIT", "JOB_RETENTION", "JOB_RUN", "JOB_UNDO", "Working", "ended", "make_org", "pieces",
    "put", "queue_again", "rejects", "row", "working",
]  # fmt: skip
