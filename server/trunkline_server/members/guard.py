"""The enumeration guard's pure part: is an agent searching for valid numbers?

Two signs count, over a sliding window: the share of look-ups that miss, and runs of neighbouring
numbers. The time is passed in, in seconds of any steady clock.
"""

from __future__ import annotations

import enum
import re
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

SLICES = 10
AGENTS_MAX = 50_000
RECENT_NUMBERS = 8
NEIGHBOUR_DISTANCE_MAX = 10
PLACE_DIGITS_MAX = 18


class Level(enum.IntEnum):
    OK = 0
    WARN = 1
    SLOW = 2
    STOP = 3


class Sign(enum.StrEnum):
    NONE = "NONE"
    MISSES = "MISSES"
    SEQUENCE = "SEQUENCE"


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """Shares are per cent of the look-ups in the window."""

    enabled: bool = True
    min_lookups: int = 30
    warn_miss_percent: int = 40
    slow_miss_percent: int = 55
    stop_miss_percent: int = 75
    stop_sequential: int = 16
    window_s: float = 600.0


class Reading(NamedTuple):
    """What the guard says after a look-up, and the figures behind it."""

    level: Level
    sign: Sign
    lookups: int
    misses: int
    sequential: int


# An attribute of an enumeration is found slowly.
_OK, _NO_SIGN, _STOP = Level.OK, Sign.NONE, Level.STOP
_CALM = Reading(_OK, _NO_SIGN, 0, 0, 0)


@dataclass(slots=True)
class _Agent:
    # One counter pair for each slice of the window: bounded however many look-ups come.
    lookups: list[int] = field(default_factory=lambda: [0] * SLICES)
    misses: list[int] = field(default_factory=lambda: [0] * SLICES)
    lookups_in_window: int = 0
    misses_in_window: int = 0
    slice_no: int = 0
    recent: deque[tuple[str, int]] = field(default_factory=lambda: deque(maxlen=RECENT_NUMBERS))
    sequential: int = 0
    sequential_until_s: float = 0.0
    stopped: Reading | None = None
    stopped_until_s: float = 0.0


class Guard:
    """Statistics for each agent, in memory, for the least recently seen dropped first."""

    def __init__(self, agents_max: int = AGENTS_MAX) -> None:
        self._agents: OrderedDict[Hashable, _Agent] = OrderedDict()
        self._agents_max = agents_max

    def reading(self, agent: Hashable, limits: GuardLimits, now_s: float) -> Reading:
        """Return what holds before the next look-up. A stop holds for one window."""
        seen = self._agents.get(agent)
        if seen is None or not limits.enabled:
            return _CALM
        if seen.stopped is not None and now_s < seen.stopped_until_s:
            return seen.stopped
        _advance(seen, limits, now_s)
        return _judge(seen, limits, now_s)

    def record(
        self, agent: Hashable, number: str, *, missed: bool, limits: GuardLimits, now_s: float
    ) -> Reading:
        """Count one look-up and return the reading after it."""
        if not limits.enabled:
            return _CALM
        seen = self._seen(agent)
        if seen.stopped is not None and now_s < seen.stopped_until_s:
            return seen.stopped
        _advance(seen, limits, now_s)
        _count(seen, number, missed, limits, now_s)
        reading = _judge(seen, limits, now_s)
        seen.stopped = None
        if reading.level is _STOP:
            seen.stopped = reading
            seen.stopped_until_s = now_s + limits.window_s
        return reading

    def release(self, agent: Hashable) -> bool:
        """Forget the agent's statistics: an administrator's override. False: none were held."""
        return self._agents.pop(agent, None) is not None

    def stopped(self, now_s: float) -> list[tuple[Hashable, Reading]]:
        """Return the agents that are stopped."""
        return [
            (agent, seen.stopped)
            for agent, seen in self._agents.items()
            if seen.stopped is not None and now_s < seen.stopped_until_s
        ]

    def _seen(self, agent: Hashable) -> _Agent:
        seen = self._agents.get(agent)
        if seen is None:
            seen = self._agents[agent] = _Agent()
            if len(self._agents) > self._agents_max:
                self._agents.popitem(last=False)
        self._agents.move_to_end(agent)
        return seen


