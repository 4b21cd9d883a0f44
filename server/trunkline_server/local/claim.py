"""One process at a time may run a server in a directory."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from trunkline_server.local.errors import DirectoryBusy

# Longer than a leash needs to end the server of a process that was killed.
HANDOVER_TIMEOUT_S = 15.0
POLL_S = 0.05


class Claim:
    """A lock file held with flock.

    The descriptor is handed to the server's leash, so after a SIGKILL of the owner the directory
    stays claimed until the server is gone too, and the next start simply waits for that.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "lock"
        self._fd: int | None = None

    @property
    def fd(self) -> int:
        """The locked descriptor."""
        assert self._fd is not None
        return self._fd

    @property
    def held(self) -> bool:
        """Whether this object holds the directory."""
        return self._fd is not None

    def take(self) -> None:
        """Hold the directory, or raise DirectoryBusy when its owner is alive."""
        if self._fd is not None:
            return
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._lock(fd)
        except BaseException:
            os.close(fd)
            raise
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {_started_at(os.getpid())}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        """Give the directory back."""
        if self._fd is not None:
            # A forked child may still hold a copy of the descriptor: unlocking frees them all.
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
            self._fd = None

    def _lock(self, fd: int) -> None:
        deadline = time.monotonic() + HANDOVER_TIMEOUT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                owner = _living_owner(os.pread(fd, 64, 0).decode())
                if owner is not None or time.monotonic() > deadline:
                    raise DirectoryBusy(
                        f"{self._path.parent} is in use by process {owner or 'unknown'}: "
                        "stop that one first, or choose another directory"
                    ) from None
            time.sleep(POLL_S)


def _living_owner(record: str) -> int | None:
    match record.split():
        case [pid, started_at] if _started_at(int(pid)) == started_at:
            return int(pid)
    return None


def _started_at(pid: int) -> str:
    """When a process began, in clock ticks since boot, so that a reused pid is not mistaken."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return "gone"
    return stat.rpartition(b")")[2].split()[19].decode()
