"""What a user may decide about an import: cancel, retry, commit, undo. The worker does the work.

Each runs in the caller's transaction and locks the import's row first, then its job's.
"""

from __future__ import annotations

import json
from datetime import timedelta
from uuid import UUID

import grpc

from trunkline.api.errors.v1 import reason_pb2
from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline_server.db import Executor, Record
from trunkline_server.errors import AppError
from trunkline_server.imports import present, queries
from trunkline_server.imports.errors import (
    ContentExpired,
    NotUndoable,
    PlanStale,
    StateForbids,
    SyncFuse,
    item,
)
from trunkline_server.imports.storage import queue_run
from trunkline_server.jobs import queue as jobs
from trunkline_server.orgs import OrgSettings

_ENDED = ("SUCCEEDED", "FAILED", "CANCELLED", "DEAD", "UNDONE")
_UNDOABLE = ("SUCCEEDED", "FAILED", "CANCELLED", "DEAD")


class ImportCancelled(AppError):
    """Why a cancelled import ended; nobody raises it."""

    code = grpc.StatusCode.CANCELLED
    reason = reason_pb2.REASON_IMPORT_CANCELLED
    text = "The import was cancelled."


def keep_files(settings: OrgSettings) -> timedelta:
    return timedelta(days=settings.retention.import_files_days)


async def cancel(tx: Executor, settings: OrgSettings, row: Record) -> None:
    """A running import is asked to stop: only its worker knows where it can."""
    state = row["state"]
    if state in _ENDED:
        return
    if state == "UNDOING":
        raise StateForbids.found(state, "an import that is not being undone")
    if state in ("QUEUED", "RUNNING") and row["job_id"] is not None:
        job = await _cancel_job(tx, settings, row)
        if job == "RUNNING":
            return
    problem = present.stored(item(ImportCancelled()))
    await queries.cancel(tx, settings.org_id, row["import_id"], problem, keep_files(settings))


async def _cancel_job(tx: Executor, settings: OrgSettings, row: Record) -> str:
    try:
        return (await jobs.cancel_job(tx, settings.org_id, row["job_id"])).state
    except (jobs.JobStateForbids, jobs.JobNotFound):
        return "ENDED"  # it died, or ended this moment: the import is ours to end


async def retry(tx: Executor, settings: OrgSettings, row: Record) -> None:
    state = row["state"]
    if state not in ("FAILED", "DEAD"):
        raise StateForbids.found(state, "FAILED or DEAD")
    if row["undo_requested_at"] is not None:
        await _queue_undo(tx, settings, row, None)
        return
    if row["total_bytes"] is None:
        raise StateForbids.found(state, "an import whose upload was finished")
    if row["content_dropped_at"] is not None:
        raise ContentExpired
    if row["committed_at"] is not None and row["applied_at"] is None:
        await _queue_commit(tx, settings, row)
        return
    await queries.turn(tx, settings.org_id)
    await queue_run(tx, settings.org_id, row["import_id"], settings.quotas)


async def commit(
    tx: Executor, settings: OrgSettings, row: Record, request: pb.CommitImportRequest
) -> None:
    state = row["state"]
    checked = state == "SUCCEEDED" and row["validate_only"] and row["applied_at"] is None
    if state != "AWAITING_COMMIT" and not checked:
        raise StateForbids.found(state, "AWAITING_COMMIT, or SUCCEEDED with validate_only")
    if row["plan"] is None or row["plan_etag"] != request.plan_etag:
        raise PlanStale
    if row["content_dropped_at"] is not None:
        raise ContentExpired
    _check_fuse(row, request)
    await _queue_commit(tx, settings, row)


def _check_fuse(row: Record, request: pb.CommitImportRequest) -> None:
    planned = present.plan(row).terminated
    is_confirmed = request.HasField("confirm_terminations")
    if is_confirmed and request.confirm_terminations != planned:
        raise SyncFuse(metadata={"terminations": str(planned)})
    if not is_confirmed and _fuse_has_blown(row):
        raise SyncFuse(metadata={"terminations": str(planned)})


def _fuse_has_blown(row: Record) -> bool:
    problem = json.loads(row["problem"] or "{}")
    return bool(problem.get("reason") == "REASON_IMPORT_SYNC_FUSE")


async def _queue_commit(tx: Executor, settings: OrgSettings, row: Record) -> None:
    job_id = await _enqueue(tx, settings, row, queries.JOB_COMMIT)
    await queries.commit(tx, settings.org_id, row["import_id"], job_id)


async def undo(tx: Executor, settings: OrgSettings, row: Record, actor: queries.Actor) -> None:
    if row["state"] not in _UNDOABLE:
        raise StateForbids.found(row["state"], "SUCCEEDED, FAILED, CANCELLED or DEAD")
    if row["started_at"] is None or (row["validate_only"] and row["applied_at"] is None):
        raise NotUndoable
    history = timedelta(days=settings.retention.member_history_days)
    if row["read_at"] - row["started_at"] > history:
        raise NotUndoable
    await _queue_undo(tx, settings, row, actor)


async def _queue_undo(
    tx: Executor, settings: OrgSettings, row: Record, actor: queries.Actor | None
) -> None:
    job_id = await _enqueue(tx, settings, row, queries.JOB_UNDO)
    await queries.undo(tx, settings.org_id, row["import_id"], job_id, actor)


async def _enqueue(tx: Executor, settings: OrgSettings, row: Record, kind: str) -> UUID:
    import_id = row["import_id"]
    return await jobs.enqueue(
        tx, settings.org_id, kind, subject_id=import_id, dedup_key=str(import_id)
    )
