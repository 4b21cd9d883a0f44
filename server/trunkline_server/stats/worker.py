"""Roll-ups: dirty hours are counted again from their events, then the days of them.

Never an increment: whatever was sent twice, late or in another order, the same events end in the
same numbers. A run takes its marks away in the transaction that counts, so one that dies leaves
them, and a mark made meanwhile stays for the next (docs/adr/0030).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from trunkline_server.db import Connection, Database, Executor
from trunkline_server.jobs import Done, Handler, Lease, Outcome, Schedule, Yield, enqueue
from trunkline_server.link import Link
from trunkline_server.org_settings import RETENTION_DEFAULTS

ROLL_UP = "stats.rollup"
FIND_DIRTY = "stats.find_dirty"
RETAIN = "stats.retain"
TOPIC_CHANGED = "stats"
TOPIC_WATCHED = "stats-watched"

FIND_EVERY = timedelta(seconds=10)
RETAIN_EVERY = timedelta(hours=24)
# Hours, and days, counted in one transaction.
HOURS_AT_ONCE = 100
DAYS_AT_ONCE = 20
ORGS_AT_ONCE = 10_000
# Pauses between an organisation's roll-ups: what changes all the time is counted in steps. A run
# that took long is followed by a pause ten times as long, so no organisation fills a worker.
PAUSE_S = 3.0
PAUSE_WATCHED_S = 1.0
PAUSE_FACTOR = 10
IDLE_PAUSE_S_MAX = 10.0
# Watchers say that they are there every 20 s.
WATCHED_S = 60.0
# A roll-up that found nothing this often ends; the next event makes another.
IDLE_ROUNDS = 3
MONTHS_LOOKED_BACK = 120
# Above whatever else the organisation has in the queue: it is short, and people wait for it.
PRIORITY = 50

_log = logging.getLogger(__name__)


class RollUps:
    def __init__(
        self, db: Database, link: Link | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._db = db
        self._link = link
        self._clock = clock
        self._watched_until: dict[str, float] = {}
        self._idle_rounds: dict[UUID, int] = {}
        self.hours = 0
        self.days = 0
        self.astray = 0
        if link is not None:
            link.subscribe(TOPIC_WATCHED, self._watch)

    def handlers(self) -> Mapping[str, Handler]:
        return {ROLL_UP: self.roll_up, FIND_DIRTY: self.find_dirty, RETAIN: self.retain}

    @staticmethod
    def schedules() -> Sequence[Schedule]:
        return (Schedule(FIND_DIRTY, FIND_EVERY), Schedule(RETAIN, RETAIN_EVERY))

    def _watch(self, org_key: str) -> None:
        now = self._clock()
        self._watched_until = {k: at for k, at in self._watched_until.items() if at > now}
        self._watched_until[org_key] = now + WATCHED_S

    def watched(self, org_id: UUID) -> bool:
        return self._watched_until.get(str(org_id), 0.0) > self._clock()

    async def roll_up(self, lease: Lease) -> Outcome:
        """One organisation's, under its lease: two workers never count the same one."""
        org_id, started = lease.org_id, self._clock()
        changed = False
        while taken := await self._hours(lease):
            self.hours += taken
            changed = True
            await self._tell(org_id)
            if lease.should_yield():
                return Yield()
        while taken := await self._days(lease):
            self.days += taken
            changed = True
            if lease.should_yield():
                return Yield()
        return self._rest(org_id, changed, self._clock() - started)

    def _rest(self, org_id: UUID, changed: bool, took_s: float) -> Outcome:
        idle = 0 if changed else self._idle_rounds.get(org_id, 0) + 1
        if idle >= IDLE_ROUNDS and not self.watched(org_id):
            self._idle_rounds.pop(org_id, None)
            return Done()
        self._idle_rounds[org_id] = idle
        pause_s = PAUSE_WATCHED_S if self.watched(org_id) else PAUSE_S
        # Nothing to do for a while: looked at ever less often, though somebody watches.
        pause_s = min(pause_s * 2.0 ** max(0, idle - 1), IDLE_PAUSE_S_MAX)
        return Yield(after_s=max(pause_s, took_s * PAUSE_FACTOR))

    async def _tell(self, org_id: UUID) -> None:
        if self._link is not None:
            await self._link.publish(TOPIC_CHANGED, str(org_id))

    async def _hours(self, lease: Lease) -> int:
        async with self._db.tenant_tx(lease.org_id) as tx:
            await lease.fence(tx)
            return await count_hours(tx, lease.org_id)

    async def _days(self, lease: Lease) -> int:
        async with self._db.tenant_tx(lease.org_id) as tx:
            await lease.fence(tx)
            return await count_days(tx, lease.org_id)

    async def find_dirty(self, lease: Lease) -> Outcome:
        """Whoever has marks gets its job, where the one who left them did not see to it."""
        async with self._db.system_tx() as tx:
            orgs = [row["org_id"] for row in await tx.fetch(_WAITING, ORGS_AT_ONCE)]
            self.astray = await tx.fetchval(_ASTRAY)
        for org_id in orgs:
            async with self._db.system_tx() as tx:
                await want_roll_up(tx, org_id)
            lease.touch()
        if self.astray:
            _log.error("events outside of every month's partition", extra={"count": self.astray})
        return Done()

    async def retain(self, lease: Lease) -> Outcome:
        """Whole months of raw events go, once all organisations are done with them."""
        async with self._db.system_tx() as tx:
            kept_days = await tx.fetchval(_KEPT_DAYS, RETENTION_DEFAULTS.events_days)
        for month in _months_back(datetime.now(UTC).date(), kept_days):
            async with self._db.system_tx() as tx:
                refused = await drop_month(tx, month, kept_days)
            if refused not in ("", "there is none"):
                _log.warning("events are kept longer", extra={"reason": refused})
            lease.touch()
        return Done()


