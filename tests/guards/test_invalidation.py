"""Caches on a link: how stale an answer may be, with every single fault there is."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from uuid import UUID

import pytest

from tests.guards.conftest import Server
from trunkline_server.cache import Cache
from trunkline_server.link import Link
from trunkline_server.valkey import Wire

ORG = UUID(int=1)
SHORT_TTL_S = 0.2
# Noticing takes loss_s and a tick; then an entry lives for the shortened time at most.
STALE_MAX_S = 1.0


class Process:
    """A server in small: it commits to the one table, and reads it through its own cache."""

    def __init__(self, url: str, table: list[int]) -> None:
        self.link = Link(url)
        self.cache: Cache[str, int] = Cache("members", ttl_s=60, short_ttl_s=SHORT_TTL_S)
        self.replaced: list[Wire] = []
        self._table = table
        self.link.subscribe("member", self.cache.invalidate)
        self.link.subscribe("org", lambda org: self.cache.bump(UUID(org)))
        self.link.on_loss(self.cache.distrust)
        self.link.on_recovery(self.cache.restore)

    async def commit(self) -> None:
        self._table[0] += 1
        await self.link.publish("member", "m")

    async def read(self) -> int:
        async def load() -> int:
            seen = self._table[0]
            await asyncio.sleep(0)
            return seen

        value = await self.cache.get_or_load(ORG, "m", load)
        assert value is not None
        return value


@pytest.fixture
async def pair(server: Server) -> AsyncIterator[tuple[Process, Process]]:
    table = [0]
    writer, reader = Process(server.url, table), Process(server.url, table)
    for process in (writer, reader):
        assert await process.link.start()
    async with asyncio.timeout(2):
        while not reader.link._peers:
            await asyncio.sleep(0.01)
    yield writer, reader
    for process in (writer, reader):
        await process.link.close()
        for wire in process.replaced:
            await wire.close()


async def test_an_update_is_visible_elsewhere_within_50_ms(pair: tuple[Process, Process]) -> None:
    writer, reader = pair
    delays = []
    for version in range(1, 101):
        await reader.read()
        await writer.commit()
        since = time.monotonic()
        while await reader.read() != version:
            await asyncio.sleep(0.001)
        delays.append(time.monotonic() - since)
    assert sorted(delays)[98] <= 0.05
    assert reader.cache.hits > 0


async def test_a_bump_reaches_the_other_process(pair: tuple[Process, Process]) -> None:
    writer, reader = pair
    await reader.read()
    writer._table[0] = 7
    await writer.link.publish("org", str(ORG))
    async with asyncio.timeout(1):
        while await reader.read() != 7:
            await asyncio.sleep(0.001)


def freeze(server: Server, writer: Process) -> None:
    server.freeze()


def kill(server: Server, writer: Process) -> None:
    server.kill()


def mute(server: Server, writer: Process) -> None:
    writer.replaced.append(writer.link._wire)
    writer.link._wire = Wire("redis://127.0.0.1:1", connections_max=1)


@pytest.mark.parametrize("fault", [freeze, kill, mute])
async def test_no_answer_is_staler_than_promised(
    server: Server, pair: tuple[Process, Process], fault: Callable[[Server, Process], None]
) -> None:
    writer, reader = pair
    committed_at = [time.monotonic()]
    worst_s = 0.0
    healthy_until = time.monotonic() + 0.3
    faulty, until = False, time.monotonic() + 2.8

    async def write() -> None:
        while time.monotonic() < until:
            writer._table[0] += 1
            committed_at.append(time.monotonic())
            await writer.link.publish("member", "m")
            await asyncio.sleep(0.02)

    writing = asyncio.create_task(write())
    while time.monotonic() < until:
        if not faulty and time.monotonic() > healthy_until:
            faulty = True
            fault(server, writer)
        asked_at = time.monotonic()
        seen = await reader.read()
        if seen + 1 < len(committed_at):
            worst_s = max(worst_s, asked_at - committed_at[seen + 1])
        await asyncio.sleep(0.005)
    await writing
    assert SHORT_TTL_S / 4 < worst_s < STALE_MAX_S  # the fault was felt, and bounded
    assert reader.cache.ttl_s == SHORT_TTL_S
