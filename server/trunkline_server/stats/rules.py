"""What is counted and how: the metrics, the buckets over time zones, ratios, finality. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from enum import Enum
from zoneinfo import ZoneInfo

from trunkline_server import facts
from trunkline_server.stats.histogram import Histogram

EVENT_AGE_MAX = timedelta(days=35)
EVENT_AHEAD_MAX = timedelta(minutes=5)
# An event that was taken in the last moment may still be on its way into its transaction.
FINAL_MARGIN = timedelta(minutes=5)
BUCKETS_MAX = 2_500
RANGE_MAX = timedelta(days=3_660)
GROUPS_DEFAULT = 50
GROUPS_MAX = 1_000
# Points of all series of one reply: about 2 MB.
POINTS_MAX = 20_000

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
_LOCAL_MIDNIGHT = time(0)


class Interval(Enum):
    WHOLE = "whole"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


# ---- metrics ----


@dataclass(slots=True)
class Totals:
    """What was counted in one bucket of one group."""

    quantities: dict[tuple[str, str], int] = field(default_factory=dict)
    measured: int = 0
    duration_us: int = 0
    durations: Histogram = field(default_factory=Histogram)
    # Different agents by kind; of sign-ins those that succeeded.
    agents: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, outcome: str, quantity: int) -> None:
        self.quantities[kind, outcome] = self.quantities.get((kind, outcome), 0) + quantity

    def of(self, kind: str) -> int:
        return sum(n for (k, _), n in self.quantities.items() if k == kind)

    def ended(self, kind: str, outcome: str) -> int:
        return self.quantities.get((kind, outcome), 0)

    def by_outcome(self, kind: str) -> dict[str, int]:
        return {outcome: n for (k, outcome), n in self.quantities.items() if k == kind}

    @property
    def rows_rejected(self) -> int:
        outcomes = self.by_outcome("IMPORT_ROWS").items()
        kept = (facts.ROWS_ACCEPTED, facts.IMPORT_ENDED)
        return sum(n for outcome, n in outcomes if outcome not in kept)


def ratio(part: float, whole: float) -> float | None:
    """None, not infinity and not zero, where there is nothing to divide by."""
    return part / whole if whole else None


@dataclass(frozen=True, slots=True)
class Value:
    name: str
    unit: str  # UCUM
    description: str
    of: Callable[[Totals], float | None]
    needs_durations: bool = False
    needs_agents: bool = False


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    description: str
    kinds: tuple[str, ...]
    values: tuple[Value, ...]
    # The dimension as callers name it -> what it is of an event: `agent_id` or `outcome`.
    dimensions: Mapping[str, str]


def _count(name: str, description: str, of: Callable[[Totals], float | None]) -> Value:
    return Value(name, "1", description, of)


def _percentile(share: float) -> Value:
    percent = round(share * 100)
    return Value(
        f"duration_p{percent}",
        "s",
        f"{percent} % of the calls took no longer; within 1 %.",
        lambda totals: totals.durations.quantile_s(share),
        needs_durations=True,
    )


def _agents(name: str, kind: str, description: str) -> Value:
    return Value(name, "1", description, lambda t: t.agents.get(kind, 0), needs_agents=True)


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "calls",
            "Calls that ended, and how long they took.",
            ("CALL",),
            (
                _count("count", "Calls.", lambda t: t.of("CALL")),
                Value(
                    "duration_avg",
                    "s",
                    "The mean of the calls that were measured.",
                    lambda t: ratio(t.duration_us / 1e6, t.measured),
                ),
                *(_percentile(share) for share in (0.5, 0.9, 0.99)),
                _agents("agents", "CALL", "Agents with at least one call."),
            ),
            {"agent": "agent_id", "outcome": "outcome"},
        ),
        Metric(
            "validations",
            "Memberships that were validated.",
            ("VALIDATION",),
            (
                _count("count", "Validations.", lambda t: t.of("VALIDATION")),
                _count("eligible", "Eligible.", lambda t: t.ended("VALIDATION", "ELIGIBLE")),
                _count(
                    "eligible_ratio",
                    "The share that was eligible, from 0 to 1.",
                    lambda t: ratio(t.ended("VALIDATION", "ELIGIBLE"), t.of("VALIDATION")),
                ),
            ),
            {"agent": "agent_id", "decision": "outcome"},
        ),
        Metric(
            "imports",
            "Imports that ended and their rows. Values of `code` are reject codes, `accepted` and "
            "`ended`.",
            ("IMPORT_ROWS",),
            (
                _count(
                    "rows_accepted",
                    "Rows accepted.",
                    lambda t: t.ended("IMPORT_ROWS", facts.ROWS_ACCEPTED),
                ),
                _count("rows_rejected", "Rows rejected.", lambda t: t.rows_rejected),
                _count(
                    "rejected_ratio",
                    "The share of rows rejected, from 0 to 1.",
                    lambda t: ratio(
                        t.rows_rejected,
                        t.rows_rejected + t.ended("IMPORT_ROWS", facts.ROWS_ACCEPTED),
                    ),
                ),
                _count(
                    "imports",
                    "Imports that ended.",
                    lambda t: t.ended("IMPORT_ROWS", facts.IMPORT_ENDED),
                ),
            ),
            {"agent": "agent_id", "code": "outcome"},
        ),
        Metric(
            "content",
            "Articles read, searched and rated.",
            ("ARTICLE_VIEW", "ARTICLE_SEARCH", "ARTICLE_VOTE"),
            (
                _count("views", "Articles read.", lambda t: t.of("ARTICLE_VIEW")),
                _count("searches", "Searches.", lambda t: t.of("ARTICLE_SEARCH")),
                _count(
                    "misses",
                    "Searches that found nothing.",
                    lambda t: t.ended("ARTICLE_SEARCH", facts.SEARCH_MISS),
                ),
                _count(
                    "miss_ratio",
                    "The share of searches that found nothing, from 0 to 1.",
                    lambda t: ratio(
                        t.ended("ARTICLE_SEARCH", facts.SEARCH_MISS), t.of("ARTICLE_SEARCH")
                    ),
                ),
                _count(
                    "helpful_votes",
                    "Votes that an article helped.",
                    lambda t: t.ended("ARTICLE_VOTE", facts.VOTE_HELPFUL),
                ),
                _count(
                    "not_helpful_votes",
                    "Votes that it did not.",
                    lambda t: t.ended("ARTICLE_VOTE", facts.VOTE_NOT_HELPFUL),
                ),
            ),
            {"agent": "agent_id"},
        ),
        Metric(
            "sign_ins",
            "Log-ins.",
            ("SIGN_IN",),
            (
                _count("count", "Log-ins.", lambda t: t.ended("SIGN_IN", facts.SIGN_IN_OK)),
                _count("failed", "Refused.", lambda t: t.ended("SIGN_IN", facts.SIGN_IN_FAILED)),
                _count(
                    "failed_ratio",
                    "The share that was refused, from 0 to 1.",
                    lambda t: ratio(t.ended("SIGN_IN", facts.SIGN_IN_FAILED), t.of("SIGN_IN")),
                ),
                _agents("users", "SIGN_IN", "Users who logged in at least once."),
            ),
            {"agent": "agent_id", "outcome": "outcome"},
        ),
    )
}
ALL_KINDS = tuple(kind for metric in METRICS.values() for kind in metric.kinds)


# ---- events ----


def too_old(occurred_at: datetime, now: datetime) -> bool:
    return occurred_at < now - EVENT_AGE_MAX


def too_new(occurred_at: datetime, now: datetime) -> bool:
    return occurred_at > now + EVENT_AHEAD_MAX


# ---- buckets ----


@dataclass(frozen=True, slots=True)
class Bucket:
    start: datetime  # UTC
    end: datetime


def buckets(
    start: datetime, end: datetime, interval: Interval, zone: tzinfo, limit: int = BUCKETS_MAX
) -> list[Bucket] | None:
    """The buckets of [start, end) in order, the outer ones cut to it; None when over the limit.

    Hours are hours of UTC. Days and months begin at the zone's midnight: 23 or 25 hours where the
    clock changes, and the first instant of the day where its midnight is skipped.
    """
    made: list[Bucket] = []
    begin = start
    for edge in _edges(start, end, interval, zone):
        # A day that a zone leaves out on its way over the date line has no length.
        if edge <= begin:
            continue
        made.append(Bucket(begin, min(edge, end)))
        begin = edge
        if len(made) > limit:
            return None
    return made


def _edges(start: datetime, end: datetime, interval: Interval, zone: tzinfo) -> Iterator[datetime]:
    """Where buckets end, the last at or after `end`."""
    if interval is Interval.WHOLE:
        yield end
        return
    if interval is Interval.HOUR:
        edge = floor_hour(start) + HOUR
        while edge < end:
            yield edge
            edge += HOUR
        yield edge
        return
    day = start.astimezone(zone).date()
    while True:
        day = _next(day, interval)
        edge = midnight(day, zone)
        yield edge
        if edge >= end:
            return


def _next(day: date, interval: Interval) -> date:
    if interval is Interval.DAY:
        return day + DAY
    return (day.replace(day=1) + timedelta(days=32)).replace(day=1)


def midnight(day: date, zone: tzinfo) -> datetime:
    """The first instant of the zone's day, in UTC."""
    return datetime.combine(day, _LOCAL_MIDNIGHT, tzinfo=zone).astimezone(UTC)


