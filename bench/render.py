"""docs/benchmarks.md out of the history: the newest figure of each bench beside its goal."""

from __future__ import annotations

from pathlib import Path

from bench import history, plot, registry
from bench.figures import Figure
from bench.history import Record
from bench.process import ROOT
from bench.report import goal, verdict

PAGE = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "benchmarks"

_INTRODUCTION = """\
# Benchmarks

Written by `python -m bench render` from `bench/history/`; do not edit. How figures are taken, and
how to add one: `bench/README.md`.

A figure is the median of its runs, with the smallest and the largest beside it. Both sides of a
ratio ran alternately in one run, so a slow machine slows both. Absolute figures belong to the
machine they name. A goal that was not reached says so. In the plots the goal is the line at 1, and
right of it is better.
"""


def render() -> Path:
    newest = history.latest()
    PLOTS.mkdir(parents=True, exist_ok=True)
    parts = [_INTRODUCTION, *(_section(name, newest[name]) for name in sorted(newest))]
    unmeasured = [name for name in registry.names() if name not in newest]
    if unmeasured:
        parts.append("Not recorded yet: " + ", ".join(unmeasured) + ".\n")
    PAGE.write_text("\n".join(parts))
    return PAGE


def _section(name: str, record: Record) -> str:
    known = name in registry.names()
    report = record.report
    lines = [
        f"## {name}",
        "",
        *([registry.description(name), ""] if known else []),
        "| figure | value | unit | goal | | min | max | runs |",
        "|---|---:|---|---:|---|---:|---:|---:|",
        *(_row(each) for each in report.figures),
        "",
        f"Commit {report.commit}, {record.at[:10]}{', quick' if record.quick else ''}: "
        f"{report.machine}.",
        "",
        *_plot(name),
    ]
    return "\n".join(lines)


def _plot(name: str) -> list[str]:
    """The figures with goals over all records, when there are any."""
    drawn = plot.draw([each for each in history.records() if each.report.bench == name])
    if drawn is None:
        return []
    (PLOTS / f"{name}.svg").write_text(drawn)
    return [f"![{name} against its goals](benchmarks/{name}.svg)", ""]


def _row(each: Figure) -> str:
    missed = each.goal is not None and not each.ok
    value = f"**{each.value:g}**" if missed else f"{each.value:g}"
    shown = "**missed**" if missed else verdict(each)
    name = f"`{each.name}`"
    return (
        f"| {name} | {value} | {each.unit} | {goal(each)} | {shown} "
        f"| {each.min:g} | {each.max:g} | {each.runs} |"
    )
