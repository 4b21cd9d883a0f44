"""Merging one batch: into the connection's staging table, then all its effects in one transaction.

While the organisation has no such members yet, rows are simply inserted; a number that is taken
undoes that and sends the batch the long way, which looks at every member first. Which way a batch
goes, and which batch lands first, changes nothing about the outcome.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncpg

from trunkline_server.db import CONFLICTS, Connection, Database, Record
from trunkline_server.failpoints import failpoint
from trunkline_server.ids import uuid7
from trunkline_server.imports import change_ids
from trunkline_server.imports import worker_queries as queries
from trunkline_server.imports.csv import Batch, Reject, original_cells
from trunkline_server.imports.merge_sql import STAGING, MergeSql, merge_sql
from trunkline_server.imports.work import Work
from trunkline_server.imports.worker_queries import Counts
from trunkline_server.jobs import Lease
from trunkline_server.members import queries as member_queries
from trunkline_server.members import rules as members

COPY_BYTES = 256 << 10
CONFLICT_ATTEMPTS = 5
CONFLICT_PAUSE_S = 0.05
# A batch is some thousands of rows by key: always through indexes, planned anew each time. A plan
# made while a table was small would go through all of it for each row by the time it has grown.
BY_KEY = "; ".join(
    f"SET {{local}} {setting}"
    for setting in (
        "enable_seqscan = off", "enable_bitmapscan = off", "enable_hashjoin = off",
        "enable_mergejoin = off", "enable_material = off", "plan_cache_mode = force_custom_plan",
    )
)  # fmt: skip
_LANE_SETTINGS = BY_KEY.format(local="") + "; SET work_mem = '16MB'"
_SET_ORG = "SELECT set_config('trunkline.org_id', $1, true)"
_DROP = f"DROP TABLE IF EXISTS {STAGING}"

SUPERSEDED = "SUPERSEDED"
_VERDICTS = {
    "superseded": (SUPERSEDED, "A later row of the file has the same member number and won."),
    "deleted": ("MEMBER_DELETED", "The member is deleted. Undelete it first."),
    "existing": ("MEMBER_EXISTS", "The member exists, and the import only creates."),
    "inverted": (members.Code.DATES_INVERTED, members.MESSAGES[members.Code.DATES_INVERTED]),
    "over_quota": (
        "MEMBER_QUOTA_REACHED",
        "The organisation has as many members as its quota allows.",
    ),
}
_log = logging.getLogger(__name__)


class ImportStopped(Exception):
    """The import does not run any more: cancelled, or ended by another lane."""


class _MemberMoved(Exception):
    """Somebody changed a member between being looked at and being written."""


class _NotTheSame(Exception):
    """A row is new, or changes something."""


class Spans:
    """From which to which number the batches on their way reach: those that meet go in turn.

    Whoever comes later waits, and holds nothing that the earlier one could be waiting for.
    """

    def __init__(self) -> None:
        self._taken: dict[int, tuple[str, str]] = {}
        self._freed = asyncio.Condition()

    async def take(self, lane: int, low: str, high: str) -> None:
        async with self._freed:
            await self._freed.wait_for(lambda: not self._meets(lane, low, high))
            self._taken[lane] = (low, high)

    async def free(self, lane: int) -> None:
        async with self._freed:
            self._taken.pop(lane, None)
            self._freed.notify_all()

    def _meets(self, lane: int, low: str, high: str) -> bool:
        return any(
            low <= other_high and other_low <= high
            for other, (other_low, other_high) in self._taken.items()
            if other != lane
        )


@dataclass(slots=True)
class Progress:
    """What the lanes of one turn share."""

    headroom: int  # members the organisation may still have
    is_plain: bool  # rows are expected to be new members
    is_same: bool = True  # or, where they are not, to say what is there already
    is_apart: bool = True  # and batches to have no numbers in common
    spans: Spans = field(default_factory=lambda: Spans())
    rejected: int = 0
    is_over: bool = False  # the turn: lanes take no other batch
    checkpointed: bool = False
    members_written: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Merged:
    counts: Counts
    written: int
    rejects: list[Reject]
    unlocated: Sequence[int] = ()


class Lane:
    """One connection with its staging table."""

    def __init__(
        self, number: int, connection: Connection, lease: Lease, work: Work, progress: Progress
    ) -> None:
        self._number = number
        self._connection = connection
        self._lease = lease
        self._work = work
        self._progress = progress
        self._sql: MergeSql = merge_sql(work.layout, creates_only=work.creates_only)

    async def open(self) -> None:
        await self._connection.execute(_LANE_SETTINGS)
        await self._connection.execute(_DROP)
        await self._connection.execute(self._sql.staging)

    async def close(self) -> None:
        if not self._connection.is_closed():
            await self._connection.execute(_DROP)

    async def land(self, batch_no: int, batch: Batch) -> None:
        """All of the batch's effects, or none. Passing conflicts are tried again."""
        for attempt in range(1, CONFLICT_ATTEMPTS + 1):
            try:
                await self._once(batch_no, batch)
                return
            except (*CONFLICTS, asyncpg.UniqueViolationError, _MemberMoved) as error:
                if attempt == CONFLICT_ATTEMPTS:
                    raise
                reason = type(error).__name__
                _log.info("a batch is tried again", extra={"batch": batch_no, "reason": reason})
            finally:
                await self._progress.spans.free(self._number)
            await asyncio.sleep(CONFLICT_PAUSE_S * attempt * random.uniform(0.5, 1.5))

    async def _once(self, batch_no: int, batch: Batch) -> None:
        work = self._work
        failpoint("batch.before")
        async with self._connection.transaction():
            await self._connection.execute(_SET_ORG, str(work.org_id))
            await self._lease.fence(self._connection)
            change_id = change_ids.of_batch(work.import_id, batch_no)
            merged = await self._merged(batch, change_id)
            failpoint("batch.merged")
            await self._settle(batch_no, batch, merged, change_id if merged.written else None)
            failpoint("batch.before_commit")
        failpoint("batch.committed")
        self._progress.headroom -= merged.counts.created
        self._progress.members_written |= merged.written > 0
        self._progress.news.set()

    async def _settle(
        self, batch_no: int, batch: Batch, merged: _Merged, change_id: object
    ) -> None:
        work, tx = self._work, self._connection
        ids = (work.org_id, work.import_id)
        if merged.rejects:
            await queries.add_rejects(tx, *ids, merged.rejects)
            if work.syncs:
                await queries.add_named(tx, *ids, list(_named(work, merged.rejects)))
        if merged.unlocated:
            await queries.add_unlocated(tx, *ids, merged.unlocated)
        rejected = await queries.finish_batch(
            tx,
            *ids,
            batch_no=batch_no,
            lane=self._number,
            batch=batch,
            change_id=change_id,  # type: ignore[arg-type]
            counts=merged.counts,
            planned=work.plans,
        )
        if rejected is None:
            raise ImportStopped
        self._progress.rejected = max(self._progress.rejected, rejected)
        if change_id is not None:
            change = work.change(change_ids.of_batch(work.import_id, batch_no))
            await member_queries.record(tx, work.org_id, change)
        if not self._progress.checkpointed:
            # A job that gets on starts its attempts over; once a turn is enough.
            await self._lease.checkpoint(tx, {"batch": batch_no})
            self._progress.checkpointed = True

    async def _merged(self, batch: Batch, change_id: object) -> _Merged:
        merged = _Merged(Counts(rejected=len(batch.rejects)), 0, list(batch.rejects))
        if not batch.accepted:
            return merged
        await self._connection.copy_to_table(
            STAGING,
            source=_pieces(batch.copy),
            columns=self._sql.copy_columns,
            format="csv",
            delimiter=self._work.layout.delimiter,
            quote=self._work.layout.quote,
            null="",
            force_null=self._sql.copy_columns,
        )
        failpoint("batch.staged")
        inverted = await self._inverted(batch)
        self._refuse(merged, batch, "inverted", inverted)
        count = batch.accepted - len(inverted)
        if not await self._created_all(batch, merged, change_id, count):
            await self._beside_what_is_there(batch, merged, change_id, count)
        await self._find_repeats(batch, merged, inverted, count)
        return merged

    async def _inverted(self, batch: Batch) -> list[int]:
        if self._sql.inverted is None:
            return []
        first = batch.start.row_no + 1
        rows = await self._connection.fetch(self._sql.inverted, first, batch.gaps)
        return [row["row_no"] for row in rows]

    async def _created_all(
        self, batch: Batch, merged: _Merged, change_id: object, count: int
    ) -> bool:
        """The short way: every row is a new member. False: it is not so."""
        progress, work = self._progress, self._work
        if not progress.is_plain or work.plans or progress.headroom < 2 * count:
            return False
        try:
            async with self._connection.transaction():
                tag = await self._connection.execute(
                    self._sql.create,
                    *(work.org_id, change_id, batch.start.row_no + 1, batch.gaps, _id_prefix()),
                )
        except asyncpg.UniqueViolationError:
            progress.is_plain = False
            return False
        merged.counts.created = merged.written = int(tag.rpartition(" ")[2])
        return True

    async def _beside_what_is_there(
        self, batch: Batch, merged: _Merged, change_id: object, count: int
    ) -> None:
        if self._work.plans:
            await self._merged_each(batch, merged, change_id)
            return
        span = await self._step_aside()
        if not await self._all_same(batch, merged, count, span):
            await self._merged_each(batch, merged, change_id)

    async def _step_aside(self) -> tuple[str, str]:
        """No other batch with any of these numbers is on its way, or noted only as a whole."""
        work, progress = self._work, self._progress
        row = await self._connection.fetchrow(self._sql.span)
        assert row is not None
        span = (row["low"], row["high"])
        await progress.spans.take(self._number, *span)
        if await queries.spell_out(self._connection, work.org_id, work.import_id, *span):
            progress.is_apart = False
        return span

    async def _all_same(
        self, batch: Batch, merged: _Merged, count: int, span: tuple[str, str]
    ) -> bool:
        """A short way for a file that comes again: no row changes anything."""
        progress, work = self._progress, self._work
        if not progress.is_same or work.creates_only or count < batch.accepted:
            return False
        arguments = (
            *(work.org_id, work.import_id, batch.start.row_no + 1, batch.gaps),
            *(work.first_change, work.last_change),
        )
        # A SYNC asks for each member whether it was seen, so there each is noted.
        if progress.is_apart and not work.syncs:
            tag = await self._connection.execute(self._sql.same_apart, *arguments, count, *span)
            progress.is_same = tag == "INSERT 0 1"
        else:
            progress.is_same = await self._each_same(arguments, count)
        if progress.is_same:
            merged.counts.unchanged = count
        return progress.is_same

    async def _each_same(self, arguments: Sequence[object], count: int) -> bool:
        try:
            async with self._connection.transaction():
                tag = await self._connection.execute(self._sql.same, *arguments)
                if int(tag.rpartition(" ")[2]) < count:
                    raise _NotTheSame
        except (asyncpg.UniqueViolationError, _NotTheSame):
            return False
        return True

    async def _merged_each(self, batch: Batch, merged: _Merged, change_id: object) -> None:
        """The long way: each row beside the member that is there."""
        work = self._work
        arguments = (
            *(work.org_id, work.import_id, batch.start.row_no + 1, batch.gaps, _id_prefix()),
            max(self._progress.headroom, 0),
        )
        if work.plans:
            row = await self._connection.fetchrow(self._sql.plan, *arguments)
        else:
            row = await self._connection.fetchrow(
                self._sql.merge, *arguments, change_id, work.first_change, work.last_change
            )
            # Nothing was there: the next batch will probably be new as well.
            assert row is not None
            self._progress.is_plain = row["created"] == row["members"]
            self._progress.is_same = row["unchanged"] == row["members"]
        assert row is not None
        if row["changed"] != row["to_change"]:
            raise _MemberMoved
        self._count(batch, merged, row)

    def _count(self, batch: Batch, merged: _Merged, row: Record) -> None:
        counts = merged.counts
        counts.created, counts.updated = row["created"], row["updated"]
        counts.unchanged = row["unchanged"]
        merged.written = 0 if self._work.plans else row["written"]
        merged.unlocated = row["overridden"] or ()
        counts.superseded += len(merged.unlocated)
        for verdict in _VERDICTS:
            self._refuse(merged, batch, verdict, row[verdict] or ())

    async def _find_repeats(
        self, batch: Batch, merged: _Merged, inverted: Sequence[int], count: int
    ) -> None:
        """Rows that a later one of the same batch overrides, if any."""
        found = merged.counts
        if not merged.unlocated and count in (found.created, found.unchanged):
            return
        first = batch.start.row_no + 1
        rows = await self._connection.fetch(self._sql.repeats, first, batch.gaps, list(inverted))
        self._refuse(merged, batch, "superseded", [row["row_no"] for row in rows])

    def _refuse(self, merged: _Merged, batch: Batch, verdict: str, row_nos: Sequence[int]) -> None:
        if _VERDICTS[verdict][0] == SUPERSEDED:
            merged.counts.superseded += len(row_nos)
        else:
            merged.counts.rejected += len(row_nos)
        merged.rejects.extend(refused_row(self._work, batch, row_no, verdict) for row_no in row_nos)


