"""Programs that the tests start, kill and run as another user."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]

HOLD_A_STACK = """
import sys, threading
from pathlib import Path
from trunkline_server.local import LocalStack
urls = LocalStack(Path(sys.argv[1]), durable=False, environment={}).start()
print(urls.database_url, urls.redis_url, flush=True)
sys.stdin.read()
"""


def environment() -> dict[str, str]:
    """What a program needs to import the product from this checkout."""
    paths = [str(ROOT / "server"), str(ROOT / "clients" / "python" / "src"), *sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


@contextmanager
def program(
    code: str, *arguments: str, python: str = sys.executable
) -> Iterator[subprocess.Popen[str]]:
    """A Python program in a process of its own; its input ends when the block does."""
    process = subprocess.Popen(
        [python, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd="/",
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def living_in(directory: Path) -> list[str]:
    """The command lines of all processes that mention or work in a directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = entry.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode()
            here = entry.joinpath("cwd").readlink()
        except OSError:
            continue
        of_ours = "postgres" in line or "valkey-server" in line
        if of_ours and (here.is_relative_to(directory) or str(directory) in line):
            found.append(line)
    return found
