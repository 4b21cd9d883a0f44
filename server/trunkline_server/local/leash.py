"""Runs one command and ends it, with all its descendants, when whoever asked for it is gone.

Started as a file of its own (`python -I -S leash.py ...`), so it imports the standard library only
and stays small. The process that starts a server is its parent's child, not the server's parent:
the leash is. It outlives a SIGKILL of that process just long enough to end the server.

    leash.py PARENT_PID IDENTITY STOP_SIGNAL REPORT_FD COMMAND...
"""

from __future__ import annotations

import ctypes
import enum
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

UNPRIVILEGED_ID = 65534
GRACE_S = 8.0
POLL_S = 0.25
EXEC_FAILED = 127
DESCRIPTORS_MAX = 1024

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_WATCHED = {signal.SIGCHLD, signal.SIGTERM}
# The terminal sends these to the whole foreground group: the command decides what they mean.
_IGNORED = {signal.SIGINT, signal.SIGHUP}


class Identity(enum.StrEnum):
    """Who the command runs as."""

    SELF = "self"
    # Root in disguise: inside a user namespace it is uid 65534, its files stay root's.
    NAMESPACE = "namespace"
    # Root given up: uid 65534 for good, its files must belong to that uid.
    DROPPED = "dropped"


def children_of(parent: int) -> list[int]:
    """The direct children of a process; empty where there is no /proc."""
    try:
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    except OSError:
        return []
    return [pid for pid in pids if _parent_of(pid) == parent]


def main(arguments: Sequence[str]) -> int:
    """Start the command, report its pid, and watch it and the parent until one of them ends."""
    parent, report_fd = int(arguments[0]), int(arguments[3])
    identity, stop_signal = Identity(arguments[1]), int(arguments[2])
    if identity is Identity.NAMESPACE:
        _enter_namespace()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED | _IGNORED)
    child = _spawn(arguments[4:], identity)
    if report_fd >= 0:
        os.write(report_fd, f"{child}\n".encode())
        os.close(report_fd)
    status = _watch(parent, child, stop_signal)
    _end_descendants()
    return status


def _watch(parent: int, child: int, stop_signal: int) -> int:
    deadline = None
    while (status := _reap(child)) is None:
        received = signal.sigtimedwait(_WATCHED, POLL_S)
        told = received is not None and received.si_signo == signal.SIGTERM
        if deadline is None and (told or os.getppid() != parent):
            deadline = time.monotonic() + GRACE_S
            _wake(child)
            os.kill(child, stop_signal)
        elif deadline is not None and time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
    return status


def _reap(child: int) -> int | None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return EXEC_FAILED
        if pid == 0:
            return None
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _wake(pid: int) -> None:
    # A stopped process keeps every signal but SIGKILL waiting.
    for stopped in (pid, *children_of(pid)):
        _kill(stopped, signal.SIGCONT)


def _end_descendants() -> None:
    # As subreaper, whatever the command leaves behind becomes a child of this process.
    while True:
        for pid in children_of(os.getpid()):
            _kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _spawn(command: Sequence[str], identity: Identity) -> int:
    leash = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        if identity is Identity.DROPPED:
            os.setgroups([])
            os.setgid(UNPRIVILEGED_ID)
            os.setuid(UNPRIVILEGED_ID)
        # After the change of identity, which clears it: should the leash itself be killed.
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == leash:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED | _IGNORED)
            # Descriptors given to the leash are for the leash: a lock must not live on in orphans.
            os.closerange(3, DESCRIPTORS_MAX)
            os.execv(command[0], list(command))  # noqa: S606
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(EXEC_FAILED)


def _enter_namespace() -> None:
    uid, gid = os.getuid(), os.getgid()
    if _libc().unshare(_CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare is refused here")
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{UNPRIVILEGED_ID} {uid} 1")
    _write("/proc/self/gid_map", f"{UNPRIVILEGED_ID} {gid} 1")


def _write(path: str, text: str) -> None:
    Path(path).write_text(text)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        _libc().prctl(option, value, 0, 0, 0)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _parent_of(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The second field is the command's name and may hold spaces and brackets.
    return int(stat.rpartition(b")")[2].split()[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
