"""The enumeration guard's pure part: is an agent searching for valid numbers?

Two signs count, over a sliding window: the share of look-ups that miss, and runs of neighbouring
numbers. The time is passed in, in seconds of any steady clock.
"""

from __future__ import annotations

import enum
import re
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field

SLICES = 10
AGENTS_MAX = 50_000
RECENT_NUMBERS = 8
NEIGHBOUR_DISTANCE_MAX = 10


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


@dataclass(frozen=True, slots=True)
class Reading:
    """What the guard says after a look-up, and the figures behind it."""

    level: Level
    sign: Sign
    lookups: int
    misses: int
    sequential: int


_CALM = Reading(Level.OK, Sign.NONE, 0, 0, 0)


@dataclass(slots=True)
class _Agent:
    # One counter pair for each slice of the window: bounded however many look-ups come.
    lookups: list[int] = field(default_factory=lambda: [0] * SLICES)
    misses: list[int] = field(default_factory=lambda: [0] * SLICES)
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
        seen.stopped = reading if reading.level is Level.STOP else None
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
    current = int(now_s / (limits.window_s / SLICES))
    for passed in range(min(current - seen.slice_no, SLICES)):
        seen.lookups[(current - passed) % SLICES] = 0
        seen.misses[(current - passed) % SLICES] = 0
    seen.slice_no = max(current, seen.slice_no)


def _count(seen: _Agent, number: str, missed: bool, limits: GuardLimits, now_s: float) -> None:
    place = _place(number)
    if place in seen.recent:
        return  # The same number again is an agent making sure, not a search.
    at = seen.slice_no % SLICES
    seen.lookups[at] += 1
    seen.misses[at] += missed
    if any(_are_neighbours(place, earlier) for earlier in seen.recent):
        seen.sequential = seen.sequential + 1 if now_s < seen.sequential_until_s else 1
        seen.sequential_until_s = now_s + limits.window_s
    else:
        # An attacker may mix in strangers, so a run fades instead of ending at the first.
        seen.sequential = max(seen.sequential - 1, 0)
    seen.recent.append(place)


_LAST_DIGITS = re.compile(r"(\d{1,18})\D*$")


def _place(number: str) -> tuple[str, int]:
    """Split a number into its series and its place in it."""
    digits = _LAST_DIGITS.search(number)
    if digits is None:
        return number, 0
    return f"{number[: digits.start()]}|{len(digits[1])}", int(digits[1])


def _are_neighbours(one: tuple[str, int], other: tuple[str, int]) -> bool:
    return one[0] == other[0] and 0 < abs(one[1] - other[1]) <= NEIGHBOUR_DISTANCE_MAX


def _judge(seen: _Agent, limits: GuardLimits, now_s: float) -> Reading:
    lookups, misses = sum(seen.lookups), sum(seen.misses)
    sequential = seen.sequential if now_s < seen.sequential_until_s else 0
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
