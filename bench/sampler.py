"""What processes use, read from /proc: CPU-seconds, resident memory, file descriptors."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
# Fields of /proc/PID/stat, counted after the command's closing bracket.
_PPID = 1
_REAPED = slice(13, 15)  # user and system time of reaped children
_CPUCLOCK_SCHED = 2
RSS_EVERY_S = 0.05


def cpu_s(pids: Iterable[int]) -> float:
    """CPU-seconds used so far by these processes, their descendants, and the reaped ones."""
    members = family(pids)
    reaped = sum(int(ticks) for pid in members for ticks in _stat(pid)[_REAPED])
    return sum(_own_cpu_s(pid) for pid in members) + reaped / _TICKS_PER_S


def _own_cpu_s(pid: int) -> float:
    # The kernel's id of another process's CPU clock (clock_getcpuclockid): it counts in
    # nanoseconds, where /proc/PID/stat counts in ticks of 10 ms.
    try:
        return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)
    except OSError:
        return 0.0


def rss_mb(pids: Iterable[int]) -> float:
    """Resident memory of these processes and their descendants; shared pages count in each."""
    return sum(_status_kb(pid, "VmRSS:") for pid in family(pids)) / 1024


def descriptors(pids: Iterable[int]) -> int:
    return sum(len(list((_PROC / str(pid) / "fd").iterdir())) for pid in family(pids))


def family(pids: Iterable[int]) -> set[int]:
    """The processes and all their living descendants."""
    wanted = set(pids)
    parents = _parents()
    found = wanted & parents.keys()
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return found
        found |= more


def _parents() -> dict[int, int]:
    parents = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields:
                parents[int(entry.name)] = int(fields[_PPID])
    return parents


def _stat(pid: int) -> list[str]:
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    # The command may hold spaces and brackets, so the fields start after its last bracket.
    return text.rpartition(")")[2].split()


def _status_kb(pid: int, field: str) -> int:
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)


class Sampler:
    """CPU and peak memory of some processes over a `with` block."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch_memory, daemon=True)
        self.cpu_s = 0.0
        self.first_rss_mb = 0.0
        self.peak_rss_mb = 0.0

    def __enter__(self) -> Self:
        self.first_rss_mb = self.peak_rss_mb = rss_mb(self._pids)
        self._thread.start()
        self._cpu_at_start = cpu_s(self._pids)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cpu_s = cpu_s(self._pids) - self._cpu_at_start
        self._done.set()
        self._thread.join()

    def _watch_memory(self) -> None:
        pids = family(self._pids)
        while not self._done.wait(RSS_EVERY_S):
            self.peak_rss_mb = max(
                self.peak_rss_mb, sum(_status_kb(pid, "VmRSS:") for pid in pids) / 1024
            )
