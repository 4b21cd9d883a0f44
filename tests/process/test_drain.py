"""The order in which a process ends, through a real server with calls in flight."""

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import pytest

from trunkline_server.rpc.drain import Drain

Context = grpc.aio.ServicerContext[bytes, bytes]
CALLS = 50


class Inflight:
    def __init__(self) -> None:
        self.count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        self.count += 1
        self._idle.clear()

    def leave(self) -> None:
        self.count -= 1
        if not self.count:
            self._idle.set()

    async def wait_idle(self) -> None:
        await self._idle.wait()


class Served:
    """A server whose calls wait for `release`, and which writes down what happens when."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.inflight = Inflight()
        self.arrived = asyncio.Semaphore(0)
        self.release = asyncio.Event()
        self.aborted = asyncio.Event()
        self.drain: Drain
        self.server = grpc.aio.server()
        self.channel: grpc.aio.Channel

    async def wait(self, _: bytes, __: Context) -> bytes:
        self.inflight.enter()
        try:
            self.arrived.release()
            await self.release.wait()
            return b"done"
        finally:
            self.inflight.leave()

    async def abort(self, _: bytes, context: Context) -> bytes:
        """A method whose status is out long before its handler is done."""
        self.inflight.enter()
        try:
            try:
                await context.abort(grpc.StatusCode.ABORTED, "over")
            finally:
                self.aborted.set()
                await self.release.wait()
                self.events.append("handler done")
        finally:
            self.inflight.leave()
        raise AssertionError("abort returned")

    async def stream(self, _: bytes, context: Context) -> AsyncIterator[bytes]:
        self.inflight.enter()
        told = asyncio.Event()
        take_back = self.drain.on_goaway(told.set)
        try:
            yield b"open"
            await told.wait()
            yield b"goaway"
        finally:
            take_back()
            self.inflight.leave()

    def call(self, method: str) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
        return self.channel.unary_unary(f"/t.T/{method}")

    # The part of health
    def health_drain(self) -> None:
        self.events.append("not serving")

    def end_watches(self) -> None:
        self.events.append("watches end")


class HealthOf:
    def __init__(self, served: Served) -> None:
        self.drain = served.health_drain
        self.end_watches = served.end_watches


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    unary = grpc.unary_unary_rpc_method_handler
    served.server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "t.T",
                {
                    "Wait": unary(served.wait),
                    "Abort": unary(served.abort),
                    "Stream": grpc.unary_stream_rpc_method_handler(served.stream),
                },
            ),
        )
    )
    port = served.server.add_insecure_port("127.0.0.1:0")
    await served.server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as served.channel:
        yield served
    await served.server.stop(0)


def closer(served: Served, name: str) -> tuple[str, Callable[[], Awaitable[None]]]:
    async def close() -> None:
        served.events.append(name)

    return name, close


def start(served: Served, **times: float) -> asyncio.Task[bool]:
    served.drain = Drain(**{"notice_s": 0.0, "grace_s": 10.0, **times})  # type: ignore[arg-type]
    closers = [closer(served, name) for name in ("leases", "pools", "telemetry")]
    return asyncio.create_task(
        served.drain.serve_out(
            health=HealthOf(served),
            server=served.server,
            inflight=served.inflight,
            closers=closers,
        )
    )


async def test_no_accepted_call_fails_and_the_order_holds(served: Served) -> None:
    call = served.call("Wait")
    calls = [asyncio.ensure_future(call(b"", timeout=30)) for _ in range(CALLS)]
    for _ in calls:
        await served.arrived.acquire()
    draining = start(served)
    await served.drain.draining.wait()
    assert served.events == ["not serving", "watches end"]
    served.release.set()
    assert await draining
    assert await asyncio.gather(*calls) == [b"done"] * CALLS
    assert served.events == ["not serving", "watches end", "leases", "pools", "telemetry"]


async def test_calls_are_served_during_the_notice(served: Served) -> None:
    served.release.set()
    draining = start(served, notice_s=0.3)
    await asyncio.sleep(0.05)
    assert served.events == ["not serving"]
    assert await served.call("Wait")(b"", timeout=5) == b"done"
    assert await draining


async def test_grpc_forgets_an_aborted_handler_and_the_drain_does_not(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await served.call("Abort")(b"", timeout=5)
    await served.aborted.wait()
    draining = start(served)
    # This is why there is a count of our own: grpc's stop answers while the handler works.
    await asyncio.wait_for(served.server.stop(10), timeout=5)
    assert served.inflight.count == 1
    assert "pools" not in served.events
    served.release.set()
    assert await draining
    assert served.events.index("handler done") < served.events.index("pools")


async def test_streams_are_told_in_band(served: Served) -> None:
    served.drain = Drain(notice_s=0.0)
    open_stream: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
    open_stream = served.channel.unary_stream("/t.T/Stream")
    stream = open_stream(b"", timeout=30)
    assert await stream.read() == b"open"
    draining = asyncio.create_task(
        served.drain.serve_out(
            health=HealthOf(served), server=served.server, inflight=served.inflight, closers=[]
        )
    )
    assert await stream.read() == b"goaway"
    assert await stream.read() is grpc.aio.EOF
    assert await draining


async def test_a_call_beyond_the_grace_is_cut_off(served: Served) -> None:
    call = asyncio.ensure_future(served.call("Wait")(b"", timeout=30))
    await served.arrived.acquire()
    draining = start(served, grace_s=0.1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await draining  # cancelled, and its `finally` ran before the pools went
    assert served.events[-3:] == ["leases", "pools", "telemetry"]


async def test_a_closer_that_fails_or_hangs_does_not_stop_the_next(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline_server.rpc.drain.STEP_TIMEOUT_S", 0.05)

    async def hang() -> None:
        await asyncio.Event().wait()

    async def fail() -> None:
        raise RuntimeError

    await Drain(notice_s=0).work_out(
        [("hangs", hang), ("fails", fail), closer(served, "telemetry")]
    )
    assert served.events == ["telemetry"]


def test_a_loop_that_hangs_is_ended_by_the_timer() -> None:
    program = """
        import asyncio, time
        from trunkline_server.rpc import drain
        drain.STEP_TIMEOUT_S = drain.HARD_EXIT_MARGIN_S = drain.UNWIND_S = 0.1

        async def hang() -> None:
            time.sleep(60)

        asyncio.run(drain.Drain(notice_s=0, grace_s=0).work_out([("hangs", hang)]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=30, check=False)
    assert done.returncode == 1
