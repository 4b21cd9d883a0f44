"""A small parent that keeps N processes alive: restarts, drains and rolls them.

It never imports grpc: its children are started anew (not forked), share the port by
SO_REUSEPORT, say over a pipe that they are ready, and see on another pipe that the parent died.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

READY_TIMEOUT_S = 60.0
DRAIN_TIMEOUT_S = 40.0  # wait 5 s, calls 25 s, leases, pools and telemetry 10 s
BACK_OFF_S = 0.25
BACK_OFF_MAX_S = 15.0
STEADY_S = 30.0  # a child that was ready this long starts again without back-off
CRASHES_MAX = 10  # in CRASH_WINDOW_S, with no child ready: somebody above has to look
CRASH_WINDOW_S = 60.0
ORPHAN_EXIT_S = 45.0  # an orphan that cannot drain ends itself

# sysexits.h: a mistake that the next start would meet again, so there is none.
EXIT_CONFIG: Final = 78
EXIT_CRASH_LOOP: Final = 70

ENV_INDEX: Final = "TRUNKLINE_CHILD_INDEX"
ENV_READY_FD: Final = "TRUNKLINE_CHILD_READY_FD"
ENV_PARENT_FD: Final = "TRUNKLINE_CHILD_PARENT_FD"
ENV_PORT: Final = "TRUNKLINE_CHILD_PORT"

_READY: Final = b"ready\n"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reservation:
    """A port held for the children: bound, never listening, so it takes no connection."""

    socket: socket.socket
    port: int

    def close(self) -> None:
        self.socket.close()


def reserve(host: str, port: int) -> Reservation:
    """Find or claim the port. SO_REUSEPORT alone would share it with a stranger in silence."""
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    if port != 0:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
    except BaseException:
        held.close()
        raise
    return Reservation(held, held.getsockname()[1])


@dataclass(eq=False, slots=True)
class _Child:
    index: int
    process: asyncio.subprocess.Process
    parent_end: int  # closed by our death, which is how the child learns of it
    started: float
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    retired: bool = False  # its end is wanted: no restart

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


class Supervisor:
    """Runs `command` in `processes` slots until a signal ends it; `run` answers the exit code."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        processes: int,
        reservation: Reservation | None = None,
        environment: Mapping[str, str] | None = None,
        ready_timeout_s: float = READY_TIMEOUT_S,
        drain_timeout_s: float = DRAIN_TIMEOUT_S,
        back_off_s: float = BACK_OFF_S,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        if processes < 1:
            raise ValueError("at least one process")
        self._command = list(command)
        self._processes = processes
        self._reservation = reservation
        self._environment = dict(os.environ if environment is None else environment)
        self._ready_timeout_s = ready_timeout_s
        self._drain_timeout_s = drain_timeout_s
        self._back_off_s = back_off_s
        self._on_ready = on_ready
        self._slots: dict[int, _Child] = {}
        self._children: set[_Child] = set()
        self._starting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._crashes: deque[float] = deque(maxlen=CRASHES_MAX)
        self._failures: dict[int, int] = {}
        self._announced = False
        self._roll_wanted = asyncio.Event()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._exit_code = 0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._terminate)
        loop.add_signal_handler(signal.SIGINT, self._terminate)
        loop.add_signal_handler(signal.SIGHUP, self._roll_wanted.set)
        try:
            for index in range(self._processes):
                self._slots[index] = await self._spawn(index)
            self._task(self._roll_when_asked())
            await self._stop.wait()
        finally:
            await self._end()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)
        return self._exit_code

    # Children

    async def _spawn(self, index: int) -> _Child:
        ready_read, ready_write = os.pipe()
        parent_read, parent_write = os.pipe()
        passed = (ready_write, parent_read)
        self._starting += 1
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._child_environment(index, ready_write, parent_read),
                pass_fds=passed,
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches the parent only, which then drains
            )
        except BaseException:
            os.close(ready_read)
            os.close(parent_write)
            raise
        finally:
            self._starting -= 1
            for descriptor in passed:
                os.close(descriptor)
        child = _Child(index, process, parent_write, time.monotonic())
        self._children.add(child)
        asyncio.get_running_loop().add_reader(ready_read, self._heard, child, ready_read)
        self._task(self._watch(child))
        _log.info("process started", extra={"process_index": index, "pid": child.pid})
        return child

    def _child_environment(self, index: int, ready: int, parent: int) -> dict[str, str]:
        environment = {
            "GRPC_VERBOSITY": "NONE",  # the core's own lines are not JSON and name peers
            **self._environment,
            ENV_INDEX: str(index),
            ENV_READY_FD: str(ready),
            ENV_PARENT_FD: str(parent),
        }
        if self._reservation is not None:
            environment[ENV_PORT] = str(self._reservation.port)
        return environment

    def _heard(self, child: _Child, descriptor: int) -> None:
        heard = os.read(descriptor, len(_READY))
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        if not heard:  # the child ended, or closed the pipe, without being ready
            return
        child.ready.set()
        if not self._announced and all(each.ready.is_set() for each in self._slots.values()):
            self._announced = True
            if self._on_ready:
                self._on_ready()

    async def _watch(self, child: _Child) -> None:
        code = await child.process.wait()
        child.exited.set()
        os.close(child.parent_end)
        self._children.discard(child)
        if child.retired or self._stop.is_set():
            return
        _log.error(
            "process ended unasked",
            extra={"process_index": child.index, "pid": child.pid, "exit_code": code},
        )
        if self._slots.get(child.index) is not child:
            return  # a replacement that failed: the roll deals with it
        if code == EXIT_CONFIG:
            self._give_up(EXIT_CONFIG)
        elif self._loops():
            self._give_up(EXIT_CRASH_LOOP)
        else:
            await self._restart(child)

    def _loops(self) -> bool:
        now = time.monotonic()
        self._crashes.append(now)
        if any(child.ready.is_set() for child in self._children):
            return False  # part of the service is better than none
        return len(self._crashes) == CRASHES_MAX and now - self._crashes[0] < CRASH_WINDOW_S

    async def _restart(self, dead: _Child) -> None:
        steady = dead.ready.is_set() and time.monotonic() - dead.started > STEADY_S
        failures = 0 if steady else self._failures.get(dead.index, 0)
        self._failures[dead.index] = failures + 1
        wait_s = min(BACK_OFF_MAX_S, self._back_off_s * 2**failures) * random.uniform(0.5, 1.0)
        if await _happens(self._stop, wait_s):
            return
        try:
            self._slots[dead.index] = await self._spawn(dead.index)
        except OSError:
            _log.exception("process cannot be started")
            self._give_up(EXIT_CRASH_LOOP)

    def _give_up(self, code: int) -> None:
        _log.critical("giving up", extra={"exit_code": code})
        self._exit_code = code
        self._stop.set()

    # Rolling restart

    async def _roll_when_asked(self) -> None:
        while True:
            await self._roll_wanted.wait()
            self._roll_wanted.clear()
            for index in range(self._processes):
                if self._stop.is_set() or not await self._replace(index):
                    break

    async def _replace(self, index: int) -> bool:
        """Start the new one, wait until it serves, then drain the old one."""
        fresh = await self._spawn(index)
        if not await _first(fresh.ready, fresh.exited, self._stop, timeout_s=self._ready_timeout_s):
            _log.error("replacement was not ready in time", extra={"process_index": index})
        if self._stop.is_set():
            return False
        if not fresh.ready.is_set() or fresh.exited.is_set():
            fresh.retired = True
            fresh.signal(signal.SIGKILL)
            _log.error("rolling restart stopped: the old processes stay")
            return False
        old, self._slots[index] = self._slots[index], fresh
        await self._drain(old)
        return True

    async def _drain(self, child: _Child) -> bool:
        child.retired = True
        child.signal(signal.SIGTERM)
        await _first(child.exited, self._hurry, timeout_s=self._drain_timeout_s)
        if child.exited.is_set():
            return True
        _log.error("process did not drain in time", extra={"pid": child.pid})
        child.signal(signal.SIGKILL)
        await child.exited.wait()
        return False

    # The end

    def _terminate(self) -> None:
        """The first signal drains; the second one is meant."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def _end(self) -> None:
        self._stop.set()
        # A child that was being started when the stop came is drained in the next round.
        while self._children or self._starting:
            drained = await asyncio.gather(*(self._drain(child) for child in self._children))
            if not all(drained) and self._exit_code == 0:
                self._exit_code = 1
            await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _task(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _happens(event: asyncio.Event, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def _first(*events: asyncio.Event, timeout_s: float) -> bool:
    """Wait for any of the events; False when time was up first."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return bool(done)


