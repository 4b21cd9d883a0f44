"""What of imports is dropped by age: uploads nobody finished, files, rejects, and imports at last.

Also puts right what a killed worker left: an import whose job has ended without it. Nothing that is
not processed is ever dropped; the tables refuse it as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from uuid import UUID

from trunkline_server import audit
from trunkline_server.db import Connection, Database, Executor, Record
from trunkline_server.errors import AppError
from trunkline_server.imports import present
from trunkline_server.imports.decisions import ImportCancelled, keep_files
from trunkline_server.imports.errors import ImportDead, UploadExpired, item
from trunkline_server.jobs import Done, Handler, Lease, Outcome, Schedule
from trunkline_server.orgs import Orgs, OrgSettings

JOB_RETENTION = "imports.retention"
EVERY = timedelta(seconds=30)
IMPORTS_AT_ONCE = 100
REJECTS_AT_ONCE = 50_000

_EXPIRED = "SELECT org_id, import_id FROM imports WHERE expires_at <= now() LIMIT $1"
_LOCK = """
SELECT import_id, state FROM imports
WHERE org_id = $1 AND import_id = $2 AND expires_at <= now() FOR NO KEY UPDATE
"""
_CANCEL = """
UPDATE imports SET state = 'CANCELLED', problem = $3, ended_at = now()
WHERE org_id = $1 AND import_id = $2
"""
_CONTENT = (
    "import_chunks",
    "import_plan",
    "import_seen",
    "import_seen_batches",
    "import_unlocated",
)
_DROP_CONTENT = tuple(
    f"DELETE FROM {table} WHERE org_id = $1 AND import_id = $2"  # noqa: S608 - constants
    for table in _CONTENT
)
_DROPPED = """
UPDATE imports SET expires_at = NULL, content_dropped_at = coalesce(content_dropped_at, now())
WHERE org_id = $1 AND import_id = $2
"""
_ORGS = "SELECT DISTINCT org_id FROM imports WHERE ended_at < now() - interval '1 day'"
_DROP_REJECTS = """
WITH old AS (
    SELECT r.org_id, r.import_id, r.row_no
    FROM imports i JOIN import_rejects r ON r.org_id = i.org_id AND r.import_id = i.import_id
    WHERE i.org_id = $1 AND i.ended_at < now() - $2::interval LIMIT $3
)
DELETE FROM import_rejects r USING old
WHERE r.org_id = old.org_id AND r.import_id = old.import_id AND r.row_no = old.row_no
"""
# A corrected file names its parent, so the parent goes after it.
_OLD = """
SELECT i.import_id FROM imports i
WHERE i.org_id = $1 AND i.ended_at < now() - $2::interval AND i.expires_at IS NULL
  AND NOT EXISTS (
      SELECT FROM imports c WHERE c.org_id = $1 AND c.parent_import_id = i.import_id
  )
LIMIT $3
"""
_DROP_IMPORTS = tuple(
    f"DELETE FROM {table} WHERE org_id = $1 AND import_id = ANY ($2)"  # noqa: S608 - constants
    for table in (
        *_CONTENT,
        "import_batches",
        "import_rejects",
        "import_undo",
        "import_undo_batches",
        "imports",
    )
)
_ENDED_JOBS = """
SELECT org_id, job_id, subject_id, state, last_error FROM jobs
WHERE kind IN ('imports.run', 'imports.commit', 'imports.undo')
  AND state IN ('DEAD', 'FAILED', 'CANCELLED') AND finished_at > now() - interval '1 day'
"""
_LEFT_BEHIND = """
UPDATE imports SET state = $4, problem = $5, ended_at = now(), expires_at = now() + $6::interval
WHERE org_id = $1 AND import_id = $2 AND job_id = $3 AND state IN ('QUEUED', 'RUNNING', 'UNDOING')
"""


class ImportRetention:
    def __init__(self, *, db: Database, orgs: Orgs) -> None:
        self._db = db
        self._orgs = orgs

    def handlers(self) -> Mapping[str, Handler]:
        return {JOB_RETENTION: self.run}

    def schedules(self) -> Sequence[Schedule]:
        return (Schedule(JOB_RETENTION, EVERY),)

    async def run(self, lease: Lease) -> Outcome:
        await self._put_right()
        await self._drop_expired(lease)
        async with self._db.system_tx() as tx:
            orgs = [row["org_id"] for row in await tx.fetch(_ORGS)]
        for org_id in orgs:
            await self._drop_old(await self._orgs.get(org_id), lease)
        return Done()

    async def _put_right(self) -> None:
        async with self._db.system_tx() as tx:
            jobs = await tx.fetch(_ENDED_JOBS)
        for job in jobs:
            settings = await self._orgs.get(job["org_id"])
            async with self._db.tenant_tx(job["org_id"]) as tx:
                await _end_with_job(tx, job, settings)

    async def _drop_expired(self, lease: Lease) -> None:
        while not lease.should_yield():
            async with self._db.system_tx() as tx:
                expired = await tx.fetch(_EXPIRED, IMPORTS_AT_ONCE)
            for row in expired:
                async with self._db.tenant_tx(row["org_id"]) as tx:
                    await _drop_content(tx, row["org_id"], row["import_id"])
                lease.touch()
            if len(expired) < IMPORTS_AT_ONCE:
                return

    async def _drop_old(self, settings: OrgSettings, lease: Lease) -> None:
        retention = settings.retention
        while not lease.should_yield():
            async with self._db.tenant_tx(settings.org_id) as tx:
                dropped = await _drop_rejects(tx, settings.org_id, retention.import_rejects_days)
            lease.touch()
            if dropped < REJECTS_AT_ONCE:
                break
        async with self._db.tenant_tx(settings.org_id) as tx:
            old = await tx.fetch(
                _OLD, settings.org_id, timedelta(days=retention.imports_days), IMPORTS_AT_ONCE
            )
            ids = [row["import_id"] for row in old]
            for statement in _DROP_IMPORTS if ids else ():
                await tx.execute(statement, settings.org_id, ids)


async def _end_with_job(tx: Executor, job: Record, settings: OrgSettings) -> None:
    error: AppError = ImportCancelled()
    if job["state"] != "CANCELLED":
        error = ImportDead(f"{ImportDead.text[:-1]}: {job['last_error'][:200]}.")
    await tx.execute(
        _LEFT_BEHIND,
        *(job["org_id"], job["subject_id"], job["job_id"]),
        "CANCELLED" if job["state"] == "CANCELLED" else "DEAD",
        present.stored(item(error)),
        keep_files(settings),
    )


async def _drop_content(tx: Connection, org_id: UUID, import_id: UUID) -> None:
    row = await tx.fetchrow(_LOCK, org_id, import_id)
    if row is None:
        return
    if row["state"] in ("CREATED", "UPLOADING"):
        await tx.execute(_CANCEL, org_id, import_id, present.stored(item(UploadExpired())))
        await audit.append(
            tx, org_id, "imports.UploadExpired", resource_type="import", resource_id=import_id
        )
    for statement in _DROP_CONTENT:
        await tx.execute(statement, org_id, import_id)
    await tx.execute(_DROPPED, org_id, import_id)


async def _drop_rejects(tx: Executor, org_id: UUID, days: int) -> int:
    tag = await tx.execute(_DROP_REJECTS, org_id, timedelta(days=days), REJECTS_AT_ONCE)
    return int(tag.rpartition(" ")[2])
