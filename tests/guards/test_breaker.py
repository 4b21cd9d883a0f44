"""The breaker's transitions, on a clock that the test moves."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline_server.breaker import Breaker, BreakerOpen, State


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(clock: Clock) -> Breaker:
    return Breaker(
        "thing",
        failures=(OSError,),
        failures_max=3,
        rest_s=1.0,
        rest_max_s=4.0,
        clock=clock,
        jitter=lambda: 0.0,
    )


def state(breaker: Breaker) -> State:
    """A call, so that type checkers do not take the last answer for the next one."""
    return breaker.state


def fail(breaker: Breaker) -> None:
    with pytest.raises(OSError), breaker.attempt():
        raise OSError


def succeed(breaker: Breaker) -> None:
    with breaker.attempt():
        pass


def test_opens_after_failures_in_a_row_only() -> None:
    breaker = make(Clock())
    fail(breaker)
    fail(breaker)
    succeed(breaker)
    fail(breaker)
    fail(breaker)
    assert state(breaker) is State.CLOSED
    fail(breaker)
    assert state(breaker) is State.OPEN
    with pytest.raises(BreakerOpen) as refused:
        breaker.attempt()
    assert refused.value.retry_after_s == 1.0


def test_one_trial_at_a_time_and_success_closes() -> None:
    clock = Clock()
    breaker = make(clock)
    for _ in range(3):
        fail(breaker)
    clock.now += 1.0
    with breaker.attempt():
        assert state(breaker) is State.HALF_OPEN
        with pytest.raises(BreakerOpen):
            breaker.attempt()
    assert state(breaker) is State.CLOSED


def test_the_rest_doubles_up_to_its_bound_and_starts_anew() -> None:
    clock = Clock()
    breaker = make(clock)
    for _ in range(3):
        fail(breaker)
    for rest_s in (1.0, 2.0, 4.0, 4.0):
        assert breaker.retry_after_s == rest_s
        clock.now += rest_s
        fail(breaker)
    clock.now += 4.0
    succeed(breaker)
    for _ in range(3):
        fail(breaker)
    assert breaker.retry_after_s == 1.0


def test_other_errors_are_answers() -> None:
    breaker = make(Clock())
    for _ in range(5):
        with pytest.raises(KeyError), breaker.attempt():
            raise KeyError
    assert state(breaker) is State.CLOSED


def test_a_cancelled_trial_leaves_room_for_the_next() -> None:
    clock = Clock()
    breaker = make(clock)
    for _ in range(3):
        fail(breaker)
    clock.now += 1.0
    with pytest.raises(asyncio.CancelledError), breaker.attempt():
        raise asyncio.CancelledError
    succeed(breaker)
    assert state(breaker) is State.CLOSED


def test_a_late_answer_says_nothing_about_now() -> None:
    clock = Clock()
    breaker = make(clock)
    early = breaker.attempt()
    for _ in range(3):
        fail(breaker)
    early.__exit__(None, None, None)
    assert state(breaker) is State.OPEN
    clock.now += 1.0
    with breaker.attempt():
        early.__exit__(OSError, OSError(), None)
        assert state(breaker) is State.HALF_OPEN
    assert state(breaker) is State.CLOSED


@given(st.lists(st.sampled_from(["fail", "succeed", "other", "wait"]), max_size=60))
def test_never_stuck_and_never_asked_while_resting(steps: list[str]) -> None:
    clock = Clock()
    breaker = make(clock)
    for step in steps:
        if step == "wait":
            clock.now += 0.7
            continue
        resting = state(breaker) is State.OPEN and breaker.retry_after_s > 0
        try:
            with breaker.attempt():
                assert not resting
                if step != "succeed":
                    raise OSError if step == "fail" else KeyError
        except (OSError, KeyError):
            pass
        except BreakerOpen:
            assert resting
    clock.now += 10
    succeed(breaker)
    assert state(breaker) is State.CLOSED
