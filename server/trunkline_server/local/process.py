"""Server processes on a leash, and what the two kinds of server have in common."""

from __future__ import annotations

import functools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from trunkline_server.local import leash
from trunkline_server.local.errors import LocalStackError
from trunkline_server.local.leash import UNPRIVILEGED_ID, Identity, children_of

# Below the kernel's ephemeral range: there a client that reconnects while the server is down can
# be given the server's own port, connect to itself and keep the port from it.
PORTS = range(15_000, 32_000)
PORT_TRIES = 200
PROBE_TIMEOUT_S = 20.0
KILLED_TIMEOUT_S = 10.0
LOG_TAIL_BYTES = 2_000


class LeashedProcess:
    """A command that ends, with everything it started, no later than the process that made it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        identity: Identity,
        stop_signal: signal.Signals,
        keep_fd: int | None = None,
    ) -> None:
        read_fd, write_fd = os.pipe()
        arguments = [str(os.getpid()), identity, str(int(stop_signal)), str(write_fd), *command]
        try:
            with log.open("ab") as output:
                self._leash = subprocess.Popen(
                    [sys.executable, "-I", "-S", leash.__file__, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(write_fd,) if keep_fd is None else (write_fd, keep_fd),
                    start_new_session=True,
                )
        finally:
            os.close(write_fd)
        with os.fdopen(read_fd) as report:
            self.pid = int(report.readline() or 0)

    def running(self) -> bool:
        """Whether the command or anything it started is still there."""
        return self._leash.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the command itself."""
        if self.running():
            signal_if_there(self.pid, number)

    def send_all(self, number: signal.Signals) -> None:
        """Send a signal to the command and to its children."""
        if self.running():
            # The command first: once it has stopped it starts no more children.
            signal_if_there(self.pid, number)
            for pid in children_of(self.pid):
                signal_if_there(pid, number)

    def wait(self, timeout_s: float) -> int:
        """Wait until the command and everything it started is gone; TimeoutExpired when not."""
        return self._leash.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL, and wait until nothing is left."""
        self.send(signal.SIGKILL)
        self.wait(KILLED_TIMEOUT_S)


def signal_if_there(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may already be gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


@functools.cache
def identity_for(program: Path) -> Identity:
    """Who may run this program here: servers refuse root, or should not need it."""
    if os.geteuid() != 0:
        return Identity.SELF
    for identity in (Identity.NAMESPACE, Identity.DROPPED):
        if _runs(program, identity):
            return identity
    raise LocalStackError(
        f"{program} runs neither in a user namespace nor as uid {UNPRIVILEGED_ID}: "
        "start as an ordinary user, put the project where every user can read it, "
        "or set DATABASE_URL and REDIS_URL to servers that run elsewhere"
    )


def _runs(program: Path, identity: Identity) -> bool:
    probe = LeashedProcess(
        [str(program), "--version"],
        log=Path(os.devnull),
        identity=identity,
        stop_signal=signal.SIGKILL,
    )
    return probe.wait(PROBE_TIMEOUT_S) == 0


def hand_over(directory: Path, identity: Identity) -> None:
    """Give a directory and all in it to the identity that will work there."""
    owner = UNPRIVILEGED_ID if identity is Identity.DROPPED else os.geteuid()
    if identity is Identity.DROPPED:
        _check_reachable(directory)
    if directory.stat().st_uid == owner:
        return
    if os.geteuid() != 0:
        raise LocalStackError(f"{directory} belongs to another user: choose another directory")
    for path in directory.rglob("*"):
        os.chown(path, owner, owner, follow_symlinks=False)
    # Last, so that an interrupted handover is done again.
    os.chown(directory, owner, owner)


def _check_reachable(directory: Path) -> None:
    for parent in directory.parents:
        if not parent.stat().st_mode & 0o001:
            raise LocalStackError(
                f"{directory} cannot be reached by uid {UNPRIVILEGED_ID}, because {parent} is "
                "closed to other users and this system offers root no user namespace: choose "
                "a directory elsewhere, or set DATABASE_URL and REDIS_URL"
            )


def evict(directory: Path, programs: Sequence[str]) -> None:
    """End what still works in this directory although nobody holds it any more."""
    leftovers = _working_in(directory, programs)
    for pid in leftovers:
        signal_if_there(pid, signal.SIGKILL)
    deadline = time.monotonic() + KILLED_TIMEOUT_S
    while _working_in(directory, programs):
        if time.monotonic() > deadline:
            raise LocalStackError(f"processes {leftovers} in {directory} do not end: stop them")
        time.sleep(0.02)


def _working_in(directory: Path, programs: Sequence[str]) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            here = entry.joinpath("cwd").readlink() == directory
            if here and entry.joinpath("exe").readlink().name in programs:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def free_port(remembered: Path) -> int:
    """The port of the last start if it is free, else another one; remembered for the next."""
    try:
        wanted = int(remembered.read_text())
    except (OSError, ValueError):
        wanted = 0
    candidates = [wanted] if wanted in PORTS else []
    candidates += random.sample(PORTS, PORT_TRIES)
    for port in candidates:
        if _bindable(port):
            remembered.write_text(f"{port}\n")
            return port
    raise LocalStackError("no free loopback port was found: close some programs that listen")


def _bindable(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            # SO_REUSEADDR lets two sockets bind; only one may listen.
            probe.listen(1)
        except OSError:
            return False
    return True


def log_tail(log: Path) -> str:
    """The end of a server's log, for an error message."""
    try:
        return log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
    except OSError:
        return "(no log)"
