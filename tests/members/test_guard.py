"""The enumeration guard: stops a search early, and leaves ordinary work alone."""

from __future__ import annotations

import random

from trunkline_server.members.guard import (
    Guard,
    GuardLimits,
    Level,
    Reading,
    Sign,
)

LIMITS = GuardLimits()
MEMBERS = 200_000
SHIFT_S = 8 * 3600


def lookup(guard: Guard, number: str, missed: bool, now_s: float, agent: str = "a") -> Reading:
    return guard.record(agent, number, missed=missed, limits=LIMITS, now_s=now_s)


def test_a_sequence_is_warned_slowed_then_stopped() -> None:
    guard = Guard()
    levels = [lookup(guard, f"M{n:08}", False, n).level for n in range(1000, 1040)]
    assert levels == sorted(levels)
    assert [levels.index(level) for level in Level] == [0, 8, 12, 16]
    assert guard.reading("a", LIMITS, 1100).sign is Sign.SEQUENCE


def test_a_sequence_between_strangers_is_stopped() -> None:
    guard, rng = Guard(), random.Random(1)
    for step in range(400):
        number = 5000 + step // 2 if step % 3 else rng.randrange(10**6)
        reading = lookup(guard, f"{number:08}", False, step)
        if reading.level is Level.STOP:
            break
    assert reading.level is Level.STOP


def test_guessing_is_stopped_by_its_misses() -> None:
    guard, rng = Guard(), random.Random(2)
    readings = [
        lookup(guard, f"M{rng.randrange(10**8):08}", rng.random() < 0.95, n) for n in range(60)
    ]
    stopped = next(n for n, reading in enumerate(readings) if reading.level is Level.STOP)
    assert stopped < 40
    assert readings[stopped].sign is Sign.MISSES


def test_the_same_number_again_does_not_count() -> None:
    guard = Guard()
    for n in range(200):
        reading = lookup(guard, "M1", True, n)
    assert reading == Reading(Level.OK, Sign.NONE, 1, 1, 0)


def test_a_stop_holds_for_a_window_and_is_released_by_hand() -> None:
    guard = Guard()
    for n in range(20):
        lookup(guard, f"{n:06}", False, n)
    assert guard.reading("a", LIMITS, 30).level is Level.STOP
    assert [agent for agent, _ in guard.stopped(30)] == ["a"]
    assert guard.release("a")
    assert not guard.release("a")
    assert guard.reading("a", LIMITS, 30).level is Level.OK
    for n in range(20):
        lookup(guard, f"{n:06}", False, 100 + n)
    assert guard.reading("a", LIMITS, 120 + LIMITS.window_s).level is Level.OK
    assert guard.stopped(120 + LIMITS.window_s) == []


def test_agents_do_not_count_for_each_other() -> None:
    guard = Guard()
    for n in range(40):
        assert lookup(guard, f"{n:06}", False, n, agent=f"agent-{n % 8}").sequential <= 5
    assert guard.reading("agent-9", LIMITS, 50).lookups == 0


def test_memory_is_bounded() -> None:
    guard = Guard(agents_max=100)
    for n in range(1000):
        lookup(guard, "1", False, n, agent=str(n))
    assert guard.reading("0", LIMITS, 1000).lookups == 0
    assert guard.reading("999", LIMITS, 1000).lookups == 1


def test_it_can_be_switched_off() -> None:
    off = GuardLimits(enabled=False)
    guard = Guard()
    for n in range(100):
        assert guard.record("a", str(n), missed=True, limits=off, now_s=n).level is Level.OK


def _shift(rng: random.Random, miss_share: float, family_share: float) -> list[Reading]:
    """A shift: a call about every 90 s, typing slips tried again, families with close numbers."""
    guard, now_s = Guard(), rng.random() * 1000
    end_s, readings = now_s + SHIFT_S, []
    while now_s < end_s:
        now_s += rng.expovariate(1 / 90)
        number = rng.randrange(MEMBERS)
        callers = 1 + (rng.random() < family_share) * rng.randrange(1, 4)
        for member in range(number, number + callers):
            if rng.random() < miss_share:  # A slip: one digit wrong, then right.
                slip = list(f"{member:08}")
                slip[rng.randrange(8)] = rng.choice("0123456789")
                readings.append(lookup(guard, "M" + "".join(slip), True, now_s))
                now_s += 8
            readings.append(lookup(guard, f"M{member:08}", rng.random() < 0.03, now_s))
            now_s += 5
    return readings


def test_false_alarms_on_ordinary_shifts() -> None:
    """300 shifts with 4 to 25 % slips, and families in a tenth of the calls."""
    rng = random.Random(3)
    lookups = warned = slowed = stopped_shifts = 0
    for _ in range(300):
        readings = _shift(rng, miss_share=rng.uniform(0.04, 0.25), family_share=0.1)
        lookups += len(readings)
        warned += sum(reading.level is Level.WARN for reading in readings)
        slowed += sum(reading.level is Level.SLOW for reading in readings)
        stopped_shifts += any(reading.level is Level.STOP for reading in readings)
    print(f"{lookups} look-ups: {warned} warned, {slowed} slowed, {stopped_shifts} shifts stopped")
    assert lookups > 90_000
    assert stopped_shifts == 0
    assert slowed == 0
    assert warned <= lookups / 10_000


def test_a_bad_morning_is_warned_of_but_not_stopped() -> None:
    """After a botched import a third of the numbers are missing for everyone."""
    rng, guard = random.Random(4), Guard()
    levels = [
        lookup(guard, f"M{rng.randrange(MEMBERS):08}", rng.random() < 0.35, n * 15).level
        for n in range(2000)
    ]
    assert Level.STOP not in levels
    assert levels.count(Level.SLOW) <= 100
