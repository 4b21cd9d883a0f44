"""The cache: bounded, loaded once, and never keeping what an invalidation has overtaken."""

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline_server.cache import MISS, Cache
from trunkline_server.errors import NotFound, Unavailable

ORG, OTHER = UUID(int=1), UUID(int=2)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Table:
    """What the loader reads: each read may be held until the test lets it go."""

    def __init__(self, value: str | None = "v1") -> None:
        self.value = value
        self.reads = 0
        self.gate = asyncio.Event()
        self.reading = asyncio.Event()

    async def held(self) -> str | None:
        self.reads += 1
        seen = self.value  # the snapshot is taken before the wait
        self.reading.set()
        await self.gate.wait()
        return seen

    async def at_once(self) -> str | None:
        self.reads += 1
        return self.value


def make(clock: Clock | None = None, entries_max: int = 100) -> Cache[str, str]:
    return Cache(
        "members",
        entries_max=entries_max,
        ttl_s=10,
        negative_ttl_s=2,
        short_ttl_s=0.5,
        clock=clock or Clock(),
        jitter=lambda: 0.0,
    )


async def test_hit_miss_and_expiry() -> None:
    clock, table = Clock(), Table()
    cache = make(clock)
    assert cache.get("k") is MISS
    assert await cache.load(ORG, "k", table.at_once) == "v1"
    assert cache.get("k") == "v1"
    clock.now += 9.99
    assert cache.get("k") == "v1"
    clock.now += 0.02
    assert cache.get("k") is MISS
    assert len(cache) == 0 and cache.hits == 2 and cache.misses == 2


async def test_life_counts_from_the_read_not_from_the_answer() -> None:
    clock, table = Clock(), Table()
    cache = make(clock)
    task = asyncio.create_task(cache.load(ORG, "k", table.held))
    await table.reading.wait()
    clock.now += 8
    table.gate.set()
    await task
    clock.now += 2.01
    assert cache.get("k") is MISS


async def test_what_is_not_there_is_remembered_more_briefly() -> None:
    clock, table = Clock(), Table(None)
    cache = make(clock)
    assert await cache.get_or_load(ORG, "k", table.at_once) is None
    assert cache.get("k") is None
    clock.now += 2.01
    assert cache.get("k") is MISS


async def test_5000_at_once_are_one_load() -> None:
    cache, table = make(), Table()
    tasks = [asyncio.create_task(cache.get_or_load(ORG, "k", table.held)) for _ in range(5000)]
    await table.reading.wait()
    table.gate.set()
    assert await asyncio.gather(*tasks) == ["v1"] * 5000
    assert table.reads == 1 and cache.joined == 4999 and cache.loading == 0


@pytest.mark.parametrize(
    "overtake",
    [
        lambda cache: cache.invalidate("k"),
        lambda cache: cache.bump(ORG),
        lambda cache: cache.flush(),
        lambda cache: cache.distrust(),
        lambda cache: cache.restore(),
    ],
    ids=["invalidate", "bump", "flush", "distrust", "restore"],
)
async def test_a_load_that_an_invalidation_overtakes_is_not_kept(
    overtake: Callable[[Cache[str, str]], None],
) -> None:
    cache, table = make(), Table("old")
    first = asyncio.create_task(cache.load(ORG, "k", table.held))
    await table.reading.wait()
    table.value = "new"  # committed
    overtake(cache)
    # Who asks after the commit must not be given the load from before it.
    assert await cache.get_or_load(ORG, "k", table.at_once) == "new"
    table.gate.set()
    assert await first == "old"  # it asked before
    assert cache.get("k") == "new"
    assert table.reads == 2 and cache.loading == 0


async def test_a_bump_ends_one_organisation_only() -> None:
    cache, table = make(), Table()
    for org, key in ((ORG, "1/a"), (ORG, "1/b"), (OTHER, "2/a")):
        await cache.load(org, key, table.at_once)
    cache.bump(ORG)
    assert [cache.get(key) for key in ("1/a", "1/b", "2/a")] == [MISS, MISS, "v1"]
    await cache.load(ORG, "1/a", table.at_once)
    assert cache.get("1/a") == "v1"


async def test_a_cancelled_waiter_does_not_disturb_the_others() -> None:
    cache, table = make(), Table()
    tasks = [asyncio.create_task(cache.load(ORG, "k", table.held)) for _ in range(5)]
    await table.reading.wait()
    tasks[2].cancel()
    await asyncio.sleep(0)
    table.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [answer for answer in answers if answer == "v1"] == ["v1"] * 4
    assert isinstance(answers[2], asyncio.CancelledError)
    assert table.reads == 1