def _advance(seen: _Agent, limits: GuardLimits, now_s: float) -> None:
    current = int(now_s * SLICES / limits.window_s)
    if current == seen.slice_no:
        return
    for passed in range(min(current - seen.slice_no, SLICES)):
        at = (current - passed) % SLICES
        seen.lookups_in_window -= seen.lookups[at]
        seen.misses_in_window -= seen.misses[at]
        seen.lookups[at] = seen.misses[at] = 0
    seen.slice_no = max(current, seen.slice_no)


def _count(seen: _Agent, number: str, missed: bool, limits: GuardLimits, now_s: float) -> None:
    place = _place(number)
    recent = seen.recent
    if place in recent:
        return  # The same number again is an agent making sure, not a search.
    at = seen.slice_no % SLICES
    seen.lookups[at] += 1
    seen.lookups_in_window += 1
    if missed:
        seen.misses[at] += 1
        seen.misses_in_window += 1
    if _has_neighbour(place, recent):
        seen.sequential = seen.sequential + 1 if now_s < seen.sequential_until_s else 1
        seen.sequential_until_s = now_s + limits.window_s
    elif seen.sequential:
        # An attacker may mix in strangers, so a run fades instead of ending at the first.
        seen.sequential -= 1
    recent.append(place)


_LAST_DIGITS = re.compile(r"(\d{1,18})\D*$")


def _place(number: str) -> tuple[str, int]:
    """Split a number into its series and its place in it."""
    series = number.rstrip("0123456789")
    count = len(number) - len(series)
    if 0 < count <= PLACE_DIGITS_MAX:
        return f"{series}|{count}", int(number[-count:])
    digits = _LAST_DIGITS.search(number)
    if digits is None:
        return number, 0
    return f"{number[: digits.start()]}|{len(digits[1])}", int(digits[1])


def _has_neighbour(place: tuple[str, int], recent: Iterable[tuple[str, int]]) -> bool:
    series, at = place
    first, last = at - NEIGHBOUR_DISTANCE_MAX, at + NEIGHBOUR_DISTANCE_MAX
    # any() over a generator would cost three times as much.
    for other, other_at in recent:  # noqa: SIM110
        if first <= other_at <= last and other == series:
            return True
    return False


def _judge(seen: _Agent, limits: GuardLimits, now_s: float) -> Reading:
    lookups, misses = seen.lookups_in_window, seen.misses_in_window
    sequential = seen.sequential if now_s < seen.sequential_until_s else 0
    if not misses and not sequential:
        return Reading(_OK, _NO_SIGN, lookups, 0, 0)
    by_misses = _miss_level(lookups, misses, limits)
    by_sequence = _sequence_level(sequential, limits)
    level = max(by_misses, by_sequence)
    if level is Level.OK:
        sign = Sign.NONE
    else:
        sign = Sign.SEQUENCE if by_sequence >= by_misses else Sign.MISSES
    return Reading(level, sign, lookups, misses, sequential)


def _miss_level(lookups: int, misses: int, limits: GuardLimits) -> Level:
    if lookups < limits.min_lookups:
        return Level.OK
    percent = 100 * misses / lookups
    if percent >= limits.stop_miss_percent:
        return Level.STOP
    if percent >= limits.slow_miss_percent:
        return Level.SLOW
    return Level.WARN if percent >= limits.warn_miss_percent else Level.OK


def _sequence_level(sequential: int, limits: GuardLimits) -> Level:
    if sequential >= limits.stop_sequential:
        return Level.STOP
    if sequential * 4 >= limits.stop_sequential * 3:
        return Level.SLOW
    return Level.WARN if sequential * 2 >= limits.stop_sequential else Level.OK
