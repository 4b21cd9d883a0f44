"""Shedding: refuse early what cannot be served in time, and the least important first.

There is no queue of our own: calls that were accepted wait on the event loop, which is the queue,
and its lag is a signal beside latency. The limit on calls in flight follows both.
"""

import math
import random
import time
from collections.abc import Callable

from trunkline.api.errors.v1 import reason_pb2
from trunkline.api.options.v1 import policy_pb2
from trunkline.api.options.v1.policy_pb2 import Priority
from trunkline_server.errors import Unavailable

LIMIT_MIN = 8
LIMIT_MAX = 1_000
LIMIT_START = 100
CRITICAL_RESERVE = 0.2
BULK_SHARE = 0.5
WINDOW_S = 0.1
# Latency may grow to this many times what it is without load before the limit comes down.
TOLERANCE = 2.0
TOLERANCE_S = 0.005
LAG_MAX_S = 0.05
RETRY_MIN_S = 0.05
RETRY_MAX_S = 2.0
_DRIFT = 0.002  # how fast the idle latency may rise, per window
_SMOOTH = 0.1
_LOOK_EVERY = 15  # releases, as a mask: the clock is not read on each


class Overloaded(Unavailable):
    reason = reason_pb2.REASON_OVERLOADED
    text = "The service is busy; retry after the stated time."


class Shedder:
    """`admit` before the work, `release` after it, `observe_lag` a few times a second."""

    def __init__(
        self,
        *,
        limit_min: int = LIMIT_MIN,
        limit_max: int = LIMIT_MAX,
        limit_start: int = LIMIT_START,
        lag_max_s: float = LAG_MAX_S,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.inflight = 0
        # By Priority.
        self.refused = [0] * (max(Priority.values()) + 1)
        self._limit_min = max(2, limit_min)
        self._limit_max = limit_max
        self._lag_max_s = lag_max_s
        self._clock = clock
        self._jitter = jitter
        self._lag_s = 0.0
        self._wait_s = 0.0
        self._idle_s = math.inf
        self._sum_s = 0.0
        self._samples = 0
        self._releases = 0
        self._busy = False
        self._window_ends = clock() + WINDOW_S
        self._limit = 0.0
        self._room: list[float] = []
        self._set_limit(limit_start)

    @property
    def limit(self) -> float:
        return self._limit

    def admit(self, priority: Priority.ValueType, remaining_s: float | None) -> None:
        """Takes a place, or raises Overloaded."""
        inflight = self.inflight
        if inflight >= self._room[priority]:
            self._busy = True
            self._refuse(priority)
        if remaining_s is not None and remaining_s < self._wait_s and inflight >= self._limit_min:
            # Below the minimum all are let in, or an estimate that is out of date would stay so.
            self._refuse(priority)
        self.inflight = inflight + 1

    def release(self, latency_s: float | None, ok: bool) -> None:
        """Gives the place back. None: a stream, whose length says nothing about load."""
        inflight = self.inflight
        self.inflight = inflight - 1
        self._releases += 1
        # A quick refusal by the handler says nothing; a slow failure says much.
        if latency_s is not None and (ok or latency_s > self._wait_s):
            self._sum_s += latency_s
            self._samples += 1
            self._wait_s += (latency_s - self._wait_s) * _SMOOTH
        if inflight * 2 > self._limit:
            self._busy = True
        if not self._releases & _LOOK_EVERY:
            self._look()

    def observe_lag(self, lag_s: float) -> None:
        """How late the event loop runs: what waits there is not in flight yet."""
        self._lag_s = lag_s
        self._set_limit(self._limit * 0.8 if lag_s > self._lag_max_s else self._limit)

    def _look(self) -> None:
        now = self._clock()
        if now < self._window_ends or not self._samples:
            return
        self._adapt(self._sum_s / self._samples)
        self._sum_s = 0.0
        self._samples = 0
        self._busy = False
        self._window_ends = now + WINDOW_S

    def _adapt(self, latency_s: float) -> None:
        if latency_s < self._idle_s:
            self._idle_s = latency_s
        elif not self._busy:
            self._idle_s += (latency_s - self._idle_s) * _DRIFT
        if not self._busy:
            return  # the limit did not matter
        bearable_s = self._idle_s * TOLERANCE + TOLERANCE_S
        if latency_s > bearable_s:
            self._set_limit(self._limit * max(0.5, bearable_s / latency_s))
        elif self._lag_s <= self._lag_max_s:
            self._set_limit(self._limit + math.sqrt(self._limit))

    def _set_limit(self, limit: float) -> None:
        self._limit = limit = min(max(limit, self._limit_min), self._limit_max)
        room = [0.0] * len(self.refused)
        room[policy_pb2.PRIORITY_CRITICAL] = limit
        room[policy_pb2.PRIORITY_NORMAL] = limit * (1 - CRITICAL_RESERVE)
        # While the loop is late, bulk work only makes it later.
        late = self._lag_s > self._lag_max_s
        room[policy_pb2.PRIORITY_BULK] = 1 if late else limit * BULK_SHARE
        self._room = room

    def _refuse(self, priority: Priority.ValueType) -> None:
        self.refused[priority] += 1
        # Spread out, or all who were refused come back in the same instant.
        pause_s = 2 * (self._wait_s + self._lag_s) * (0.5 + self._jitter())
        if priority == policy_pb2.PRIORITY_BULK:
            pause_s *= 4
        raise Overloaded(retry_after_s=min(max(pause_s, RETRY_MIN_S), RETRY_MAX_S))
