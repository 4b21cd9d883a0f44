"""Every call ends quickly, whatever Valkey does."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from tests.guards.conftest import Server
from trunkline_server.breaker import Breaker, State
from trunkline_server.valkey import FAILURES, Script, Valkey, ValkeyUnavailable

ECHO = Script("return {KEYS[1], ARGV[1]}")


@pytest.fixture
async def valkey(server: Server) -> AsyncIterator[Valkey]:
    breaker = Breaker("valkey", failures=FAILURES, rest_s=0.1)
    valkey = Valkey(server.url, breaker=breaker, timeout_s=0.2, connections_max=4)
    yield valkey
    await valkey.close()


async def test_commands_and_scripts(valkey: Valkey) -> None:
    await valkey.command("SET", "trunkline:k", "v")
    assert await valkey.command("GET", "trunkline:k") == b"v"
    calls = [([str(i)], [i * 2]) for i in range(20)]
    answers = await valkey.run_each(ECHO, calls)
    assert answers == [[str(i).encode(), str(i * 2).encode()] for i in range(20)]


async def test_scripts_come_back_after_a_restart(valkey: Valkey, server: Server) -> None:
    assert await valkey.run(ECHO, ["a"], ["b"]) == [b"a", b"b"]
    server.kill()
    server.start()
    await asyncio.sleep(0.05)  # the loop reads that the old connections were closed
    assert await valkey.run(ECHO, ["a"], ["b"]) == [b"a", b"b"]


async def test_frozen_costs_one_timeout_each_and_then_nothing(
    valkey: Valkey, server: Server
) -> None:
    await valkey.command("PING")
    server.freeze()
    for _ in range(3):
        since = time.monotonic()
        with pytest.raises(ValkeyUnavailable):
            await valkey.command("PING")
        assert time.monotonic() - since < 0.35
    assert valkey.breaker.state is State.OPEN
    since = time.monotonic()
    with pytest.raises(ValkeyUnavailable):
        await valkey.command("PING")
    assert time.monotonic() - since < 0.02
    server.thaw()
    await _until_closed(valkey)
    assert await valkey.command("ECHO", "mine") == b"mine"  # not the answer to an older call


async def test_killed_and_back(valkey: Valkey, server: Server) -> None:
    await valkey.command("PING")
    server.kill()
    for _ in range(3):
        with pytest.raises(ValkeyUnavailable):
            await valkey.command("PING")
    assert valkey.breaker.state is State.OPEN
    server.start()
    await _until_closed(valkey)


async def test_more_callers_than_connections_wait_but_not_longer_than_the_timeout(
    valkey: Valkey, server: Server
) -> None:
    answers = await asyncio.gather(*(valkey.command("ECHO", str(i)) for i in range(200)))
    assert answers == [str(i).encode() for i in range(200)]
    server.freeze()
    since = time.monotonic()
    outcomes = await asyncio.gather(
        *(valkey.command("PING") for _ in range(200)), return_exceptions=True
    )
    assert time.monotonic() - since < 0.6
    assert all(isinstance(outcome, ValkeyUnavailable) for outcome in outcomes)


async def test_a_cancelled_caller_leaves_no_foreign_answer_behind(valkey: Valkey) -> None:
    for round_no in range(30):
        task = asyncio.create_task(valkey.command("ECHO", f"cancelled {round_no}"))
        await asyncio.sleep(0.0002 * (round_no % 5))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await valkey.command("ECHO", str(round_no)) == str(round_no).encode()


async def _until_closed(valkey: Valkey) -> None:
    async with asyncio.timeout(3):
        while valkey.breaker.state is not State.CLOSED:
            try:
                await valkey.command("PING")
            except ValkeyUnavailable as error:
                await asyncio.sleep(error.retry_after_s or 0)