def floor_hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def ceil_hour(at: datetime) -> datetime:
    floor = floor_hour(at)
    return floor if floor == at else floor + HOUR


@dataclass(slots=True)
class Pieces:
    """Where a bucket's numbers are read: whole days, whole hours, and the rest from raw events.

    Each list has one entry a piece, with the number of its bucket. Raw pieces are shorter than an
    hour, except where they lie in one: they come from ranges and zones that cut hours.
    """

    days: list[tuple[int, date]] = field(default_factory=list)
    hours: list[tuple[int, datetime, datetime]] = field(default_factory=list)
    raw: list[tuple[int, datetime, datetime]] = field(default_factory=list)


def pieces(of: Iterable[Bucket], counted_days: Iterable[date]) -> Pieces:
    """`counted_days` are the days (UTC) whose daily numbers are right."""
    cut = Pieces()
    days = sorted(counted_days)
    for number, bucket in enumerate(of):
        first, last = ceil_hour(bucket.start), floor_hour(bucket.end)
        if first > last:
            cut.raw.append((number, bucket.start, bucket.end))
            continue
        if bucket.start < first:
            cut.raw.append((number, bucket.start, first))
        if last < bucket.end:
            cut.raw.append((number, last, bucket.end))
        _cut_hours(cut, number, first, last, days)
    return cut


