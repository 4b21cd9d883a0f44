"""Series, exports and overviews through a real channel."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import asyncpg
import grpc.aio
import pytest

from tests.running import Running, details
from tests.stats.conftest import Stats, call, count_everything
from trunkline.api.stats.v1 import stats_service_pb2 as pb
from trunkline_server import facts
from trunkline_server.db import Database
from trunkline_server.facts import Fact
from trunkline_server.rpc.caller import Role
from trunkline_server.stats import rules

DAY = timedelta(days=1)


def recent_hour() -> datetime:
    return rules.floor_hour(datetime.now(UTC)) - timedelta(hours=3)


async def test_every_metric_is_listed_with_units_and_can_be_asked_for(stats: Stats) -> None:
    listed = await stats.stub.ListMetrics(pb.ListMetricsRequest(), metadata=stats.as_(Role.TRAINER))
    assert {m.metric for m in listed.metrics} == {
        "calls", "validations", "imports", "content", "sign_ins"
    }  # fmt: skip
    for metric in listed.metrics:
        assert all(value.unit in ("1", "s") for value in metric.values)
        for interval in metric.intervals:
            reply = await stats.ask(
                metric.metric, interval=interval, group_by=list(metric.dimensions)
            )
            assert list(reply.value_names) == [value.name for value in metric.values]


async def test_without_events_buckets_are_there_and_ratios_are_not(stats: Stats) -> None:
    end = recent_hour()
    reply = await stats.ask("validations", end - timedelta(hours=5), end, interval=pb.INTERVAL_HOUR)
    (series,) = reply.series
    assert len(series.points) == 5
    for point in series.points:
        count, eligible, ratio = point.values
        assert (count.value, eligible.value) == (0, 0)
        assert not ratio.HasField("value")


async def test_a_late_event_corrects_the_number_and_says_so(
    stats: Stats, worker_db: Database
) -> None:
    hour = recent_hour()
    asked: dict[str, Any] = {"start": hour, "end": hour + timedelta(hours=1)}
    await stats.record(call(hour + timedelta(minutes=5)), call(hour + timedelta(minutes=6)))
    pending = await stats.ask(**asked)
    assert pending.finality.hours_pending == 1
    assert pending.finality.as_of.ToDatetime(UTC) <= datetime.now(UTC)
    assert pending.series[0].points[0].values[0].value == 0
    await count_everything(worker_db, stats.org.org_id)
    first = await stats.ask(**asked)
    assert first.series[0].points[0].values[0].value == 2
    assert (first.finality.late_events, first.finality.revision) == (0, 1)
    assert first.finality.hours_pending == 0 and not first.finality.is_final

    await stats.record(call(hour + timedelta(minutes=7)))
    await count_everything(worker_db, stats.org.org_id)
    corrected = await stats.ask(**asked)
    assert corrected.series[0].points[0].values[0].value == 3
    assert (corrected.finality.late_events, corrected.finality.revision) == (1, 2)
    end = corrected.finality.final_after.ToDatetime(UTC)
    assert end >= hour + timedelta(hours=1) + timedelta(days=35)

    # Counting again without news is no correction.
    async with worker_db.tenant_tx(stats.org.org_id) as tx:
        await tx.execute(
            "INSERT INTO stats_dirty (org_id, hour, kind, mark_id) VALUES ($1, $2, 'CALL', $3)",
            *(stats.org.org_id, hour, uuid4()),
        )
    await count_everything(worker_db, stats.org.org_id)
    again = await stats.ask(**asked)
    assert again.finality.revision == 2
    assert again.series == corrected.series


async def test_a_clock_change_makes_days_of_23_and_25_hours(
    stats: Stats, worker_db: Database, admin: asyncpg.Connection
) -> None:
    """The service's own facts of the past, at each hour of both days."""
    zone = ZoneInfo("Europe/Berlin")
    for first, hours in ((date(2026, 3, 29), 23), (date(2026, 10, 25), 25)):
        start = rules.midnight(first, zone)
        await put(worker_db, stats, [start + timedelta(hours=h) for h in range(-1, hours + 1)])
        reply = await stats.ask(
            "calls",
            start - DAY,
            start + 2 * DAY,
            interval=pb.INTERVAL_DAY,
            time_zone=zone.key,
            values=["count"],
        )
        by_day = {
            p.start_time.ToDatetime(UTC).astimezone(zone).date(): p.values[0].value
            for p in reply.series[0].points
        }
        assert by_day[first] == hours
        assert by_day[first - DAY] == 1


