"""`trunklined` as operating-system processes: what tests of signals, memory and logs need."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.running import PAGE_SECRET, PEPPER, SIGNING_KEY

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.02


def environment(database_url: str, redis_url: str, **given: str) -> dict[str, str]:
    """What the daemon's commands read; `given` overrides."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")
    }
    return {
        **inherited,
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "TRUNKLINE_ENVIRONMENT": "dev",
        "TRUNKLINE_KEY_PEPPER": PEPPER,
        "TRUNKLINE_PAGE_SECRET": PAGE_SECRET,
        "TRUNKLINE_TOKEN_KEY": SIGNING_KEY,
        "TRUNKLINE_DRAIN_WAIT_S": "0",
        "TRUNKLINE_DRAIN_GRACE_S": "10",
        "TRUNKLINE_POOL_SIZE": "4",
        "TRUNKLINE_READERS": "2",
        **given,
    }


class Daemon:
    """A `serve` or `worker` with its children, and all that it wrote on stderr."""

    def __init__(self, log: Path, variables: Mapping[str, str], *command: str) -> None:
        self.log = log
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "trunkline_server", *command],
                env=dict(variables), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=stderr, text=True,
            )  # fmt: skip
        self.announced = self._first_line()

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _first_line(self) -> str:
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], READY_TIMEOUT_S)
        line = self.process.stdout.readline().strip() if readable else ""
        if not line:
            self.stop()
            raise AssertionError(f"not ready: {self.log.read_text()[-2000:]}")
        return line

    @property
    def address(self) -> str:
        """Of a `serve`: "serving on ADDRESS with N processes"."""
        return self.announced.split()[2]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def children(self) -> list[int]:
        return children_of(self.process.pid)

    def lines(self) -> list[dict[str, Any]]:
        """The log, which is JSON from the first line to the last."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """Drain; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()


def children_of(pid: int) -> list[int]:
    """The processes that `pid` started and that are still there."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def rss_bytes(pid: int) -> int:
    return _status_bytes(pid, "VmRSS")


def peak_rss_bytes(pid: int) -> int:
    return _status_bytes(pid, "VmHWM")


def _status_bytes(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise LookupError(name)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def until(holds: Callable[[], bool], within_s: float) -> None:
    """For what another process does and tells nobody."""
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(POLL_S)


async def command(variables: Mapping[str, str], *words: str) -> tuple[int, str, str]:
    """Run `trunklined words...` to its end: exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "trunkline_server", *words,
        env=dict(variables), stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(READY_TIMEOUT_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
