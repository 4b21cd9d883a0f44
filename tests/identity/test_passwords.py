"""argon2 beside the loop: bounded, fair to the loop, as slow for nobody as for somebody."""

import asyncio
import time

import pytest

from trunkline_server.identity.errors import LoginBusy
from trunkline_server.identity.passwords import Passwords

LAG_P99_MAX_S = 0.02
TICK_S = 0.002


@pytest.fixture
def passwords() -> Passwords:
    return Passwords(threads=2, queue_max=50)


async def test_hash_verify_and_nobody(passwords: Passwords) -> None:
    stored = await passwords.hash("violet harbour")
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await passwords.verify(stored, "violet harbour")
    assert not await passwords.verify(stored, "violet harbor")
    assert not await passwords.verify(None, "violet harbour")
    assert not await passwords.verify("not a hash", "violet harbour")
    assert not passwords.outdated(stored)
    assert passwords.outdated(stored.replace("m=19456", "m=8192"))
    passwords.close()


async def test_an_unknown_user_costs_as_much(passwords: Passwords) -> None:
    stored = await passwords.hash("violet harbour")
    cost: dict[str | None, list[float]] = {stored: [], None: []}
    for _ in range(8):
        for which, times in cost.items():
            started = time.perf_counter()
            await passwords.verify(which, "wrong")
            times.append(time.perf_counter() - started)
    known, unknown = (sorted(times)[len(times) // 2] for times in cost.values())
    assert 0.5 < unknown / known < 2
    passwords.close()


async def test_the_queue_is_bounded_and_the_loop_keeps_turning(passwords: Passwords) -> None:
    stored = await passwords.hash("violet harbour")
    lags: list[float] = []
    ended = asyncio.Event()

    async def watch() -> None:
        while not ended.is_set():
            before = time.perf_counter()
            await asyncio.sleep(TICK_S)
            lags.append(time.perf_counter() - before - TICK_S)

    watching = asyncio.create_task(watch())
    most_running = 0

    async def attempt() -> bool:
        nonlocal most_running
        try:
            verdict = await passwords.verify(stored, "violet harbour")
        except LoginBusy as busy:
            assert busy.retry_after_s
            return False
        most_running = max(most_running, passwords.running)
        return verdict

    verdicts = await asyncio.gather(*(attempt() for _ in range(80)))
    ended.set()
    await watching
    # Two run, fifty wait; the rest is told to come back.
    assert sum(verdicts) in (50, 51, 52)
    assert most_running <= 2
    assert (passwords.running, passwords.waiting) == (0, 0)
    lags.sort()
    assert lags[int(len(lags) * 0.99)] <= LAG_P99_MAX_S
    passwords.close()


async def test_callers_who_leave_give_their_places_back(passwords: Passwords) -> None:
    stored = await passwords.hash("violet harbour")
    tasks = [asyncio.create_task(passwords.verify(stored, "x")) for _ in range(20)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert passwords.waiting == 0
    async with asyncio.timeout(5):
        assert await passwords.verify(stored, "violet harbour")
    passwords.close()
