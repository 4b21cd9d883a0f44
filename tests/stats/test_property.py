"""Any order, duplication and lateness of the same events end in the numbers of a plain model."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from tests.running import make_org
from tests.stats.conftest import Stats, call, count_everything
from tests.stats.model import Told, counts, once, quantile
from trunkline.api.stats.v1 import stats_service_pb2 as pb
from trunkline_server.db import Database
from trunkline_server.stats import rules
from trunkline_server.stats.histogram import RELATIVE_ERROR
from trunkline_server.stats.rules import Interval

AGENTS = [str(UUID(int=n)) for n in (7, 8, 9)]
OUTCOMES = ["resolved", "transferred", "dropped"]
INTERVALS = {
    Interval.HOUR: pb.INTERVAL_HOUR,
    Interval.DAY: pb.INTERVAL_DAY,
    Interval.MONTH: pb.INTERVAL_MONTH,
    Interval.WHOLE: pb.INTERVAL_UNSPECIFIED,
}
ZONES = ["UTC", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu"]


def made_up(draw: random.Random, now: datetime, count: int) -> list[Told]:
    """Calls of the last 30 days, in clusters, so that hours and days have several."""
    centres = [now - timedelta(minutes=draw.randrange(30 * 24 * 60)) for _ in range(6)]
    return [
        Told(
            event_id=str(UUID(int=draw.getrandbits(128), version=4)),
            at=min(now, draw.choice(centres) + timedelta(seconds=draw.randrange(9_000))),
            agent=draw.choice(AGENTS),
            outcome=draw.choice(OUTCOMES),
            seconds=draw.choice([0.0, 1.0, draw.uniform(0, 10), draw.uniform(10, 9_000)]),
        )
        for _ in range(count)
    ]


def as_event(told: Told) -> pb.Event:
    return call(
        told.at,
        event_id=told.event_id,
        agent=told.agent,
        seconds=told.seconds,
        outcome=told.outcome,
    )


async def deliver(draw: random.Random, stats: Stats, told: list[Told], worker: Database) -> None:
    """In any order, some of it several times, in batches at once, with roll-ups in between."""
    sent = told + draw.choices(told, k=len(told) // 2)
    draw.shuffle(sent)
    while sent:
        batches = []
        for _ in range(draw.randint(1, 3)):
            size = draw.randint(1, 120)
            batches.append(sent[:size])
            sent = sent[size:]
        steps = [stats.record(*map(as_event, batch)) for batch in batches if batch]
        if draw.random() < 0.5:
            # While events come in: what it misses must stay marked.
            await asyncio.gather(*steps, count_everything(worker, stats.org.org_id))
        else:
            await asyncio.gather(*steps)
    await count_everything(worker, stats.org.org_id)


@pytest.mark.parametrize("seed", range(6))
async def test_the_numbers_are_the_models(stats: Stats, worker_db: Database, seed: int) -> None:
    draw = random.Random(seed)
    now = datetime.now(UTC)
    told = made_up(draw, now, 300)
    await deliver(draw, stats, told, worker_db)
    for interval, named in INTERVALS.items():
        zone = ZoneInfo(draw.choice(ZONES))
        start = now - timedelta(minutes=draw.randrange(29 * 24 * 60, 33 * 24 * 60))
        by_agent, by_outcome = draw.random() < 0.5, draw.random() < 0.5
        await compare(stats, told, interval, named, zone, start, now, by_agent, by_outcome)


async def compare(
    stats: Stats,
    told: list[Told],
    interval: Interval,
    named: pb.Interval.ValueType,
    zone: ZoneInfo,
    start: datetime,
    now: datetime,
    by_agent: bool,
    by_outcome: bool,
) -> None:
    end = now + timedelta(minutes=1)
    groups = ["agent"] * by_agent + ["outcome"] * by_outcome
    reply = await stats.ask(
        "calls", start, end, interval=named, group_by=groups, time_zone=zone.key
    )
    buckets = rules.buckets(start, end, interval, zone) or []
    model = counts(once(told), [(b.start, b.end) for b in buckets])
    names = list(reply.value_names)
    seen = 0
    for series in reply.series:
        key = {k.dimension: k.value for k in series.keys}
        assert len(series.points) == len(buckets)
        for number, point in enumerate(series.points):
            durations = [
                second
                for (n, agent, outcome), seconds in model.items()
                if n == number
                and key.get("agent", agent) == agent
                and key.get("outcome", outcome) == outcome
                for second in seconds
            ]
            values = dict(zip(names, point.values, strict=True))
            check(values, durations)
            seen += len(durations)
    assert seen == sum(map(len, model.values()))
    assert reply.finality.hours_pending == 0


def check(values: dict[str, pb.StatValue], durations: list[float]) -> None:
    assert values["count"].value == len(durations)
    for name, share in (("duration_p50", 0.5), ("duration_p90", 0.9), ("duration_p99", 0.99)):
        exact = quantile(durations, share)
        if exact is None:
            assert not values[name].HasField("value")
        else:
            error = abs(values[name].value - exact)
            assert error <= RELATIVE_ERROR * exact + 2e-6  # recorded in whole microseconds
    if durations:
        mean = sum(durations) / len(durations)
        assert abs(values["duration_avg"].value - mean) <= 2e-6
    else:
        assert not values["duration_avg"].HasField("value")


async def test_delivery_in_another_order_ends_in_the_same_reply(
    stats: Stats, worker_db: Database
) -> None:
    """Byte for byte, but for finality: two organisations that were told the same otherwise."""
    told = made_up(random.Random(42), datetime.now(UTC), 200)
    start, end = datetime.now(UTC) - timedelta(days=34), datetime.now(UTC) + timedelta(minutes=1)
    replies = []
    for seed in (1, 2):
        other = Stats(stats.stub, await make_org(stats.database_url, f"other-{seed}"))
        await deliver(random.Random(seed), other, told, worker_db)
        reply = await other.ask("calls", start, end, interval=pb.INTERVAL_DAY, group_by=["agent"])
        reply.ClearField("finality")
        replies.append(reply)
    assert replies[0] == replies[1]
