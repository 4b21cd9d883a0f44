"""A bench's result: as JSON, as a table for people, and read back from history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.figures import Figure

_HEADINGS = ("figure", "value", "unit", "goal", "", "min", "max", "runs")


@dataclass(frozen=True, slots=True)
class Report:
    bench: str
    commit: str
    machine: str
    figures: Sequence[Figure]

    def to_json(self) -> dict[str, Any]:
        return {
            "bench": self.bench,
            "commit": self.commit,
            "machine": self.machine,
            "figures": [each.to_json() for each in self.figures],
        }

    @classmethod
    def from_json(cls, read: dict[str, Any]) -> Report:
        figures = [Figure(**each) for each in read["figures"]]
        return cls(read["bench"], read["commit"], read["machine"], figures)

    def figures_named_by_bench(self) -> list[Figure]:
        """`methods.sixty_to_one`, for a report on several benches."""
        return [replace(each, name=f"{self.bench}.{each.name}") for each in self.figures]


def table(report: Report) -> str:
    rows = [_HEADINGS, *(row(each) for each in report.figures)]
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(_HEADINGS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in rows
    ]
    return "\n".join([f"{report.bench} at {report.commit}", *lines])


def row(each: Figure) -> tuple[str, ...]:
    return (
        each.name,
        f"{each.value:g}",
        each.unit,
        goal(each),
        verdict(each),
        f"{each.min:g}",
        f"{each.max:g}",
        str(each.runs),
    )


def goal(each: Figure) -> str:
    if each.goal is None:
        return "-"
    return f"{'>=' if each.better == 'higher' else '<='} {each.goal:g}"


def verdict(each: Figure) -> str:
    if each.goal is None:
        return ""
    return "met" if each.ok else "MISSED"
