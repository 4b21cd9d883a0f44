"""A breaker: after a few failures in a row a dependency is left alone for a while.

While open, callers learn at once that there is no answer, instead of each waiting a time-out out.
"""

import enum
import random
import time
from collections.abc import Callable
from types import TracebackType

FAILURES_MAX = 3
REST_S = 0.5
REST_MAX_S = 5.0
_JITTER = 0.2


class State(enum.IntEnum):
    """The numbers are what the gauge shows."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class BreakerOpen(Exception):
    """The dependency failed a moment ago and was not asked."""

    def __init__(self, name: str, retry_after_s: float) -> None:
        super().__init__(f"{name} failed a moment ago; asked again in {retry_after_s:.2f} s")
        self.name = name
        self.retry_after_s = retry_after_s


class Breaker:
    """Closed, open for a rest that doubles up to a bound, half-open for one trial call."""

    def __init__(
        self,
        name: str,
        *,
        failures: tuple[type[BaseException], ...] = (Exception,),
        failures_max: int = FAILURES_MAX,
        rest_s: float = REST_S,
        rest_max_s: float = REST_MAX_S,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.opened = 0
        self._failures = failures
        self._failures_max = failures_max
        self._rest_s = rest_s
        self._rest_max_s = rest_max_s
        self._clock = clock
        self._jitter = jitter
        self._state = State.CLOSED
        self._failed_in_row = 0
        self._next_rest_s = rest_s
        self._trial_at = 0.0
        # Which state an attempt belongs to: an answer that arrives late says nothing about now.
        self._epoch = 0

    @property
    def state(self) -> State:
        """For the gauge; the passing of time alone does not change it, only an attempt does."""
        return self._state

    @property
    def ready(self) -> bool:
        return self._state is State.CLOSED

    @property
    def retry_after_s(self) -> float:
        return max(0.0, self._trial_at - self._clock()) if self._state is not State.CLOSED else 0.0

    def attempt(self) -> "Attempt":
        """`with breaker.attempt(): ...`; raises BreakerOpen instead of letting the call through."""
        if self._state is State.CLOSED:
            return Attempt(self, self._epoch)
        if self._state is State.OPEN and self._clock() >= self._trial_at:
            self._turn(State.HALF_OPEN)
            return Attempt(self, self._epoch)
        raise BreakerOpen(self.name, self.retry_after_s)

    def _settle(self, epoch: int, error: type[BaseException] | None) -> None:
        if epoch != self._epoch:
            return
        if error is None:
            self._succeed()
        elif issubclass(error, self._failures):
            self._fail()
        elif self._state is State.HALF_OPEN:
            # The trial was called off before it said anything: the next caller tries.
            self._turn(State.OPEN)

    def _succeed(self) -> None:
        self._failed_in_row = 0
        if self._state is State.HALF_OPEN:
            self._next_rest_s = self._rest_s
            self._turn(State.CLOSED)

    def _fail(self) -> None:
        self._failed_in_row += 1
        if self._state is State.CLOSED and self._failed_in_row < self._failures_max:
            return
        # Jitter, or all processes would try a recovering dependency in the same instant.
        rest_s = self._next_rest_s * (1 + _JITTER * self._jitter())
        self._trial_at = self._clock() + rest_s
        self._next_rest_s = min(self._next_rest_s * 2, self._rest_max_s)
        self.opened += 1
        self._turn(State.OPEN)

    def _turn(self, state: State) -> None:
        self._state = state
        self._failed_in_row = 0
        self._epoch += 1


class Attempt:
    """One call through the breaker; its outcome is read from how the `with` block ends."""

    __slots__ = ("_breaker", "_epoch")

    def __init__(self, breaker: Breaker, epoch: int) -> None:
        self._breaker = breaker
        self._epoch = epoch

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.settle(kind)

    def settle(self, kind: type[BaseException] | None) -> None:
        """How it ended, for those who spare themselves the `with`."""
        self._breaker._settle(self._epoch, kind)
