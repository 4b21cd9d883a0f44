"""Shedding on a simulated clock: a server with a few workers and far too many callers."""

import heapq
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.api.options.v1 import policy_pb2
from trunkline.api.options.v1.policy_pb2 import Priority
from trunkline_server.rpc.shedding import LIMIT_MIN, Overloaded, Shedder

CRITICAL = policy_pb2.PRIORITY_CRITICAL
NORMAL = policy_pb2.PRIORITY_NORMAL
BULK = policy_pb2.PRIORITY_BULK

WORKERS = 10
SERVICE_S = 0.010
CAPACITY_PER_S = WORKERS / SERVICE_S
DEADLINE_S = 0.5


@dataclass
class World:
    """Calls arrive at random, wait for a worker in order, and count when they end in time."""

    shedder: Shedder | None
    seed: int = 1
    now: float = 0.0
    served: dict[int, int] = field(default_factory=dict)
    offered: dict[int, int] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)

    def run(self, load: float, shares: dict[Priority.ValueType, float], seconds: float) -> None:
        draw = random.Random(self.seed)
        free = [0.0] * WORKERS
        ends: list[tuple[float, float]] = []
        until, measured_from = self.now + seconds, self.now + seconds / 3
        while self.now < until:
            self.now += draw.expovariate(load * CAPACITY_PER_S)
            arrival = self.now
            while ends and ends[0][0] <= arrival:
                self._end(*heapq.heappop(ends))
            self.now = arrival
            kind = draw.choices(list(shares), list(shares.values()))[0]
            measured = arrival >= measured_from
            self.offered[kind] = self.offered.get(kind, 0) + measured
            if not self._admitted(kind):
                continue
            start = max(arrival, heapq.heappop(free))
            end = start + draw.uniform(0.5, 1.5) * SERVICE_S
            heapq.heappush(free, end)
            heapq.heappush(ends, (end, arrival))
            if measured:
                self.latencies.append(end - arrival)
                self.served[kind] = self.served.get(kind, 0) + (end - arrival <= DEADLINE_S)

    def _admitted(self, kind: Priority.ValueType) -> bool:
        if self.shedder is None:
            return True
        try:
            self.shedder.admit(kind, DEADLINE_S)
        except Overloaded:
            return False
        return True

    def _end(self, end: float, arrival: float) -> None:
        self.now = end
        if self.shedder is not None:
            self.shedder.release(end - arrival, end - arrival <= DEADLINE_S)


def world(seed: int = 1) -> World:
    made = World(None, seed)
    made.shedder = Shedder(clock=lambda: made.now, jitter=lambda: 0.5)
    return made


def goodput(made: World, seconds: float) -> float:
    return sum(made.served.values()) / (seconds * 2 / 3) / CAPACITY_PER_S


MIXED: dict[Priority.ValueType, float] = {CRITICAL: 0.2, NORMAL: 0.4, BULK: 0.4}


@pytest.mark.parametrize("load", [2, 10])
def test_goodput_and_latency_hold_under_overload(load: float) -> None:
    made = world()
    made.run(load, MIXED, 6)
    assert goodput(made, 6) >= 0.85
    made.latencies.sort()
    assert made.latencies[int(len(made.latencies) * 0.99)] < DEADLINE_S / 2


def test_without_shedding_the_same_load_serves_almost_nobody() -> None:
    made = World(None)
    made.run(2, MIXED, 6)
    assert goodput(made, 6) < 0.1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_critical_is_served_first_and_bulk_dropped_first(seed: int) -> None:
    made = world(seed)
    made.run(2, MIXED, 6)
    share = {kind: made.served.get(kind, 0) / made.offered[kind] for kind in MIXED}
    assert share[CRITICAL] >= 0.99  # it alone is 0.4 of what the server can do
    assert share[CRITICAL] > share[NORMAL] > share[BULK]


def test_a_light_load_is_never_refused() -> None:
    made = world()
    made.run(0.5, MIXED, 6)
    assert made.served == made.offered


def test_recovers_when_the_overload_ends() -> None:
    made = world()
    made.run(10, MIXED, 3)
    made.served, made.offered = {}, {}
    made.run(0.5, MIXED, 6)
    assert sum(made.served.values()) >= 0.999 * sum(made.offered.values())


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    shedder = Shedder()
    for _ in range(LIMIT_MIN):
        shedder.admit(NORMAL, 10)
    for _ in range(100):
        shedder.admit(NORMAL, None)
        shedder.release(0.2, True)
    with pytest.raises(Overloaded):
        shedder.admit(CRITICAL, 0.1)
    shedder.admit(CRITICAL, 0.5)


def test_an_estimate_out_of_date_locks_nobody_out() -> None:
    shedder = Shedder()
    for _ in range(100):
        shedder.admit(NORMAL, None)
        shedder.release(5.0, True)
    for _ in range(200):
        shedder.admit(CRITICAL, 0.1)  # nobody is there: it is tried
        shedder.release(0.001, True)


def test_a_late_loop_refuses_bulk_and_lowers_the_limit() -> None:
    shedder = Shedder(limit_start=100)
    shedder.observe_lag(0.2)
    assert shedder.limit == 80
    shedder.admit(BULK, None)  # one, so that it does not starve
    with pytest.raises(Overloaded):
        shedder.admit(BULK, None)
    shedder.admit(NORMAL, None)
    for _ in range(100):
        shedder.observe_lag(0.2)
    assert shedder.limit == LIMIT_MIN
    shedder.observe_lag(0.001)
    shedder.admit(BULK, None)


def test_refusals_say_when_to_come_back_and_not_all_at_once() -> None:
    shedder = Shedder(limit_start=LIMIT_MIN)
    for _ in range(LIMIT_MIN):
        shedder.admit(CRITICAL, None)
    pauses = set()
    for _ in range(20):
        shedder._wait_s = 0.2
        with pytest.raises(Overloaded) as refused:
            shedder.admit(NORMAL, None)
        pauses.add(refused.value.retry_after_s)
    assert len(pauses) == 20 and all(0.05 <= (pause or 0) <= 2 for pause in pauses)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("admit"), st.sampled_from([CRITICAL, NORMAL, BULK])),
            st.tuples(st.just("release"), st.floats(0, 3)),
            st.tuples(st.just("lag"), st.floats(0, 1)),
        ),
        max_size=300,
    )
)
def test_counts_stay_true_and_the_reserve_holds(steps: list[tuple[str, Any]]) -> None:
    clock = [0.0]
    shedder = Shedder(clock=lambda: clock[0])
    inside = 0
    for action, value in steps:
        clock[0] += 0.03
        if action == "admit":
            try:
                shedder.admit(value, None)
            except Overloaded:
                assert inside >= 1
            else:
                inside += 1
                if value != CRITICAL:
                    assert inside - 1 < 0.8 * shedder.limit
        elif action == "release" and inside:
            inside -= 1
            shedder.release(value, True)
        elif action == "lag":
            shedder.observe_lag(value)
        assert shedder.inflight == inside
        assert LIMIT_MIN <= shedder.limit <= 1000
