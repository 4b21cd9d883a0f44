"""HTTP/2 that is cut off, stalls or floods: frames written by hand on a plain socket."""

from __future__ import annotations

import asyncio
import gzip
import time

import pytest
from grpc import StatusCode
from hyperframe.frame import ContinuationFrame, GoAwayFrame, HeadersFrame, PingFrame, SettingsFrame

from tests.badinput.conftest import CONNECTION_IDLE_S, HANDSHAKE_TIMEOUT_S, House
from tests.badinput.wire import FRAME_BYTES_MAX, PREFACE, Wire, message, request_headers, wire
from tests.daemons import cpu_s, peak_rss_bytes, rss_bytes
from tests.running import Running, running
from trunkline_server.identity.service import IdentityService
from trunkline_server.rpc.caller import Role
from trunkline_server.rpc.options import MESSAGE_BYTES_MAX, STREAMS_PER_CONNECTION_MAX

ENHANCE_YOUR_CALM = 11
REFUSED_STREAM = 7
SLACK_S = 3.0
BOMB_RSS_BYTES_MAX = 16 << 20
# Beside the process's own background work, while the flood lasts.
FLOOD_CPU_S_MAX = 1.0
# A flood costs what as many bytes of good calls cost, or less.
FLOOD_CPU_S_PER_MIB = 0.3


def known(house: House, **changed: str | None) -> list[tuple[str | bytes, str | bytes]]:
    changed.setdefault("authorization", house.authorization)
    return request_headers(**changed)


@pytest.mark.parametrize("content", [b"", b"\0\0", message(b"ab", length=10)], ids=repr)
@pytest.mark.parametrize("timeout", ["5S", None])
async def test_half_closed_without_a_whole_message(
    house: House, content: bytes, timeout: str | None
) -> None:
    async with wire(house.port) as connection:
        connection.call(1, known(house, grpc_timeout=timeout), content)
        reply = await connection.reply(1)
    assert reply.status == StatusCode.INVALID_ARGUMENT.value[0]


async def test_half_closed_by_its_headers(house: House) -> None:
    async with wire(house.port) as connection:
        connection.open(1, known(house, grpc_timeout=None), end=True)
        reply = await connection.reply(1)
    assert reply.status == StatusCode.INVALID_ARGUMENT.value[0]


async def test_a_message_that_never_ends_costs_its_deadline(house: House) -> None:
    async with wire(house.port) as connection:
        connection.open(1, known(house, grpc_timeout="700m"))
        connection.data(1, message(b"ab", length=10), end=False)
        reply = await connection.reply(1, within_s=SLACK_S)
    assert reply.status == StatusCode.DEADLINE_EXCEEDED.value[0]


async def test_a_message_that_never_comes_costs_the_default_deadline(house: House) -> None:
    async with wire(house.port) as connection:
        connection.open(1, known(house, grpc_timeout=None))
        started = time.monotonic()
        reply = await connection.reply(1, within_s=30)
    assert reply.status == StatusCode.DEADLINE_EXCEEDED.value[0]
    assert time.monotonic() - started > 1  # or the test shows nothing


@pytest.mark.parametrize("hello", [b"", PREFACE, PREFACE[:7]], ids=["silent", "preface", "half"])
async def test_a_connection_that_says_no_more(house: House, hello: bytes) -> None:
    async with wire(house.port, hello=False) as connection:
        connection.send_raw(hello)
        await connection.closed(HANDSHAKE_TIMEOUT_S + SLACK_S)


async def test_settings_never_acknowledged(house: House) -> None:
    async with wire(house.port, acknowledge=False) as connection:
        connection.call(1, known(house))
        await connection.closed(HANDSHAKE_TIMEOUT_S + SLACK_S)


async def test_a_connection_without_calls(house: House) -> None:
    async with wire(house.port) as connection:
        await connection.heard(GoAwayFrame, within_s=CONNECTION_IDLE_S + SLACK_S)


@pytest.mark.parametrize(
    "hello",
    [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"\0" * 64],
    ids=["http1", "tls", "zeros"],
)
async def test_another_protocol(house: House, hello: bytes) -> None:
    async with wire(house.port, hello=False) as connection:
        connection.send_raw(hello)
        await connection.closed(HANDSHAKE_TIMEOUT_S + SLACK_S)


@pytest.mark.parametrize(
    "frames",
    [
        b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",  # 16 MiB of DATA announced
        b"\x00\x00\x04\x01\x04\x00\x00\x00\x01\xff\xff\xff\xff",  # headers that are no HPACK
        b"\x00\x00\x05\x06\x00\x00\x00\x00\x00hello",  # a ping of five bytes
        b"\x00\x00\x03\x04\x00\x00\x00\x00\x00abc",  # settings of three bytes
        b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x7f\xff\xff\xff",  # a window over its maximum
    ],
    ids=["oversized", "hpack", "ping", "settings", "window"],
)
async def test_a_broken_frame(house: House, frames: bytes) -> None:
    async with wire(house.port) as connection:
        await connection.settle()
        connection.send_raw(frames)
        await connection.closed(CONNECTION_IDLE_S + SLACK_S)


