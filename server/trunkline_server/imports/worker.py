"""The jobs of imports: running one, publishing its plan, undoing it. One lease is one turn.

A turn merges batches in lanes until the file ends, the lease is wanted elsewhere, or the import is
cancelled. Whatever is committed is committed behind the lease's fence, so that a worker that was
taken for dead writes nothing any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from trunkline_server import audit
from trunkline_server.db import Connection, Database
from trunkline_server.errors import AppError
from trunkline_server.failpoints import failpoint
from trunkline_server.imports import batches, counted, plan, present, work
from trunkline_server.imports import undo as undo_steps
from trunkline_server.imports import worker_queries as queries
from trunkline_server.imports.csv import Batch
from trunkline_server.imports.decisions import ImportCancelled, keep_files
from trunkline_server.imports.errors import (
    ImportDead,
    PlanStale,
    SyncFuse,
    TooManyRejects,
    item,
    of_file,
)
from trunkline_server.imports.live import TOPIC_IMPORT
from trunkline_server.imports.locate import locate
from trunkline_server.imports.merge import ImportStopped, Progress, lane
from trunkline_server.imports.queries import JOB_COMMIT, JOB_RUN, JOB_UNDO, turn
from trunkline_server.imports.rules import FileRefused
from trunkline_server.jobs import Done, Handler, Lease, LeaseLost, Outcome, Yield
from trunkline_server.link import Link
from trunkline_server.members.settings import SettingsReader
from trunkline_server.orgs import Orgs

LANES = 2
BATCH_ROWS = 10_000
# A plan that moved while it was made is made again so often.
REPLANS_MAX = 3
TOPIC_MEMBERS = "members"
PUBLISH_PAUSE_S = 0.05
COUNT_LIFE_S = 60.0
BUSY_S = 0.5
# A worker that is free has taken a job by then.
PATIENCE = timedelta(milliseconds=20)
ORGS_MAX = 10_000
# A file that one lane is done with before another would have begun.
SHORT_BYTES = 1 << 20
# Rows are rarely shorter: how many may be in so many bytes.
ROW_BYTES_MIN = 16

_log = logging.getLogger(__name__)
_Turn = Callable[[Lease], Awaitable[Outcome]]


@dataclass(frozen=True, slots=True)
class _End:
    """How an import ends without success."""

    state: str
    error: AppError


class _Busy(Exception):
    """As many imports of the organisation run as its quota allows."""


class ImportWorker:
    """The handlers of imports' jobs."""

    def __init__(
        self,
        *,
        db: Database,
        orgs: Orgs,
        link: Link,
        lanes: int = LANES,
        batch_rows: int = BATCH_ROWS,
    ) -> None:
        self._db = db
        self._orgs = orgs
        self._link = link
        self._lanes = lanes
        self._batch_rows = batch_rows
        self._member_rules = SettingsReader()
        self._headroom: dict[UUID, tuple[float, int]] = {}

    def handlers(self) -> Mapping[str, Handler]:
        return {JOB_RUN: self.run, JOB_COMMIT: self.commit, JOB_UNDO: self.undo}

    async def run(self, lease: Lease) -> Outcome:
        return await self._turn(lease, self._run)

    async def commit(self, lease: Lease) -> Outcome:
        return await self._turn(lease, self._commit)

    async def undo(self, lease: Lease) -> Outcome:
        return await self._turn(lease, self._undo)

    # ---- a turn, whatever it does ----

    async def _turn(self, lease: Lease, work_on: _Turn) -> Outcome:
        try:
            return await work_on(lease)
        except _Busy:
            return Yield(BUSY_S * random.uniform(0.5, 1.0))
        except (ImportStopped, undo_steps.UndoStopped):
            return Done()
        except FileRefused as refused:
            return await self._ended(lease, _End("FAILED", of_file(refused)))
        except (TooManyRejects, PlanStale) as error:
            return await self._ended(lease, _End("FAILED", error))
        except (LeaseLost, asyncio.CancelledError):
            raise
        except Exception as error:
            await self._hand_on(lease, type(error).__name__)
            raise
        finally:
            await self._tell(lease)

    async def _tell(self, lease: Lease) -> None:
        assert lease.subject_id is not None
        await self._link.publish(TOPIC_IMPORT, f"{lease.org_id} {lease.subject_id}")

    async def _ended(self, lease: Lease, end: _End) -> Outcome:
        settings = await self._orgs.get(lease.org_id)
        async with self._db.tenant_tx(lease.org_id) as tx:
            await lease.fence(tx)
            problem = present.stored(item(end.error))
            ids = (lease.org_id, _subject(lease))
            await queries.end(tx, *ids, end.state, problem, keep_files(settings))
            await lease.complete(tx)
        return Done()

    async def _hand_on(self, lease: Lease, reason: str) -> None:
        """After an error: the job's back-off decides when, and whether, it is tried again."""
        try:
            settings = await self._orgs.get(lease.org_id)
            async with self._db.tenant_tx(lease.org_id) as tx:
                await lease.fence(tx)
                ids = (lease.org_id, _subject(lease))
                if await queries.is_last_attempt(tx, lease.org_id, lease.job_id):
                    dead = ImportDead(f"{ImportDead.text[:-1]}: {reason}.")
                    problem = present.stored(item(dead))
                    await queries.end(tx, *ids, "DEAD", problem, keep_files(settings))
                else:
                    await queries.hand_on(tx, *ids)
        except Exception as error:
            # The first error counts; imports.retention puts right what could not be written.
            _log.warning("cannot hand on", extra={"reason": type(error).__name__})

    async def _yielded(self, lease: Lease) -> Outcome:
        settings = await self._orgs.get(lease.org_id)
        async with self._db.tenant_tx(lease.org_id) as tx:
            await lease.fence(tx)
            ids = (lease.org_id, _subject(lease))
            if lease.cancel_requested:
                problem = present.stored(item(ImportCancelled()))
                await queries.end(tx, *ids, "CANCELLED", problem, keep_files(settings))
            else:
                await queries.hand_on(tx, *ids)
        return Yield()

    # ---- running ----

    async def _begun(self, lease: Lease) -> work.Work:
        settings = await self._orgs.get(lease.org_id)
        member_rules = self._member_rules.of(str(lease.org_id), settings).rules
        async with self._db.tenant_tx(lease.org_id) as tx:
            await lease.fence(tx)
            await turn(tx, lease.org_id)
            running = await queries.running(tx, lease.org_id, _subject(lease))
            if running >= settings.quotas.imports_running:
                raise _Busy
            row = await queries.begin(tx, lease.org_id, _subject(lease), self._batch_rows)
        if row is None:
            raise ImportStopped
        failpoint("run.begun")
        return work.read(row, settings, member_rules)

    async def _run(self, lease: Lease) -> Outcome:
        job = await self._begun(lease)
        for attempt in range(REPLANS_MAX):
            if not await self._land(lease, job) or not await locate(self._db, lease, job):
                return await self._yielded(lease)
            failpoint("run.landed")
            try:
                return await self._finish(lease, job)
            except PlanStale:
                if attempt == REPLANS_MAX - 1 or not job.plans:
                    raise
            async with self._db.tenant_tx(lease.org_id) as tx:
                await lease.fence(tx)
                await queries.begin_again(tx, job.org_id, job.import_id)
        raise PlanStale

    async def _land(self, lease: Lease, job: work.Work) -> bool:
        """Merges what is left of the file. False: the lease is wanted before the end."""
        ids = (job.org_id, job.import_id)
        async with self._db.tenant_tx(job.org_id) as tx:
            finished = await queries.finished(tx, *ids)
            is_plain = await queries.is_empty(tx, job.org_id, job.first_change, job.last_change)
            headroom = await self._room(tx, job)
        number, start = batches.resume_at(job.layout.first, finished)
        if start.byte_offset >= job.total_bytes:
            return True
        progress = Progress(headroom, is_plain and not job.plans)
        done = frozenset(batch.batch_no for batch in finished)
        cut = batches.cut(self._db, job, number, start)
        lanes = self._lane_count(job, progress, job.total_bytes - start.byte_offset)
        async with self._news(lease, progress):
            return await self._in_lanes(lease, job, progress, lanes, _left(cut, done))

    def _lane_count(self, job: work.Work, progress: Progress, bytes_left: int) -> int:
        # About one batch; or so near the quota that lanes would take the same room twice.
        is_short = bytes_left <= SHORT_BYTES
        return 1 if is_short or progress.headroom < bytes_left // ROW_BYTES_MIN else self._lanes

    async def _room(self, tx: Connection, job: work.Work) -> int:
        """Members the organisation may still have, by a count a minute old at most."""
        quota = job.settings.quotas.members
        now = asyncio.get_running_loop().time()
        counted_at, room = self._headroom.get(job.org_id, (-COUNT_LIFE_S, 0))
        if now - counted_at > COUNT_LIFE_S or room < job.total_bytes // ROW_BYTES_MIN:
            room = quota - await queries.count_members(tx, job.org_id, quota)
            if len(self._headroom) >= ORGS_MAX:
                self._headroom.clear()
            self._headroom[job.org_id] = (now, room)
        return room

    async def _in_lanes(
        self,
        lease: Lease,
        job: work.Work,
        progress: Progress,
        lanes: int,
        cut: AsyncIterator[tuple[int, Batch]],
    ) -> bool:
        waiting: asyncio.Queue[tuple[int, Batch] | None] = asyncio.Queue(maxsize=1)
        try:
            async with asyncio.TaskGroup() as tasks:
                filling = tasks.create_task(_fill(waiting, cut, lanes))
                working = [
                    tasks.create_task(self._lane(place, lease, job, progress, waiting))
                    for place in range(lanes)
                ]
                await asyncio.wait(working)
                # What was cut and not taken is cut again in the next turn.
                filling.cancel()
        except BaseExceptionGroup as group:
            raise _first(group) from None
        return not progress.is_over

    async def _others_wait(self, lease: Lease) -> bool:
        """Asked between batches: a small import starts within two batch times of a large one."""
        async with self._db.tenant_tx(lease.org_id) as tx:
            return await queries.others_wait(tx, lease.org_id, PATIENCE)

    async def _lane(
        self,
        place: int,
        lease: Lease,
        job: work.Work,
        progress: Progress,
        waiting: asyncio.Queue[tuple[int, Batch] | None],
    ) -> None:
        async with lane(self._db, place, lease, job, progress) as opened:
            while not progress.is_over and (taken := await waiting.get()) is not None:
                # One batch at least, or many that wait would keep each other from getting on.
                await opened.land(*taken)
                _check_rejects(job, progress.rejected)
                if lease.should_yield() or await self._others_wait(lease):
                    progress.is_over = True

    @contextlib.asynccontextmanager
    async def _news(self, lease: Lease, progress: Progress) -> AsyncIterator[None]:
        """Tells of committed batches, several at once if they come faster than they can be told."""
        task = asyncio.create_task(self._keep_telling(lease, progress), name="import-news")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if progress.members_written:
                await self._link.publish(TOPIC_MEMBERS, str(lease.org_id))

    async def _keep_telling(self, lease: Lease, progress: Progress) -> None:
        while True:
            await progress.news.wait()
            progress.news.clear()
            if progress.members_written:
                progress.members_written = False
                await self._link.publish(TOPIC_MEMBERS, str(lease.org_id))
            await self._tell(lease)
            await asyncio.sleep(PUBLISH_PAUSE_S)

    # ---- the end of a run ----

    async def _finish(self, lease: Lease, job: work.Work) -> Outcome:
        written = False
        async with self._db.tenant_tx(job.org_id) as tx:
            await lease.fence(tx)
            row = await queries.lock(tx, job.org_id, job.import_id)
            if row is None or row["state"] != "RUNNING":
                raise ImportStopped
            _check_ratio(job, row["rejected"], row["rows_read"])
            if job.plans or job.syncs:
                planned = await plan.summarise(tx, job, row["rejected"], row["created"])
                if planned.fuse_blown and not job.spec.validate_only:
                    return await self._fused(tx, lease, job)
                if not job.spec.validate_only:
                    written = await plan.publish(tx, job, planned.message)
            await self._succeed(tx, lease, job)
        if written:
            await self._link.publish(TOPIC_MEMBERS, str(job.org_id))
        failpoint("run.finished")
        return Done()

    async def _succeed(self, tx: Connection, lease: Lease, job: work.Work) -> None:
        keep = keep_files(job.settings)
        await queries.end(tx, job.org_id, job.import_id, "SUCCEEDED", None, keep)
        if not job.spec.validate_only:
            await counted.count(tx, job.org_id, job.import_id, job.actor_id)
        await lease.complete(tx)
        failpoint("run.before_end")

    async def _fused(self, tx: Connection, lease: Lease, job: work.Work) -> Outcome:
        problem = present.stored(item(SyncFuse()))
        await queries.await_commit(tx, job.org_id, job.import_id, problem)
        await lease.complete(tx)
        return Done()

    async def _commit(self, lease: Lease) -> Outcome:
        """Publishes the plan that CommitImport agreed to."""
        job = await self._begun(lease)
        async with self._db.tenant_tx(job.org_id) as tx:
            await lease.fence(tx)
            row = await queries.lock(tx, job.org_id, job.import_id)
            if row is None or row["state"] != "RUNNING" or row["plan"] is None:
                raise ImportStopped
            written = await plan.publish(tx, job, present.plan(row))
            await self._succeed(tx, lease, job)
        if written:
            await self._link.publish(TOPIC_MEMBERS, str(job.org_id))
        return Done()

    # ---- undo ----

    async def _undo(self, lease: Lease) -> Outcome:
        settings = await self._orgs.get(lease.org_id)
        member_rules = self._member_rules.of(str(lease.org_id), settings).rules
        async with self._db.tenant_tx(lease.org_id) as tx:
            await lease.fence(tx)
            row = await queries.lock(tx, lease.org_id, _subject(lease))
            if row is None or row["state"] != "UNDOING":
                return Done()
            job = work.read(row, settings, member_rules)
            changes = await undo_steps.changes(tx, job)
        undoing = undo_steps.Undoing(
            job,
            row["undo_actor_id"],
            row["undo_actor_name"],
            row["updated"] + row["superseded"] + row["terminated"] > 0,
        )
        if not await self._taken_back(lease, undoing, changes):
            return Yield()
        async with self._db.tenant_tx(job.org_id) as tx:
            edited = await undo_steps.edited(tx, job)
        for change_id in edited:
            await undo_steps.list_kept(self._db, lease, job, change_id)
        async with self._db.tenant_tx(job.org_id) as tx:
            await lease.fence(tx)
            await queries.undone(tx, job.org_id, job.import_id, keep_files(settings))
            await audit.append(
                tx, job.org_id, "imports.Undone", resource_type="import",
                resource_id=job.import_id,
            )  # fmt: skip
            await lease.complete(tx)
        return Done()

    async def _taken_back(
        self, lease: Lease, undoing: undo_steps.Undoing, changes: list[UUID]
    ) -> bool:
        left = iter(changes)
        progress = Progress(0, False)

        async def take_back() -> bool:
            progress.members_written = True
            results = [
                await undo_steps.take_back(self._db, lease, undoing, change_id, progress.news)
                for change_id in left
            ]
            return all(results)

        async with self._news(lease, progress):
            try:
                async with asyncio.TaskGroup() as tasks:
                    lanes = [tasks.create_task(take_back()) for _ in range(self._lanes)]
            except BaseExceptionGroup as group:
                raise _first(group) from None
            finally:
                progress.members_written = True
        return all(task.result() for task in lanes)


def _subject(lease: Lease) -> UUID:
    assert lease.subject_id is not None
    return lease.subject_id


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _left(
    cut: AsyncIterator[tuple[int, Batch]], done: frozenset[int]
) -> AsyncIterator[tuple[int, Batch]]:
    async for number, batch in cut:
        if number not in done:
            yield number, batch


async def _fill(
    waiting: asyncio.Queue[tuple[int, Batch] | None],
    cut: AsyncIterator[tuple[int, Batch]],
    lanes: int,
) -> None:
    async for numbered in cut:
        await waiting.put(numbered)
    for _ in range(lanes):
        await waiting.put(None)


def _check_rejects(job: work.Work, rejected: int) -> None:
    if job.spec.HasField("max_rejects") and rejected > job.spec.max_rejects:
        raise TooManyRejects


def _check_ratio(job: work.Work, rejected: int, rows: int) -> None:
    _check_rejects(job, rejected)
    if job.spec.HasField("max_reject_ratio") and rejected > job.spec.max_reject_ratio * rows:
        raise TooManyRejects
