"""Reports kept by commit: bench/history/COMMIT.json holds every run recorded on that commit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.report import Report

HISTORY = Path(__file__).parent / "history"


@dataclass(frozen=True, slots=True)
class Record:
    at: str
    quick: bool
    report: Report


def record(report: Report, *, quick: bool) -> Path:
    """Append to the commit's file."""
    path = HISTORY / f"{report.commit}.json"
    entries: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    at = datetime.now(UTC).isoformat(timespec="seconds")
    entries.append({"at": at, "quick": quick, **report.to_json()})
    HISTORY.mkdir(exist_ok=True)
    path.write_text(json.dumps(entries, indent=1) + "\n")
    return path


def records() -> list[Record]:
    """Everything recorded, oldest first."""
    return sorted(_read_all(), key=lambda each: each.at)


def latest() -> dict[str, Record]:
    """The newest record of each bench; a full run beats a quick one of the same commit."""
    newest: dict[str, Record] = {}
    for each in records():
        held = newest.get(each.report.bench)
        downgrade = held is not None and each.quick and not held.quick
        if not (downgrade and held and held.report.commit == each.report.commit):
            newest[each.report.bench] = each
    return newest


def _read_all() -> Iterator[Record]:
    for path in HISTORY.glob("*.json"):
        for entry in json.loads(path.read_text()):
            yield Record(entry["at"], entry["quick"], Report.from_json(entry))
