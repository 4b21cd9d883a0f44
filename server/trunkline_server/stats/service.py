"""StatsService: protobuf in, protobuf out."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import zoneinfo
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from uuid import UUID
from zoneinfo import ZoneInfo

import asyncpg

from trunkline.api.stats.v1 import stats_service_pb2 as pb
from trunkline_server import audit, facts
from trunkline_server.db import Database
from trunkline_server.errors import AppError, RateLimited
from trunkline_server.link import Link
from trunkline_server.orgs import Orgs
from trunkline_server.rpc.caller import Caller, caller
from trunkline_server.rpc.drain import Drain
from trunkline_server.rpc.limits import Limits
from trunkline_server.stats import ask, present, queries, rules
from trunkline_server.stats.errors import TimeZoneUnknown
from trunkline_server.stats.overviews import Asked, Overviews
from trunkline_server.stats.record import Batch, Judge
from trunkline_server.stats.stream import Intake
from trunkline_server.stats.worker import TOPIC_CHANGED, TOPIC_WATCHED, want_roll_up
from trunkline_server.valkey import Valkey

# A process asks for an organisation's roll-up at most this often; the job lives on meanwhile.
HINT_EVERY_S = 2.0
# Spread, so that the events of a full minute do not bring all organisations' jobs at once.
HINT_AFTER_S = (0.1, 0.6)
HINTED_MAX = 100_000
WATCH_SIGN_S = 20.0
WATCH_POLL_S = 5.0
PACE_S_MAX = 1.0
# Each waits for a lock as long as any statement may: one second.
LOCK_TRIES = 5
# Points read at a time for an export: what it keeps in memory.
EXPORT_POINTS = 20_000

_log = logging.getLogger(__name__)


class StatsService:
    def __init__(
        self,
        *,
        db: Database,
        orgs: Orgs,
        link: Link | None,
        valkey: Valkey | None,
        drain: Drain,
        event_limits: Limits,
    ) -> None:
        self._db = db
        self._orgs = orgs
        self._link = link
        self._drain = drain
        self._event_limits = event_limits
        self._judge = Judge()
        self._zones = frozenset(zoneinfo.available_timezones())
        self._hinted_at: dict[UUID, float] = {}
        self._hints: set[asyncio.Task[None]] = set()
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self.overviews = Overviews(db, valkey, link)
        if link is not None:
            link.subscribe(TOPIC_CHANGED, self._wake_watchers)

    async def close(self) -> None:
        for hint in self._hints:
            hint.cancel()
        await asyncio.gather(*self._hints, return_exceptions=True)

    # ---- recording ----

    async def RecordEvents(
        self, request: pb.RecordEventsRequest, context: object
    ) -> pb.RecordEventsResponse:
        who = caller()
        self._event_limits.take(who, len(request.events))
        batch = await self._record(who, request.events)
        return pb.RecordEventsResponse(
            statuses=batch.statuses,
            problems=[present.problem(p) for p in sorted(batch.problems, key=lambda p: p.index)],
            counts=ask.counts(batch.statuses),
        )

    async def StreamEvents(
        self, request_iterator: AsyncIterator[pb.StreamEventsRequest], context: object
    ) -> pb.StreamEventsResponse:
        who = caller()

        async def record(events: Sequence[pb.Event]) -> Batch:
            await self._pace(who, len(events))
            return await self._record_patiently(who, events)

        draining = asyncio.Event()
        forget = self._drain.on_goaway(draining.set)
        try:
            return await Intake(record, draining).run(request_iterator)
        finally:
            forget()

    async def _record(self, who: Caller, events: Sequence[pb.Event]) -> Batch:
        batch = self._judge.batch(events, who, datetime.now(UTC))
        if not batch.places:
            batch.settle(None, set())
            return batch
        async with self._db.tenant_tx(who.org_id) as tx:
            done = await facts.insert(tx, who.org_id, batch.columns)
            conflicting = set(done.conflicting)
            if done.unseen:
                conflicting = await queries.conflicting(tx, who.org_id, batch.columns)
        batch.settle(done.new, conflicting - (done.new or set()))
        if done.new is None or done.new:
            self._hint(who.org_id)
        return batch

    async def _record_patiently(self, who: Caller, events: Sequence[pb.Event]) -> Batch:
        """The other lane, or another caller, may be writing the same events at this moment."""
        for _ in range(LOCK_TRIES - 1):
            try:
                return await self._record(who, events)
            except asyncpg.LockNotAvailableError:
                continue
        return await self._record(who, events)

    async def _pace(self, who: Caller, count: int) -> None:
        """A stream over its quota is slowed down, not refused."""
        while True:
            try:
                self._event_limits.take(who, count)
                return
            except RateLimited as refusal:
                await asyncio.sleep(min(refusal.retry_after_s or PACE_S_MAX, PACE_S_MAX))

    def _hint(self, org_id: UUID) -> None:
        """Has the marks looked at soon. A lost hint costs seconds: workers look by themselves."""
        now = time.monotonic()
        if now - self._hinted_at.get(org_id, -HINT_EVERY_S) < HINT_EVERY_S:
            return
        if len(self._hinted_at) >= HINTED_MAX:
            self._hinted_at.clear()
        self._hinted_at[org_id] = now
        task = asyncio.create_task(self._want_roll_up(org_id))
        self._hints.add(task)
        task.add_done_callback(self._hints.discard)

    async def _want_roll_up(self, org_id: UUID) -> None:
        try:
            async with self._db.tenant_tx(org_id) as tx:
                await want_roll_up(tx, org_id, after_s=random.uniform(*HINT_AFTER_S))
        except (AppError, asyncpg.PostgresError, OSError) as error:
            _log.warning("no roll-up was asked for", extra={"reason": type(error).__name__})

    # ---- asking ----

    async def ListMetrics(
        self, request: pb.ListMetricsRequest, context: object
    ) -> pb.ListMetricsResponse:
        return pb.ListMetricsResponse(metrics=map(present.metric, rules.METRICS.values()))

    async def QueryStats(
        self, request: pb.QueryStatsRequest, context: object
    ) -> pb.QueryStatsResponse:
        org_id = caller().org_id
        plan = ask.plan(request.query, await self._zone(org_id, request.query.time_zone))
        reply = pb.QueryStatsResponse(
            value_names=[value.name for value in plan.values], time_zone=plan.zone.key
        )
        async with self._db.tenant_tx(org_id, isolation="repeatable_read") as tx:
            reply.finality.CopyFrom(
                present.finality(await queries.finality(tx, org_id, plan.question))
            )
            cut = await ask.cut(tx, org_id, plan.question)
            keys, reply.groups_total = await ask.chosen(tx, org_id, plan)
            answer = await queries.totals(tx, org_id, plan.question, cut, keys)
            names = await queries.names(tx, org_id, [k.agent_id for k in keys if k.agent_id])
        reply.groups_cut = reply.groups_total > len(keys)
        for key in keys:
            of = present.group_keys(key, plan.dimensions, names)
            reply.series.append(present.series(key, of, plan.question.buckets, answer, plan.values))
        return reply

    async def ExportStats(
        self, request: pb.ExportStatsRequest, context: object
    ) -> AsyncIterator[pb.ExportStatsResponse]:
        org_id = caller().org_id
        plan = ask.plan(request.query, await self._zone(org_id, request.query.time_zone))
        async with self._db.tenant_tx(org_id) as tx:
            await audit.append(
                tx, org_id, "stats.ExportStats", details={"metric": request.query.metric}
            )
            how_final = await queries.finality(tx, org_id, plan.question)
            groups = await ask.count_groups(tx, org_id, plan)
        head = ["start_time", "end_time", *plan.dimensions, *(v.name for v in plan.values)]
        yield pb.ExportStatsResponse(data=present.csv_rows([head]))
        sent = 0
        for part in plan.question.parts(max(1, EXPORT_POINTS // max(1, groups))):
            async with self._db.tenant_tx(org_id, isolation="repeatable_read") as tx:
                rows = await ask.export_rows(tx, org_id, plan, part)
            sent += len(rows)
            if rows:
                yield pb.ExportStatsResponse(data=present.csv_rows(rows), rows_sent=sent)
        yield pb.ExportStatsResponse(rows_sent=sent, finality=present.finality(how_final))

    async def GetOverview(
        self, request: pb.GetOverviewRequest, context: object
    ) -> pb.GetOverviewResponse:
        org_id = caller().org_id
        asked = Asked(
            org_id,
            await self._zone(org_id, request.time_zone),
            ask.moment(request.from_time) if request.HasField("from_time") else None,
            ask.moment(request.to_time) if request.HasField("to_time") else None,
        )
        return pb.GetOverviewResponse(overview=await self.overviews.get(asked))

    async def WatchOverview(
        self, request: pb.WatchOverviewRequest, context: object
    ) -> AsyncIterator[pb.WatchOverviewResponse]:
        who = caller()
        asked = Asked(who.org_id, await self._zone(who.org_id, request.time_zone))
        changed = asyncio.Event()
        forget = self._drain.on_goaway(changed.set)
        self._watchers.setdefault(who.org_key, set()).add(changed)
        try:
            last, said_at = b"", 0.0
            while not self._drain.draining.is_set():
                changed.clear()
                overview = await self.overviews.get(asked)
                seen = ask.numbers(overview)
                overdue = time.monotonic() - said_at >= WATCH_SIGN_S
                if seen != last:
                    yield pb.WatchOverviewResponse(overview=overview)
                elif overdue:
                    yield pb.WatchOverviewResponse()
                if seen != last or overdue:
                    said_at = time.monotonic()
                    await self._say_watched(who.org_key)
                last = seen
                await _either(changed, WATCH_POLL_S)
            yield pb.WatchOverviewResponse(go_away=True)
        finally:
            forget()
            self._leave(who.org_key, changed)

    async def _say_watched(self, org_key: str) -> None:
        if self._link is not None:
            await self._link.publish(TOPIC_WATCHED, org_key)

    def _leave(self, org_key: str, changed: asyncio.Event) -> None:
        watchers = self._watchers[org_key]
        watchers.discard(changed)
        if not watchers:
            del self._watchers[org_key]

    def _wake_watchers(self, org_key: str) -> None:
        for changed in self._watchers.get(org_key, ()):
            changed.set()

    async def _zone(self, org_id: UUID, asked: str) -> ZoneInfo:
        if not asked:
            return (await self._orgs.get(org_id)).zone
        if asked not in self._zones:
            raise TimeZoneUnknown
        return ZoneInfo(asked)


async def _either(changed: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await changed.wait()
    except TimeoutError:
        return