def _months_back(today: date, kept_days: int) -> list[date]:
    month = (today - timedelta(days=kept_days)).replace(day=1)
    months = []
    for _ in range(MONTHS_LOOKED_BACK):
        month = (month - timedelta(days=1)).replace(day=1)
        months.append(month)
    return months


# Every organisation with marks or days to do, one look-up each however many marks it has.
_WAITING = """
WITH RECURSIVE marked AS (
    (SELECT d.org_id FROM stats_dirty d ORDER BY d.org_id LIMIT 1)
    UNION ALL
    SELECT (
        SELECT d.org_id FROM stats_dirty d WHERE d.org_id > m.org_id ORDER BY d.org_id LIMIT 1
    ) FROM marked m WHERE m.org_id IS NOT NULL
)
SELECT org_id FROM (
    SELECT org_id FROM marked WHERE org_id IS NOT NULL
    UNION
    SELECT org_id FROM stats_days WHERE dirty AND day < (now() AT TIME ZONE 'UTC')::date
) AS waiting ORDER BY random() LIMIT $1
"""
_ASTRAY = "SELECT stats_events_astray()"
_KEPT_DAYS = "SELECT stats_kept_days($1)"
_DROP_MONTH = "SELECT drop_events_month($1, (now() AT TIME ZONE 'UTC')::date - $2::integer)"


async def want_roll_up(tx: Executor, org_id: UUID, *, after_s: float = 0.0) -> None:
    """One live job an organisation, whoever asks for it."""
    run_after = datetime.now(UTC) + timedelta(seconds=after_s) if after_s else None
    await enqueue(tx, org_id, ROLL_UP, priority=PRIORITY, dedup_key="rollup", run_after=run_after)


async def drop_month(tx: Executor, month: date, kept_days: int) -> str:
    """Drops the month's raw events; the reason where they have to stay."""
    return str(await tx.fetchval(_DROP_MONTH, month, kept_days))


