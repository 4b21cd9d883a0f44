"""What a figure was measured on: no host name, no paths."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from bench import load
from bench.process import ROOT

# What a bench writes itself does not make the tree another one.
_CODE = (".", ":!bench/history", ":!docs")
_VERSIONS = ("grpcio", "protobuf", "uvloop", "asyncpg")


def machine() -> str:
    versions = [f"{name} {_version(name)}" for name in _VERSIONS]
    return ", ".join(
        [
            f"{os.cpu_count()} cores",
            _processor(),
            f"{platform.system()} {platform.release()}",
            f"Python {platform.python_version()}",
            *versions,
            f"load by {load.client_name()}",
        ]
    )


def commit() -> str:
    """The commit measured; `-dirty` when the work tree differs from it."""
    described = _git("rev-parse", "--short=12", "HEAD")
    if not described:
        return "unknown"
    return (
        f"{described}-dirty" if _git("status", "--porcelain", "-uno", "--", *_CODE) else described
    )


def _git(*args: str) -> str:
    try:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