def _cut_hours(
    cut: Pieces, number: int, first: datetime, last: datetime, days: Sequence[date]
) -> None:
    position = first
    for day in days[bisect_left(days, first.astimezone(UTC).date()) :]:
        begin = midnight(day, UTC)
        if begin + DAY > last:
            break
        if begin < position:
            continue
        if position < begin:
            cut.hours.append((number, position, begin))
        cut.days.append((number, day))
        position = begin + DAY
    if position < last:
        cut.hours.append((number, position, last))


def groups_limit(asked: int, bucket_count: int) -> int:
    """How many series fit: as many as asked for, as long as the reply stays bounded."""
    wanted = min(asked or GROUPS_DEFAULT, GROUPS_MAX)
    return max(1, min(wanted, POINTS_MAX // max(1, bucket_count)))


def today(now: datetime, zone: ZoneInfo) -> Bucket:
    """The zone's day so far."""
    return Bucket(midnight(now.astimezone(zone).date(), zone), now)


# ---- finality ----


@dataclass(frozen=True, slots=True)
class Finality:
    as_of: datetime
    late_events: int
    revision: int
    final_after: datetime
    is_final: bool
    hours_pending: int


def finality(
    end: datetime,
    *,
    now: datetime,
    oldest_mark: datetime | None,
    hours_pending: int,
    revision: int,
    late_events: int,
) -> Finality:
    """How final numbers up to `end` are; `oldest_mark` is the first event not counted yet."""
    final_after = end + EVENT_AGE_MAX + FINAL_MARGIN
    return Finality(
        as_of=now if oldest_mark is None else min(now, oldest_mark),
        late_events=late_events,
        revision=revision,
        final_after=final_after,
        is_final=now >= final_after and not hours_pending,
        hours_pending=hours_pending,
    )