# The newest first: that is what people look at. Marks go first and events are read after that, so
# an event without its mark has been committed by then and is counted.
_TAKE_MARKS = """
WITH chosen AS (
    SELECT DISTINCT hour, kind FROM stats_dirty WHERE org_id = $1
    ORDER BY hour DESC, kind LIMIT $2
), taken AS (
    DELETE FROM stats_dirty d USING chosen c
    WHERE d.org_id = $1 AND d.hour = c.hour AND d.kind = c.kind
    RETURNING d.hour, d.kind
)
SELECT DISTINCT hour, kind FROM taken
"""
_FORGET_HOURS = """
DELETE FROM stats_hourly
WHERE org_id = $1 AND kind = $3 AND level IN ('ALL', 'AGENT') AND hour = ANY ($2)
"""
# OFFSET 0 keeps the planner to one index look-up an hour: left to itself, it reads all events of a
# large organisation to find those of a few hours.
_COUNT_HOURS = """
WITH taken AS (
    SELECT hour, kind FROM unnest($2::timestamptz[], $3::text[]) AS t (hour, kind)
), binned AS MATERIALIZED (
    SELECT t.hour, t.kind,
           coalesce(e.agent_id, uuid '00000000-0000-0000-0000-000000000000') AS agent_id,
           e.outcome, stats_bin(e.duration_us) AS bin, count(*) AS n, sum(e.quantity) AS quantity,
           count(e.duration_us) AS measured, coalesce(sum(e.duration_us), 0) AS duration_us
    FROM taken t CROSS JOIN LATERAL (
        SELECT agent_id, outcome, duration_us, quantity FROM events
        WHERE org_id = $1 AND kind = t.kind AND occurred_at >= t.hour
          AND occurred_at < t.hour + interval '1 hour'
          AND occurred_on = (t.hour AT TIME ZONE 'UTC')::date
        OFFSET 0
    ) e
    GROUP BY 1, 2, 3, 4, 5
), levels AS (
    SELECT 'AGENT' AS level, kind, hour, agent_id, outcome, bin, n, quantity, measured, duration_us
    FROM binned
    UNION ALL
    SELECT 'ALL', kind, hour, uuid '00000000-0000-0000-0000-000000000000', outcome, bin,
           sum(n), sum(quantity), sum(measured), sum(duration_us)
    FROM binned GROUP BY kind, hour, outcome, bin
), written AS (
    INSERT INTO stats_hourly (
        org_id, kind, level, hour, agent_id, outcome, quantity, measured, duration_us, bins,
        bin_counts
    )
    SELECT $1, kind, level, hour, agent_id, outcome, sum(quantity), sum(measured),
           sum(duration_us), array_agg(bin) FILTER (WHERE bin IS NOT NULL),
           array_agg(n) FILTER (WHERE bin IS NOT NULL)
    FROM levels GROUP BY kind, level, hour, agent_id, outcome
), days AS (
    INSERT INTO stats_days (org_id, kind, day, dirty)
    SELECT DISTINCT $1, kind, (hour AT TIME ZONE 'UTC')::date, true FROM taken
    ON CONFLICT (org_id, kind, day) DO UPDATE SET dirty = true WHERE NOT stats_days.dirty
)
INSERT INTO stats_hours AS s (org_id, kind, hour, events, first_events)
SELECT $1, kind, hour, sum(n), CASE WHEN now() >= hour + interval '1 hour' THEN sum(n) END
FROM binned GROUP BY kind, hour
ON CONFLICT (org_id, kind, hour) DO UPDATE SET
    events = excluded.events, first_events = coalesce(s.first_events, excluded.first_events),
    revision = s.revision + (s.events <> excluded.events)::integer, counted_at = now()
"""


