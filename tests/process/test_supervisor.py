"""The parent process, run as a process: restarts, drains, rolls, and never leaves an orphan."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

import trunkline_server
from trunkline_server.supervisor import EXIT_CONFIG, EXIT_CRASH_LOOP, reserve

PARENT = Path(__file__).with_name("parent_program.py")
SERVER = Path(trunkline_server.__file__).parents[1]
PATIENCE_S = 30.0


class Running:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.port = 0

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            return (await self.process.stdout.readline()).decode().strip()

    async def started(self) -> None:
        word, port, has_grpc = (await self.line()).split()
        assert (word, has_grpc) == ("port", "False")
        self.port = int(port)

    async def ready(self) -> None:
        await self.started()
        assert await self.line() == "ready"

    async def code(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()

    async def pids(self) -> dict[int, int]:
        """Index and pid of the processes that a handful of connections reach."""
        found: dict[int, int] = {}
        for _ in range(40):
            with contextlib.suppress(ConnectionError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                if answer := (await reader.readline()).decode().split():
                    found[int(answer[0])] = int(answer[1])
                writer.close()
                await writer.wait_closed()
        return found

    async def until(self, holds: Callable[[dict[int, int]], bool]) -> dict[int, int]:
        async with asyncio.timeout(PATIENCE_S):
            while not holds(found := await self.pids()):
                await asyncio.sleep(0.05)
            return found


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    running: list[Running] = []

    async def begin(*arguments: str, **environment: str) -> Running:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(PARENT),
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(SERVER), **environment},
        )
        running.append(Running(process))
        return running[-1]

    yield begin
    for each in running:
        with contextlib.suppress(ProcessLookupError):
            each.process.kill()
        await each.process.wait()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


async def gone(*pids: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while any(alive(pid) for pid in pids):
            await asyncio.sleep(0.02)


async def test_children_share_the_reserved_port_and_drain_on_sigterm(start: Start) -> None:
    parent = await start("serve", "2")
    await parent.ready()
    pids = await parent.until(lambda found: len(found) == 2)
    parent.process.send_signal(signal.SIGTERM)
    assert await parent.code() == 0
    assert not any(alive(pid) for pid in pids.values())


async def test_a_killed_child_is_replaced(start: Start) -> None:
    parent = await start("serve", "2")
    await parent.ready()
    before = await parent.until(lambda found: len(found) == 2)
    os.kill(before[0], signal.SIGKILL)
    after = await parent.until(lambda found: len(found) == 2 and found[0] != before[0])
    assert after[1] == before[1]


async def test_children_die_with_a_killed_parent(start: Start) -> None:
    parent = await start("serve", "2")
    await parent.ready()
    pids = await parent.until(lambda found: len(found) == 2)
    parent.process.kill()
    await parent.code()
    await gone(*pids.values())


async def test_an_orphan_that_hangs_ends_itself(start: Start) -> None:
    parent = await start("hang-on-term", "1")
    await parent.ready()
    pids = await parent.until(lambda found: len(found) == 1)
    parent.process.kill()
    await parent.code()
    await gone(*pids.values())


async def test_sighup_replaces_all_and_always_listens(start: Start) -> None:
    parent = await start("serve", "2")
    await parent.ready()
    before = await parent.until(lambda found: len(found) == 2)
    parent.process.send_signal(signal.SIGHUP)
    after = await parent.until(
        lambda found: (
            bool(found) and not set(found.values()) & set(before.values()) and len(found) == 2
        )
    )
    await gone(*before.values())
    assert set(after) == {0, 1}


async def test_a_replacement_that_never_serves_leaves_the_old_one(
    start: Start, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    parent = await start("ready-once", "1", str(marker), TEST_READY_TIMEOUT_S="1")
    await parent.ready()
    before = await parent.until(lambda found: len(found) == 1)
    marker.touch()
    parent.process.send_signal(signal.SIGHUP)
    await asyncio.sleep(1.5)  # longer than the replacement may take
    assert await parent.pids() == before


async def test_a_child_that_does_not_drain_is_killed(start: Start) -> None:
    parent = await start("hang-on-term", "1", TEST_DRAIN_TIMEOUT_S="0.3")
    await parent.ready()
    pids = await parent.until(lambda found: len(found) == 1)
    parent.process.send_signal(signal.SIGTERM)
    assert await parent.code() == 1
    assert not alive(pids[0])


async def test_a_second_signal_does_not_wait(start: Start) -> None:
    parent = await start("hang-on-term", "1", TEST_DRAIN_TIMEOUT_S="60")
    await parent.ready()
    parent.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.1)
    parent.process.send_signal(signal.SIGTERM)
    assert await parent.code() == 1


@pytest.mark.parametrize(
    ("behaviour", "code"), [("bad-config", EXIT_CONFIG), ("crash", EXIT_CRASH_LOOP)]
)
async def test_the_supervisor_gives_up(start: Start, behaviour: str, code: int) -> None:
    parent = await start(behaviour, "2")
    await parent.started()
    assert await parent.code() == code


def test_a_port_that_somebody_serves_is_refused() -> None:
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        with pytest.raises(OSError, match="in use"):
            reserve("127.0.0.1", stranger.getsockname()[1])