class Parent:
    """A child's view of its supervisor."""

    def __init__(self, index: int, port: int | None, ready_fd: int, parent_fd: int) -> None:
        self.index = index
        self.port = port  # of the shared listener; None for a worker
        self._ready_fd = ready_fd
        self._parent_fd = parent_fd
        for descriptor in (ready_fd, parent_fd):
            os.set_inheritable(descriptor, False)

    @classmethod
    def from_environment(cls) -> Parent | None:
        """None when nobody supervises this process."""
        if ENV_READY_FD not in os.environ:
            return None
        port = os.environ.pop(ENV_PORT, None)
        return cls(
            index=int(os.environ.pop(ENV_INDEX)),
            port=int(port) if port else None,
            ready_fd=int(os.environ.pop(ENV_READY_FD)),
            parent_fd=int(os.environ.pop(ENV_PARENT_FD)),
        )

    def ready(self) -> None:
        """Say that this process serves. Once."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._ready_fd, _READY)
        os.close(self._ready_fd)

    def follow(self, exit_after_s: float = ORPHAN_EXIT_S) -> None:
        """Drain when the parent dies, whatever it died of. A thread, for a loop that hangs."""
        threading.Thread(
            target=self._follow, args=(exit_after_s,), name="parent", daemon=True
        ).start()

    def _follow(self, exit_after_s: float) -> None:
        while os.read(self._parent_fd, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(exit_after_s)
        os._exit(1)
