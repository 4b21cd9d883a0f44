"""What the link promises: messages arrive, and what cannot arrive is noticed within a second."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.guards.conftest import Server
from trunkline_server.link import Link
from trunkline_server.valkey import Wire

NOTICED_WITHIN_S = 1.0


class Ear:
    """A stand-in for a cache: what it was told, in order."""

    def __init__(self, link: Link) -> None:
        self.told: list[str] = []
        self.more = asyncio.Event()
        link.subscribe("members", lambda payload: self._note(payload))
        link.on_loss(lambda: self._note("LOSS"))
        link.on_recovery(lambda: self._note("RECOVERY"))

    def _note(self, what: str) -> None:
        self.told.append(what)
        self.more.set()

    async def hears(self, what: str, within_s: float = 3.0) -> float:
        """Seconds until `what` has been told."""
        since = time.monotonic()
        async with asyncio.timeout(within_s):
            while what not in self.told:
                self.more.clear()
                await self.more.wait()
        return time.monotonic() - since


@asynccontextmanager
async def links(url: str, count: int) -> AsyncIterator[list[Link]]:
    made = [Link(url) for _ in range(count)]
    try:
        for link in made:
            assert await link.start()
        yield made
    finally:
        for link in made:
            await link.close()


async def cut_publisher(link: Link) -> None:
    """This process can hear but not speak: its publisher is pointed at a closed port."""
    link._wire, link._kept = Wire("redis://127.0.0.1:1", connections_max=1), link._wire  # type: ignore[attr-defined]


async def mend_publisher(link: Link) -> None:
    link._wire = link._kept  # type: ignore[attr-defined]


async def test_a_message_reaches_the_other_process_and_the_own_subscribers(valkey_url: str) -> None:
    async with links(valkey_url, 2) as (writer, reader):
        own, other = Ear(writer), Ear(reader)
        assert await writer.publish("members", "a b c")
        assert own.told == ["a b c"]  # at once, without the network
        assert await other.hears("a b c") < 0.2
        await asyncio.sleep(0)
        assert own.told.count("a b c") == 1


async def test_many_messages_arrive_in_order(valkey_url: str) -> None:
    async with links(valkey_url, 2) as (writer, reader):
        other = Ear(reader)
        sent = await asyncio.gather(*(writer.publish("members", str(i)) for i in range(3000)))
        assert len(sent) == 3000
        await other.hears("2999")
        assert other.told == [str(i) for i in range(3000)]


async def test_starts_distrusted_and_tells_so(server: Server) -> None:
    server.kill()
    link = Link(server.url)
    ear = Ear(link)
    assert ear.told == ["LOSS"]
    assert not await link.start(wait_s=0.3)
    assert not link.healthy
    server.start()
    await ear.hears("RECOVERY")
    assert link.trusted
    await link.close()


@pytest.mark.parametrize("fault", ["freeze", "kill"])
async def test_a_dead_or_frozen_valkey_is_noticed_and_healed(server: Server, fault: str) -> None:
    async with links(server.url, 2) as both:
        ears = [Ear(link) for link in both]
        getattr(server, fault)()
        since = time.monotonic()
        for ear in ears:
            await ear.hears("LOSS")
        assert time.monotonic() - since < NOTICED_WITHIN_S
        assert not any(link.trusted for link in both)
        server.thaw() if fault == "freeze" else server.start()
        for ear in ears:
            await ear.hears("RECOVERY")
        assert all(link.trusted for link in both)
        assert await both[0].publish("members", "after")
        await ears[1].hears("after")


async def test_publish_is_bounded_and_never_raises_while_frozen(server: Server) -> None:
    async with links(server.url, 2) as (writer, reader):
        other = Ear(reader)
        server.freeze()
        since = time.monotonic()
        sent = await asyncio.gather(*(writer.publish("members", f"owed {i}") for i in range(50)))
        assert time.monotonic() - since < 0.5
        assert not any(sent) and writer.owed == 50
        server.thaw()
        await other.hears("owed 49")  # owed messages go out by themselves
        async with asyncio.timeout(1):
            while writer.owed:  # the answer is on its way
                await asyncio.sleep(0.005)


async def test_a_cancelled_writer_loses_no_message(valkey_url: str) -> None:
    async with links(valkey_url, 2) as (writer, reader):
        other = Ear(reader)
        task = asyncio.create_task(writer.publish("members", "committed"))
        await asyncio.sleep(0)  # it has begun
        task.cancel()
        await other.hears("committed")


async def test_a_writer_that_cannot_publish_is_noticed_by_readers_that_can_hear(
    valkey_url: str,
) -> None:
    async with links(valkey_url, 2) as (writer, reader):
        ear = Ear(reader)
        await _known(reader, 1)
        await cut_publisher(writer)
        since = time.monotonic()
        assert not await writer.publish("members", "unheard")
        await ear.hears("LOSS")
        assert time.monotonic() - since < NOTICED_WITHIN_S
        assert reader.healthy and reader.mute_peers == 1 and not reader.trusted
        await mend_publisher(writer)
        await ear.hears("unheard")
        await ear.hears("RECOVERY")
        # What was owed comes before the beat that restores trust.
        assert ear.told == ["LOSS", "unheard", "RECOVERY"]


async def test_a_writer_that_dies_between_commit_and_message_is_noticed(valkey_url: str) -> None:
    async with links(valkey_url, 1) as (reader,):
        writer = Link(valkey_url, name="host/1")
        assert await writer.start()
        await _known(reader, 1)
        ear = Ear(reader)
        await _die(writer)
        assert await ear.hears("LOSS") < NOTICED_WITHIN_S
        successor = Link(valkey_url, name="host/1")
        assert await successor.start()
        await ear.hears("RECOVERY")  # nobody waits for the dead one
        assert reader.trusted
        await successor.close()


async def test_a_quick_successor_still_flushes(valkey_url: str) -> None:
    async with links(valkey_url, 1) as (reader,):
        writer = Link(valkey_url, name="host/1")
        assert await writer.start()
        await _known(reader, 1)
        ear = Ear(reader)
        await _die(writer)
        successor = Link(valkey_url, name="host/1")
        assert await successor.start()
        await ear.hears("LOSS", 0.5)
        assert ear.told == ["LOSS", "RECOVERY"] and reader.trusted
        await successor.close()


async def test_a_goodbye_is_no_alarm(valkey_url: str) -> None:
    async with links(valkey_url, 1) as (reader,):
        writer = Link(valkey_url)
        assert await writer.start()
        await _known(reader, 1)
        ear = Ear(reader)
        await writer.close()
        await asyncio.sleep(reader._loss_s + 3 * reader._beat_s)  # as long as an alarm would take
        assert ear.told == [] and reader.trusted and not reader._peers


async def test_a_mute_peer_is_forgotten_after_a_while(valkey_url: str) -> None:
    reader = Link(valkey_url, mute_s=0.3)
    assert await reader.start()
    writer = Link(valkey_url)
    assert await writer.start()
    await _known(reader, 1)
    ear = Ear(reader)
    await _die(writer)
    await ear.hears("LOSS")
    assert await ear.hears("RECOVERY") < 1.0
    await reader.close()


async def test_an_overflow_becomes_one_message_for_everything(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline_server.link.OWED_MAX", 10)
    async with links(valkey_url, 2) as (writer, reader):
        ear = Ear(reader)
        await _known(reader, 1)
        await cut_publisher(writer)
        await asyncio.gather(*(writer.publish("members", str(i)) for i in range(11)))
        assert writer.owed == 1 and writer.dropped == 10
        await ear.hears("LOSS")
        await mend_publisher(writer)
        await ear.hears("RECOVERY")
        # The one message flushed what was cached while the writer was mute.
        assert ear.told == ["LOSS", "LOSS", "RECOVERY"]


async def test_a_one_shot_command_publishes_without_a_heartbeat(valkey_url: str) -> None:
    async with links(valkey_url, 1) as (reader,):
        ear = Ear(reader)
        command = Link(valkey_url)
        assert await command.publish("members", "from the shell")
        await ear.hears("from the shell")
        await command.close()
        assert reader.trusted and not reader._peers


async def test_flushall_does_not_harm_the_link(valkey_url: str) -> None:
    async with links(valkey_url, 2) as (writer, reader):
        ear = Ear(reader)
        await writer._wire.call(("FLUSHALL",))
        assert await writer.publish("members", "still")
        await ear.hears("still")
        assert ear.told == ["still"]


async def test_rubbish_on_the_channel_is_ignored(valkey_url: str) -> None:
    async with links(valkey_url, 2) as (writer, reader):
        ear = Ear(reader)
        await writer._wire.call(("PUBLISH", "trunkline:link", b"\xff\xfe"))
        await writer._wire.call(("PUBLISH", "trunkline:link", "x"))
        assert await writer.publish("members", "fine")
        await ear.hears("fine")


async def test_a_subscriber_that_fails_costs_a_flush_not_the_link(valkey_url: str) -> None:
    async with links(valkey_url, 2) as (writer, reader):
        ear = Ear(reader)

        def fail(payload: str) -> None:
            raise RuntimeError

        reader.subscribe("orgs", fail)
        await writer.publish("orgs", "x")
        await ear.hears("LOSS")
        await writer.publish("members", "y")
        await ear.hears("y")
        assert reader.trusted


async def test_a_short_stall_of_the_own_loop_is_not_a_loss(valkey_url: str) -> None:
    async with links(valkey_url, 1) as (link,):
        ear = Ear(link)
        time.sleep(link._loss_s + 0.2)  # the loop does not run: nothing of it is Valkey's fault
        await asyncio.sleep(3 * link._beat_s)
        assert ear.told == [] and link.trusted


async def _known(reader: Link, peers: int) -> None:
    async with asyncio.timeout(2):
        while len(reader._peers) < peers:
            await asyncio.sleep(0.01)


async def _die(link: Link) -> None:
    """As SIGKILL does: no goodbye."""
    for task in link._tasks:
        task.cancel()
    await asyncio.gather(*link._tasks, return_exceptions=True)
    link._tasks = []
    await link.close()


class Stalling:
    """A proxy that forgets its connections without closing them, as a lost route does."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._pumps: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    def forget(self) -> None:
        for pump in self._pumps:
            pump.cancel()

    async def close(self) -> None:
        self.forget()
        self._server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, back]
        for source, sink in ((reader, back), (there, writer)):
            self._pumps.append(asyncio.create_task(self._pump(source, sink)))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while chunk := await source.read(65536):
            sink.write(chunk)
        sink.close()


async def test_connections_that_died_silently_are_replaced(server: Server) -> None:
    proxy = Stalling(server.port)
    url = await proxy.start()
    async with links(url, 1) as (link,):
        ear = Ear(link)
        proxy.forget()
        assert await ear.hears("LOSS") < NOTICED_WITHIN_S
        await ear.hears("RECOVERY")
    await proxy.close()