async def count_hours(tx: Connection, org_id: UUID) -> int:
    """Counts some dirty hours again; how many. Under the organisation's lease."""
    taken = await tx.fetch(_TAKE_MARKS, org_id, HOURS_AT_ONCE)
    if taken:
        hours, kinds = [row["hour"] for row in taken], [row["kind"] for row in taken]
        for kind in set(kinds):
            of_kind = [row["hour"] for row in taken if row["kind"] == kind]
            await tx.execute(_FORGET_HOURS, org_id, of_kind, kind)
        await tx.execute(_COUNT_HOURS, org_id, hours, kinds)
    return len(taken)


# A day that still runs is read from its hours, which change all the time.
_DIRTY_DAYS = """
SELECT day, kind FROM stats_days
WHERE org_id = $1 AND dirty AND day < (now() AT TIME ZONE 'UTC')::date
ORDER BY day DESC, kind LIMIT $2
"""
_FORGET_DAYS = """
DELETE FROM stats_daily
WHERE org_id = $1 AND kind = $3 AND level IN ('ALL', 'AGENT') AND day = ANY ($2)
"""
_COUNT_DAYS = """
WITH hourly AS MATERIALIZED (
    SELECT t.day, r.kind, r.level, r.agent_id, r.outcome, r.quantity, r.measured, r.duration_us,
           r.bins, r.bin_counts
    FROM unnest($2::date[], $3::text[]) AS t (day, kind)
    CROSS JOIN LATERAL (
        SELECT kind, level, agent_id, outcome, quantity, measured, duration_us, bins, bin_counts
        FROM stats_hourly
        WHERE org_id = $1 AND kind = t.kind AND level IN ('ALL', 'AGENT')
          AND hour >= t.day::timestamp AT TIME ZONE 'UTC'
          AND hour < (t.day + 1)::timestamp AT TIME ZONE 'UTC'
        OFFSET 0
    ) r
), sums AS (
    SELECT day, kind, level, agent_id, outcome, sum(quantity) AS quantity,
           sum(measured) AS measured, sum(duration_us) AS duration_us
    FROM hourly GROUP BY day, kind, level, agent_id, outcome
), bins AS (
    SELECT day, kind, level, agent_id, outcome, array_agg(bin) AS bins, array_agg(n) AS bin_counts
    FROM (
        SELECT day, kind, level, agent_id, outcome, b.bin, sum(b.n)::bigint AS n
        FROM hourly, unnest(bins, bin_counts) AS b (bin, n)
        GROUP BY day, kind, level, agent_id, outcome, b.bin
    ) AS binned
    GROUP BY day, kind, level, agent_id, outcome
)
INSERT INTO stats_daily (
    org_id, kind, level, day, agent_id, outcome, quantity, measured, duration_us, bins, bin_counts
)
SELECT $1, s.kind, s.level, s.day, s.agent_id, s.outcome, s.quantity, s.measured, s.duration_us,
       b.bins, b.bin_counts
FROM sums s LEFT JOIN bins b USING (day, kind, level, agent_id, outcome)
"""
_CLEAN_DAYS = """
UPDATE stats_days s SET dirty = false FROM unnest($2::date[], $3::text[]) AS t (day, kind)
WHERE s.org_id = $1 AND s.kind = t.kind AND s.day = t.day
"""


async def count_days(tx: Connection, org_id: UUID) -> int:
    """Adds up some days whose hours have changed; how many. Under the organisation's lease."""
    taken = await tx.fetch(_DIRTY_DAYS, org_id, DAYS_AT_ONCE)
    if taken:
        days, kinds = [row["day"] for row in taken], [row["kind"] for row in taken]
        for kind in set(kinds):
            of_kind = [row["day"] for row in taken if row["kind"] == kind]
            await tx.execute(_FORGET_DAYS, org_id, of_kind, kind)
        await tx.execute(_COUNT_DAYS, org_id, days, kinds)
        await tx.execute(_CLEAN_DAYS, org_id, days, kinds)
    return len(taken)