async def test_more_streams_than_allowed(house: House) -> None:
    extra = 10
    ids = [1 + 2 * number for number in range(STREAMS_PER_CONNECTION_MAX + extra)]
    async with wire(house.port) as connection:
        await connection.settle()
        assert connection.settings[3] == STREAMS_PER_CONNECTION_MAX
        for stream in ids:
            connection.open(stream, known(house, grpc_timeout="2S"))
        last = await connection.reply(ids[-1])
        assert last.status is None
        assert last.reset == REFUSED_STREAM
        first = await connection.reply(ids[0])
        assert first.status == StatusCode.DEADLINE_EXCEEDED.value[0]
        refused = [await connection.reply(stream) for stream in ids]
    assert sum(reply.reset == REFUSED_STREAM for reply in refused) == extra


async def test_300_rapid_resets_start_no_handler(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    who_am_i = IdentityService.WhoAmI

    async def counted(self: IdentityService, request: object, context: object) -> object:
        started.append("WhoAmI")
        return await who_am_i(self, request, context)  # type: ignore[arg-type]

    monkeypatch.setattr(IdentityService, "WhoAmI", counted)
    async with running(database_url, redis_url) as server:
        await _reset_300(server)
        async with asyncio.timeout(SLACK_S):
            await server.server._wrapper.inflight.wait_idle()
        assert started == []


async def _reset_300(server: Running) -> None:
    org = await server.org("acme")
    headers = request_headers(authorization=org.as_(Role.ADMIN)[0][1])
    async with wire(server.server.port) as connection:
        await connection.settle()
        with connection.at_once():
            for number in range(300):
                connection.call(1 + 2 * number, headers)
                connection.reset(1 + 2 * number)
        # The server either goes on with this connection or closes it; both end here.
        connection.call(601, [*headers[:-1], ("authorization", "Bearer nobody")])
        await connection.reply(601)


async def test_a_ping_flood(house: House) -> None:
    async with wire(house.port) as connection:
        await connection.settle()
        connection.open(1, known(house, grpc_timeout="9S"))
        for _ in range(10):
            connection.send(PingFrame(0, b"pingpong"))
            await connection.heard(PingFrame, GoAwayFrame)
            if connection.goaway is not None:
                break
        assert connection.goaway is not None
        assert connection.goaway.error_code == ENHANCE_YOUR_CALM
        assert connection.goaway.additional_data == b"too_many_pings"
        await connection.closed(SLACK_S)


async def test_a_ping_flood_that_does_not_listen(house: House) -> None:
    async with wire(house.port) as connection:
        await connection.settle()
        ping = PingFrame(0, b"pingpong").serialize()
        await flood(house, connection, ping * 1000, times=20)


async def flood(house: House, connection: Wire, content: bytes, times: int) -> None:
    """Sends it all. Afterwards the connection is closed, and the server did not work much."""
    cpu_before, rss_before = cpu_s(house.pid), rss_bytes(house.pid)
    for _ in range(times):
        connection.send_raw(content)
        await connection.flush()
    await connection.closed(CONNECTION_IDLE_S + 3 * SLACK_S)
    sent_mib = len(content) * times / (1 << 20)
    assert cpu_s(house.pid) - cpu_before < FLOOD_CPU_S_MAX + sent_mib * FLOOD_CPU_S_PER_MIB
    assert rss_bytes(house.pid) - rss_before < BOMB_RSS_BYTES_MAX


async def test_a_continuation_flood(house: House) -> None:
    async with wire(house.port) as connection:
        await connection.settle()
        block = b"\x00\x03x-a\x01b" * (FRAME_BYTES_MAX // 7)
        connection.send(HeadersFrame(1, block))
        frame = ContinuationFrame(1, block).serialize()
        await flood(house, connection, frame, times=500)


async def test_a_flood_of_empty_continuations(house: House) -> None:
    async with wire(house.port) as connection:
        await connection.settle()
        connection.send(HeadersFrame(1, b""))
        frame = ContinuationFrame(1, b"").serialize()
        await flood(house, connection, frame * 1000, times=100)


async def test_a_settings_flood(house: House) -> None:
    async with wire(house.port) as connection:
        await connection.settle()
        frame = SettingsFrame(0, settings={4: 65_535}).serialize()
        await flood(house, connection, frame * 1000, times=50)


async def test_a_gzip_bomb(house: House) -> None:
    bomb = gzip.compress(bytes(512 << 20), compresslevel=9)
    assert len(bomb) < MESSAGE_BYTES_MAX
    async with wire(house.port) as connection:  # warm: the first call allocates for all
        connection.call(1, known(house))
        await connection.reply(1)
    before = rss_bytes(house.pid)
    peak_before = peak_rss_bytes(house.pid)
    async with wire(house.port) as connection:
        await connection.settle()
        connection.open(1, [*known(house), ("grpc-encoding", "gzip")])
        framed = message(bomb, compressed=True)
        for at in range(0, len(framed), FRAME_BYTES_MAX):
            connection.data(1, framed[at : at + FRAME_BYTES_MAX], end=False)
        reply = await connection.reply(1, within_s=30)
    assert reply.status == StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert rss_bytes(house.pid) - before <= BOMB_RSS_BYTES_MAX
    assert peak_rss_bytes(house.pid) <= max(peak_before, before + BOMB_RSS_BYTES_MAX)


@pytest.mark.parametrize("length", [5 << 20, (1 << 32) - 1])
async def test_a_message_longer_than_allowed(house: House, length: int) -> None:
    async with wire(house.port) as connection:
        connection.open(1, known(house))
        connection.data(1, message(b"a" * 100, length=length), end=False)
        reply = await connection.reply(1)
    assert reply.status == StatusCode.RESOURCE_EXHAUSTED.value[0]
