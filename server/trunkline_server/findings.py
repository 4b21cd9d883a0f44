"""What a doctor says: a verdict on one thing, what was found, and the remedy."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


class Verdict(enum.StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    verdict: Verdict
    finding: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Role:
    """One kind of process: the role it takes and the connections that all of its kind open."""

    name: str
    connections: int
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Subject:
    """What to look at. Connections count pools, readers and probes of all processes together."""

    database_url: str
    redis_url: str | None = None
    roles: Sequence[Role] = ()
    ports: Sequence[tuple[str, int]] = ()
    disks: Sequence[Path] = ()
    certificates: Sequence[Path] = ()
    migrations: Path | None = None


def ok(name: str, finding: str) -> Check:
    return Check(name, Verdict.OK, finding)


def warn(name: str, finding: str, remedy: str) -> Check:
    return Check(name, Verdict.WARN, finding, remedy)


def fail(name: str, finding: str, remedy: str) -> Check:
    return Check(name, Verdict.FAIL, finding, remedy)


def kind(error: BaseException) -> str:
    """An error without its text, which for a driver's may hold data or a password."""
    code = getattr(error, "sqlstate", None) or getattr(error, "errno", None)
    return f"{type(error).__name__} ({code})" if code else type(error).__name__