async def test_when_the_first_is_cancelled_one_other_takes_over() -> None:
    cache, table = make(), Table()
    tasks = [asyncio.create_task(cache.load(ORG, "k", table.held)) for _ in range(5)]
    await table.reading.wait()
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    table.gate.set()
    assert await asyncio.gather(*tasks[1:]) == ["v1"] * 4
    assert table.reads == 2
    assert cache.get("k") == "v1"


async def test_a_failing_load_fails_for_all_and_is_not_kept() -> None:
    cache = make()
    gate = asyncio.Event()

    async def fail() -> str:
        await gate.wait()
        raise Unavailable(retry_after_s=0.5)

    tasks = [asyncio.create_task(cache.load(ORG, "k", fail)) for _ in range(50)]
    await asyncio.sleep(0)
    gate.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(error, Unavailable) and error.retry_after_s == 0.5 for error in errors)
    assert len({id(error) for error in errors}) == 50  # each its own
    assert cache.failures == 1 and cache.get("k") is MISS
    assert await cache.load(ORG, "k", Table().at_once) == "v1"


async def test_an_error_that_cannot_be_copied_is_still_an_error() -> None:
    class Odd(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(one)

    async def fail() -> str:
        await asyncio.sleep(0)
        raise Odd(1, 2)

    cache = make()
    tasks = [asyncio.create_task(cache.load(ORG, "k", fail)) for _ in range(3)]
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(error, Odd) for error in errors)


async def test_not_found_raised_by_a_loader_is_not_a_negative_entry() -> None:
    async def fail() -> str:
        raise NotFound

    cache = make()
    with pytest.raises(NotFound):
        await cache.load(ORG, "k", fail)
    assert cache.get("k") is MISS


async def test_bounded_and_what_is_used_survives() -> None:
    cache, table = make(entries_max=100), Table()
    await cache.load(ORG, "hot", table.at_once)
    for number in range(10_000):
        await cache.load(ORG, str(number), table.at_once)
        assert cache.get("hot") == "v1"
        assert len(cache) <= 100
    assert cache.get("9999") == "v1" and cache.get("1") is MISS


async def test_organisations_without_entries_leave_nothing_behind() -> None:
    cache, table = make(entries_max=10), Table()
    for number in range(1000):
        await cache.load(UUID(int=number), str(number), table.at_once)
    gc.collect()
    assert len(cache._epochs) <= 11


async def test_distrust_shortens_and_restore_flushes_once_more() -> None:
    clock, table = Clock(), Table()
    cache = make(clock)
    await cache.load(ORG, "k", table.at_once)
    cache.distrust()
    assert cache.get("k") is MISS
    await cache.load(ORG, "k", table.at_once)
    clock.now += 0.51
    assert cache.get("k") is MISS
    await cache.load(ORG, "k", table.at_once)
    cache.restore()
    assert cache.get("k") is MISS
    await cache.load(ORG, "k", table.at_once)
    clock.now += 9
    assert cache.get("k") == "v1"


Step = tuple[str, str]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["read", "write", "finish", "bump", "flush", "cancel"]),
            st.sampled_from(["a", "b"]),
        ),
        max_size=40,
    )
)
def test_nobody_is_given_what_was_overwritten_before_they_asked(steps: list[Step]) -> None:
    asyncio.run(_random_walk(steps))


async def _random_walk(steps: list[Step]) -> None:
    """Each reader must see a version at least as new as the last one committed when it asked."""
    cache: Cache[str, int] = Cache("walk", entries_max=100, jitter=lambda: 0.0, clock=Clock())
    committed = {"a": 0, "b": 0}
    gates: list[asyncio.Event] = []
    readers: list[tuple[int, asyncio.Task[int | None]]] = []

    def loader(key: str) -> Callable[[], Coroutine[Any, Any, int]]:
        async def read() -> int:
            seen = committed[key]
            gate = asyncio.Event()
            gates.append(gate)
            await gate.wait()
            return seen

        return read

    for action, key in steps:
        match action:
            case "read":
                task = asyncio.create_task(cache.get_or_load(ORG, key, loader(key)))
                readers.append((committed[key], task))
            case "write":
                committed[key] += 1
                cache.invalidate(key)
            case "bump":
                committed["a"] += 1
                committed["b"] += 1
                cache.bump(ORG)
            case "flush":
                committed[key] += 1
                cache.flush()
            case "finish" if gates:
                gates.pop(0).set()
            case "cancel" if readers:
                readers.pop()[1].cancel()
        for _ in range(3):
            await asyncio.sleep(0)
    while not all(task.done() for _, task in readers):
        for gate in gates:
            gate.set()
        await asyncio.sleep(0)
    for newest_when_asked, task in readers:
        seen = task.result()
        assert seen is not None and seen >= newest_when_asked
    assert cache.loading == 0
