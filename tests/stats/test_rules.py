"""Buckets over zones and clock changes, pieces, ratios, finality; histograms and exact values."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.stats.model import quantile
from trunkline_server.stats import rules
from trunkline_server.stats.histogram import RELATIVE_ERROR, Histogram, bin_of, seconds_of
from trunkline_server.stats.rules import Bucket, Interval, Totals

ZONES = [
    "UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu",
    "America/Havana", "Australia/Lord_Howe", "America/Sao_Paulo", "Pacific/Apia",
]  # fmt: skip
# Hypothesis wants its bounds without a zone.
EARLY, LATE = datetime(2011, 1, 1), datetime(2030, 1, 1)  # noqa: DTZ001
NEW_YEAR, FEBRUARY = datetime(2026, 1, 1), datetime(2026, 2, 1)  # noqa: DTZ001
durations = st.lists(st.integers(0, 604_800_000_000), min_size=1, max_size=300)


@given(durations, st.sampled_from([0.5, 0.9, 0.99, 0.0, 1.0]))
def test_a_percentile_is_within_one_percent_of_the_exact_one(
    values: list[int], share: float
) -> None:
    exact = quantile([value / 1e6 for value in values], share)
    found = Histogram.of(values).quantile_s(share)
    assert exact is not None and found is not None
    assert abs(found - exact) <= RELATIVE_ERROR * exact * (1 + 1e-9)


@given(durations, durations, st.integers(0, 3))
def test_histograms_add_up_to_the_histogram_of_all(
    some: list[int], others: list[int], cut: int
) -> None:
    merged = Histogram.of(some[:cut])
    merged.merge(Histogram.of(others))
    merged.merge(Histogram.of(some[cut:]))
    assert merged.counts == Histogram.of(some + others).counts


def test_nothing_has_no_percentile() -> None:
    assert Histogram().quantile_s(0.5) is None
    assert Histogram.of([0, 0]).quantile_s(0.99) == 0.0


async def test_the_database_bins_as_we_do(admin: asyncpg.Connection) -> None:
    values = [0, 1, 2, 3, 999_999, 1_000_000, 604_800_000_000]
    values += [int(1.03**n) for n in range(900)]
    # Where a bin ends, too.
    values += [int(seconds_of(n) * 1e6 * 1.01 / 1.0) + d for n in range(300, 1_300) for d in (0, 1)]
    rows = await admin.fetch("SELECT v, stats_bin(v) AS bin FROM unnest($1::bigint[]) AS v", values)
    assert [row["bin"] for row in rows] == [bin_of(row["v"]) for row in rows]
    assert await admin.fetchval("SELECT stats_bin(NULL)") is None


@given(
    st.datetimes(EARLY, LATE, timezones=st.just(UTC)),
    st.integers(1, 90 * 24 * 60),
    st.sampled_from(list(Interval)),
    st.sampled_from(ZONES),
)
def test_buckets_cover_the_range_without_gap_or_overlap(
    start: datetime, minutes: int, interval: Interval, zone: str
) -> None:
    end = start + timedelta(minutes=minutes)
    made = rules.buckets(start, end, interval, ZoneInfo(zone), limit=10_000)
    assert made is not None
    assert (made[0].start, made[-1].end) == (start, end)
    for before, after in pairwise(made):
        assert before.end == after.start
    assert all(bucket.start < bucket.end for bucket in made)
    if interval is Interval.DAY:
        for bucket in made:
            local = {t.astimezone(ZoneInfo(zone)).date() for t in _inside(bucket)}
            assert len(local) == 1


def _inside(bucket: Bucket) -> list[datetime]:
    return [bucket.start, bucket.end - timedelta(microseconds=1)]


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", date(2026, 3, 29), 23),
        ("Europe/Berlin", date(2026, 10, 25), 25),
        ("Europe/Berlin", date(2026, 6, 1), 24),
        ("America/New_York", date(2026, 11, 1), 25),
        ("America/Havana", date(2026, 3, 8), 23),  # its midnight is skipped
        ("Australia/Lord_Howe", date(2026, 4, 5), 24.5),
    ],
)
def test_a_day_is_as_long_as_its_clock_says(zone: str, day: date, hours: float) -> None:
    start = rules.midnight(day, ZoneInfo(zone))
    end = rules.midnight(day + timedelta(days=1), ZoneInfo(zone))
    assert end - start == timedelta(hours=hours)
    made = rules.buckets(start, end, Interval.DAY, ZoneInfo(zone))
    assert made == [Bucket(start, end)]


def test_a_day_that_a_zone_left_out_has_no_bucket() -> None:
    zone = ZoneInfo("Pacific/Apia")  # went over the date line: no 30 December 2011
    start = rules.midnight(date(2011, 12, 29), zone)
    end = rules.midnight(date(2012, 1, 1), zone)
    made = rules.buckets(start, end, Interval.DAY, zone)
    assert made is not None
    assert [b.start.astimezone(zone).date().day for b in made] == [29, 31]


def test_over_the_limit_there_are_no_buckets() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    assert rules.buckets(start, start + timedelta(hours=5), Interval.HOUR, UTC, limit=5)
    assert rules.buckets(start, start + timedelta(hours=6), Interval.HOUR, UTC, limit=5) is None


@given(
    st.datetimes(NEW_YEAR, FEBRUARY, timezones=st.just(UTC)),
    st.integers(1, 20 * 24 * 60),
    st.sampled_from(list(Interval)),
    st.sampled_from(ZONES),
    st.sets(st.dates(date(2026, 1, 1), date(2026, 2, 20))),
)
def test_pieces_cover_each_bucket_exactly_once(
    start: datetime, minutes: int, interval: Interval, zone: str, counted: set[date]
) -> None:
    made = rules.buckets(start, start + timedelta(minutes=minutes), interval, ZoneInfo(zone)) or []
    cut = rules.pieces(made, counted)
    spans = [(n, s, e) for n, s, e in (*cut.hours, *cut.raw)]
    for number, day in cut.days:
        assert day in counted
        begin = rules.midnight(day, UTC)
        spans.append((number, begin, begin + timedelta(days=1)))
    for number, bucket in enumerate(made):
        mine = sorted((s, e) for n, s, e in spans if n == number)
        assert (mine[0][0], mine[-1][1]) == (bucket.start, bucket.end)
        assert all(a[1] == b[0] for a, b in pairwise(mine))
    assert all(s == rules.floor_hour(s) and e == rules.floor_hour(e) for _, s, e in cut.hours)


def test_ratios_of_nothing_are_nothing() -> None:
    for metric in rules.METRICS.values():
        for value in metric.values:
            found = value.of(Totals())
            if "ratio" in value.name or value.unit == "s":
                assert found is None, value.name
            else:
                assert found == 0, value.name


def test_ratios_are_shares() -> None:
    totals = Totals()
    totals.add("IMPORT_ROWS", "accepted", 90)
    totals.add("IMPORT_ROWS", "BAD_DATE", 6)
    totals.add("IMPORT_ROWS", "TOO_LONG", 4)
    totals.add("IMPORT_ROWS", "ended", 2)
    values = {v.name: v.of(totals) for v in rules.METRICS["imports"].values}
    assert values == {
        "rows_accepted": 90, "rows_rejected": 10, "rejected_ratio": 0.1, "imports": 2
    }  # fmt: skip


def test_groups_stay_within_a_reply() -> None:
    assert rules.groups_limit(0, 1) == 50
    assert rules.groups_limit(5_000, 1) == 1_000
    assert rules.groups_limit(1_000, 2_000) == 10
    assert rules.groups_limit(1, 1_000_000) == 1


def test_numbers_are_final_when_no_event_can_come_and_none_waits() -> None:
    end = datetime(2026, 1, 31, tzinfo=UTC)

    def at(now: datetime, pending: int = 0) -> rules.Finality:
        mark = now - timedelta(seconds=9) if pending else None
        return rules.finality(
            end, now=now, oldest_mark=mark, hours_pending=pending, revision=3, late_events=0
        )

    early = at(end + timedelta(days=35))
    assert not early.is_final and early.final_after > end + timedelta(days=35)
    late = at(end + timedelta(days=36))
    assert late.is_final and late.as_of == end + timedelta(days=36)
    pending = at(end + timedelta(days=36), pending=2)
    assert not pending.is_final
    assert pending.as_of == end + timedelta(days=36) - timedelta(seconds=9)


@given(st.integers(1, 604_800_000_000))
def test_a_bin_stands_for_its_durations(value: int) -> None:
    assert math.isclose(seconds_of(bin_of(value)), value / 1e6, rel_tol=RELATIVE_ERROR + 1e-9)