async def put(db: Database, stats: Stats, times: list[datetime], outcome: str = "ok") -> None:
    async with db.tenant_tx(stats.org.org_id) as tx:
        made = [Fact("CALL", at, UUID(int=1), outcome) for at in times]
        await facts.append(tx, stats.org.org_id, made)
    await count_everything(db, stats.org.org_id)


async def test_zones_that_cut_hours_are_counted_from_the_events(
    stats: Stats, worker_db: Database
) -> None:
    zone = ZoneInfo("Asia/Kathmandu")  # 5:45
    midnight = rules.midnight((datetime.now(UTC) - 3 * DAY).date(), zone)
    await put(worker_db, stats, [midnight - timedelta(minutes=1), midnight, midnight + DAY])
    reply = await stats.ask(
        "calls", midnight - DAY, midnight + 2 * DAY, interval=pb.INTERVAL_DAY, time_zone=zone.key,
        values=["count"],
    )  # fmt: skip
    assert [p.values[0].value for p in reply.series[0].points] == [1, 1, 1]


async def test_groups_are_the_largest_and_a_cut_is_told(stats: Stats, worker_db: Database) -> None:
    hour = recent_hour()
    for n in range(1, 6):
        await put(worker_db, stats, [hour] * n, outcome=f"o{n}")
    reply = await stats.ask("calls", group_by=["outcome"], max_groups=2, values=["count"])
    assert [(s.keys[0].value, s.points[0].values[0].value) for s in reply.series] == [
        ("o5", 5), ("o4", 4)
    ]  # fmt: skip
    assert reply.groups_cut and reply.groups_total == 5
    whole = await stats.ask("calls", group_by=["outcome"])
    assert not whole.groups_cut and len(whole.series) == 5


async def test_filters_must_all_hold(stats: Stats, worker_db: Database) -> None:
    hour = recent_hour()
    await put(worker_db, stats, [hour, hour], outcome="a")
    await put(worker_db, stats, [hour], outcome="b")

    async def count(*filters: tuple[str, list[str]]) -> float | None:
        made = [pb.DimensionFilter(dimension=d, values=v) for d, v in filters]
        return await stats.value("count", filters=made)

    assert await count(("outcome", ["a"])) == 2
    assert await count(("outcome", ["a", "b"])) == 3
    assert await count(("outcome", ["a", "b"]), ("outcome", ["b"])) == 1
    assert await count(("outcome", ["a"]), ("outcome", ["b"])) == 0
    assert await count(("agent", [str(UUID(int=1))])) == 3
    assert await count(("agent", [str(UUID(int=2))])) == 0
    assert await count(("outcome", ["%"])) == 0


async def test_agents_are_counted_once_and_named(
    stats: Stats, worker_db: Database, admin: asyncpg.Connection
) -> None:
    hour = recent_hour()
    await stats.record(call(hour), call(hour), role=Role.AGENT)
    await stats.record(call(hour))
    await count_everything(worker_db, stats.org.org_id)
    assert await stats.value("agents") == 2
    reply = await stats.ask("calls", group_by=["agent"], values=["count", "agents"])
    names = [s.keys[0].display_name for s in reply.series]
    assert names == ["acme AGENT", "acme SYSTEM"]
    assert [v.value for v in reply.series[0].points[0].values] == [2, 1]


def ranged(start: datetime, end: datetime, **fields: Any) -> pb.StatsQuery:
    query = pb.StatsQuery(**{"metric": "calls", **fields})
    query.from_time.FromDatetime(start)
    query.to_time.FromDatetime(end)
    return query


NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (ranged(NOW, NOW + DAY, metric="nothing"), "METRIC_UNKNOWN"),
        (ranged(NOW, NOW + DAY, group_by=["colour"]), "DIMENSION_UNKNOWN"),
        (
            ranged(NOW, NOW + DAY, filters=[pb.DimensionFilter(dimension="code", values=["x"])]),
            "DIMENSION_UNKNOWN",
        ),
        (
            ranged(NOW, NOW + DAY, filters=[pb.DimensionFilter(dimension="agent", values=["x"])]),
            "INVALID_FIELD",
        ),
        (ranged(NOW, NOW + DAY, time_zone="Europe/Atlantis"), "TIME_ZONE_UNKNOWN"),
        (ranged(NOW, NOW + DAY, time_zone="Europe"), "TIME_ZONE_UNKNOWN"),
        (ranged(NOW, NOW + DAY, time_zone="../../etc/passwd"), "INVALID_FIELD"),
        (ranged(NOW, NOW - DAY), "INVALID_FIELD"),
        (ranged(NOW, NOW), "INVALID_FIELD"),
        (ranged(NOW, NOW + DAY, interval=9), "INVALID_FIELD"),
        (ranged(NOW, NOW + DAY, values=["mood"]), "INVALID_FIELD"),
        (ranged(NOW, NOW + DAY, max_groups=-1), "INVALID_FIELD"),
        (ranged(NOW, NOW + 3_661 * DAY), "TOO_MANY_BUCKETS"),
        (ranged(NOW, NOW + 110 * DAY, interval=pb.INTERVAL_HOUR), "TOO_MANY_BUCKETS"),
        (
            ranged(datetime(9999, 1, 1, tzinfo=UTC), datetime(9999, 1, 2, tzinfo=UTC)),
            "INVALID_FIELD",
        ),
        (pb.StatsQuery(metric="calls"), "INVALID_FIELD"),
    ],
)
async def test_bad_questions_are_refused(stats: Stats, query: pb.StatsQuery, reason: str) -> None:
    metadata = stats.as_(Role.ADMIN)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stats.stub.QueryStats(pb.QueryStatsRequest(query=query), metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(caught.value)["reason"] == reason
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stats.stub.ExportStats(
            pb.ExportStatsRequest(query=query), metadata=metadata
        ):
            pass
    assert details(caught.value)["reason"] == reason


async def test_an_hour_without_its_events_cannot_be_cut(
    stats: Stats, worker_db: Database, admin: asyncpg.Connection
) -> None:
    hour = rules.floor_hour(datetime.now(UTC)) - 100 * DAY
    await put(worker_db, stats, [hour])
    await admin.execute("DELETE FROM events")
    assert await stats.value("count", start=hour, end=hour + DAY) == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stats.ask("calls", hour + timedelta(minutes=30), hour + DAY)
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
    assert details(caught.value)["reason"] == "STATS_RANGE_NOT_KEPT"


async def exported(stats: Stats, **fields: Any) -> tuple[list[dict[str, str]], pb.Finality]:
    parts = [
        part
        async for part in stats.stub.ExportStats(
            pb.ExportStatsRequest(query=stats.query(**fields)), metadata=stats.as_(Role.ADMIN)
        )
    ]
    text = b"".join(part.data for part in parts).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert parts[-1].rows_sent == len(rows)
    return rows, parts[-1].finality


async def test_an_export_is_the_series_as_csv_and_audited(
    stats: Stats, worker_db: Database, admin: asyncpg.Connection
) -> None:
    hour = recent_hour()
    await put(worker_db, stats, [hour, hour], outcome="-a")
    await put(worker_db, stats, [hour + timedelta(hours=1)], outcome="b")
    rows, finality = await exported(
        stats, start=hour, end=hour + timedelta(hours=3), interval=pb.INTERVAL_HOUR
    )
    assert [row["count"] for row in rows] == ["2", "1", "0"]
    assert rows[0]["duration_p50"] == ""
    assert finality.revision == 2
    grouped, _ = await exported(
        stats,
        start=hour,
        end=hour + timedelta(hours=3),
        interval=pb.INTERVAL_HOUR,
        group_by=["outcome"],
        values=["count"],
    )
    assert [(row["outcome"], row["count"]) for row in grouped] == [("'-a", "2"), ("b", "1")]
    assert (
        await admin.fetchval("SELECT count(*) FROM audit_log WHERE action = 'stats.ExportStats'")
        == 2
    )


async def overview(stats: Stats, **fields: Any) -> pb.Overview:
    request = pb.GetOverviewRequest(**fields)
    reply = await stats.stub.GetOverview(request, metadata=stats.as_(Role.ADMIN))
    return reply.overview


async def test_an_overview_has_all_that_happened(stats: Stats, worker_db: Database) -> None:
    agent = uuid4()
    now = datetime.now(UTC)
    org_id = stats.org.org_id
    made = [
        Fact("VALIDATION", now, agent, "ELIGIBLE", 3),
        Fact("VALIDATION", now, agent, "NOT_FOUND"),
        Fact("IMPORT_ROWS", now, agent, facts.ROWS_ACCEPTED, 90),
        Fact("IMPORT_ROWS", now, agent, "BAD_DATE", 10),
        Fact("IMPORT_ROWS", now, agent, facts.IMPORT_ENDED),
        Fact("ARTICLE_VIEW", now, agent),
        Fact("ARTICLE_SEARCH", now, agent, facts.SEARCH_HIT),
        Fact("ARTICLE_SEARCH", now, agent, facts.SEARCH_MISS),
        Fact("ARTICLE_VOTE", now, agent, facts.VOTE_HELPFUL),
        Fact("ARTICLE_VOTE", now, agent, facts.VOTE_NOT_HELPFUL),
        Fact("SIGN_IN", now, agent, facts.SIGN_IN_OK),
        Fact("SIGN_IN", now, agent, facts.SIGN_IN_OK),
        Fact("SIGN_IN", now, None, facts.SIGN_IN_FAILED),
    ]
    async with worker_db.tenant_tx(org_id) as tx:
        await facts.append(tx, org_id, made)
    await stats.record(call(now, seconds=100), call(now, seconds=300, outcome="dropped"))
    await count_everything(worker_db, org_id)
    seen = await overview(stats)
    assert seen.calls.count == 2 and seen.calls.active_agents == 1
    assert dict(seen.calls.by_outcome) == {"ok": 1, "dropped": 1}
    assert seen.calls.handle_seconds_p50 == pytest.approx(100, rel=0.01)
    assert seen.validations.count == 4 and seen.validations.eligible_ratio == 0.75
    assert seen.imports.rows_accepted == 90 and seen.imports.rejected_ratio == 0.1
    assert dict(seen.imports.rejected_by_code) == {"BAD_DATE": 10} and seen.imports.imports == 1
    assert (seen.content.views, seen.content.searches, seen.content.misses) == (1, 2, 1)
    assert (seen.content.helpful_votes, seen.content.not_helpful_votes) == (1, 1)
    assert (seen.sign_ins.count, seen.sign_ins.failed, seen.sign_ins.users) == (2, 1, 1)
    assert seen.finality.hours_pending == 0
    # A fact that is told twice is there once.
    async with worker_db.tenant_tx(org_id) as tx:
        await facts.append(tx, org_id, made)
    await count_everything(worker_db, org_id)
    assert (await stats.value("count", metric="sign_ins")) == 2


async def test_an_empty_overview_divides_by_nothing(stats: Stats) -> None:
    seen = await overview(stats)
    assert not seen.calls.HasField("handle_seconds_p50")
    assert not seen.validations.HasField("eligible_ratio")
    assert not seen.imports.HasField("rejected_ratio")
    assert not seen.content.HasField("miss_ratio")


async def test_an_overview_is_kept_and_made_again_by_one(
    server: Running, stats: Stats, worker_db: Database
) -> None:
    await overview(stats)
    overviews = _overviews(server)
    made = overviews.made
    await asyncio.gather(*(overview(stats) for _ in range(20)))
    assert overviews.made == made
    overviews._changed(str(stats.org.org_id))
    clock = overviews._clock
    overviews._clock = lambda: clock() + 2  # past the time in which nothing is made again
    await asyncio.gather(*(overview(stats) for _ in range(20)))
    assert overviews.made == made + 1


def _overviews(server: Running) -> Any:
    return server.server.stats.overviews


async def test_a_watch_pushes_changes_only_and_says_good_bye(
    server: Running, stats: Stats, worker_db: Database
) -> None:
    watch = stats.stub.WatchOverview(
        pb.WatchOverviewRequest(time_zone="UTC"), metadata=stats.as_(Role.ADMIN)
    )
    replies: AsyncIterator[pb.WatchOverviewResponse] = aiter(watch)
    first = await anext(replies)
    assert first.overview.calls.count == 0
    await stats.record(call(datetime.now(UTC)))
    await count_everything(worker_db, stats.org.org_id)
    _overviews(server)._changed(str(stats.org.org_id))
    server.server.stats._wake_watchers(str(stats.org.org_id))
    second = await anext(replies)
    assert second.overview.calls.count == 1
    # Nothing new: whoever is woken has nothing to say.
    server.server.stats._wake_watchers(str(stats.org.org_id))
    stopping = asyncio.create_task(server.server.stop())
    last = await anext(replies)
    assert last.go_away and not last.HasField("overview")
    assert [reply async for reply in replies] == []
    await stopping


@pytest.mark.parametrize(("from_time", "to_time"), [(0, -1), (4e9, None)])
async def test_an_overviews_range_is_checked(
    stats: Stats, from_time: float, to_time: float | None
) -> None:
    request = pb.GetOverviewRequest()
    request.from_time.FromSeconds(int(from_time))
    if to_time is not None:
        request.to_time.FromSeconds(int(to_time))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stats.stub.GetOverview(request, metadata=stats.as_(Role.ADMIN))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_another_organisation_sees_none_of_it(
    server: Running, stats: Stats, worker_db: Database
) -> None:
    await put(worker_db, stats, [recent_hour()])
    other = Stats(stats.stub, await server.org("other"), stats.database_url)
    assert await stats.value("count") == 1
    assert await other.value("count") == 0
    assert (await overview(other)).calls.count == 0
    reply = await other.ask("calls", group_by=["agent"])
    assert reply.groups_total == 0 and not reply.series
