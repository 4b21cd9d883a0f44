"""Starting a bench's own processes, and ending them whatever happens."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READY = "ready"
READY_TIMEOUT_S = 60
ANSWER_TIMEOUT_S = 120
STOP_TIMEOUT_S = 40


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    pid: int
    address: str


class StartFailed(RuntimeError):
    pass


@contextmanager
def python_server(
    module: str, *args: str, name: str = "", python: str = sys.executable
) -> Iterator[Server]:
    """Run `python -m module args`, which prints `ready ADDRESS` once it serves."""
    with running([python, "-m", module, *args], name or module) as (child, line):
        yield Server(name or module, child.pid, line.removeprefix(READY).strip())


@contextmanager
def running(
    command: Sequence[str], name: str, *, env: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A child process, once it has printed a line that starts with `ready`."""
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            line = _next_line(child, READY_TIMEOUT_S)
            if not line.startswith(READY):
                errors.seek(0)
                raise StartFailed(f"{name} did not start: {line}{errors.read()[-2000:]}")
            yield child, line
        finally:
            stop(child)


def ask(child: subprocess.Popen[str], question: str) -> str:
    """A line to the process, and the line it answers."""
    assert child.stdin is not None
    print(question, file=child.stdin, flush=True)
    answer = _next_line(child, ANSWER_TIMEOUT_S).strip()
    if not answer:
        raise StartFailed(f"a process ended instead of answering {question!r}")
    return answer


def stop(child: subprocess.Popen[str]) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def _next_line(child: subprocess.Popen[str], timeout_s: float) -> str:
    """Empty when none came. A line at a time is asked for, so none hides in the buffer."""
    assert child.stdout is not None
    readable, _, _ = select.select([child.stdout], [], [], timeout_s)
    return child.stdout.readline() if readable else ""