def refused_row(work: Work, batch: Batch, row_no: int, verdict: str) -> Reject:
    """An accepted row that the merge refused, with its place in the file."""
    code, message = _VERDICTS[verdict]
    name = "effective_to" if verdict == "inverted" else "member_number"
    column = (
        work.layout.headers[work.layout.fields.index(name)] if name in work.layout.fields else ""
    )
    at = batch.locate(row_no)
    return Reject(at.row_no, at.line_no, at.byte_offset, column, str(code), message, at.raw)


def _named(work: Work, rejects: Sequence[Reject]) -> Iterator[str]:
    """The members that refused rows are about, as far as their numbers can be read."""
    place = work.layout.fields.index("member_number")
    for reject in rejects:
        if reject.code == SUPERSEDED:
            continue
        try:
            cell = original_cells(work.layout, reject.raw)[place]
            yield members.member_number(cell, work.member_rules.number)
        except members.FieldRefused:
            continue


def _id_prefix() -> str:
    """The first 24 digits of a UUIDv7; a row's place in its batch makes the rest."""
    return uuid7().hex[:24]


async def _pieces(parts: Sequence[bytes]) -> AsyncIterator[bytes]:
    waiting: list[bytes] = []
    size = 0
    for part in parts:
        waiting.append(part)
        size += len(part)
        if size >= COPY_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


@asynccontextmanager
async def lane(
    db: Database, number: int, lease: Lease, work: Work, progress: Progress
) -> AsyncIterator[Lane]:
    async with db.pool.acquire() as connection:
        opened = Lane(number, connection, lease, work, progress)
        await opened.open()
        try:
            yield opened
        finally:
            await opened.close()
