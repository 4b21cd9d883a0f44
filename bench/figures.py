"""A figure: the median of several runs, its spread, and the goal it is held against."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bench.goals import GOALS

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    value: float
    unit: str
    goal: float | None
    better: Better
    ok: bool
    min: float
    max: float
    runs: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def figure(
    bench: str,
    name: str,
    runs: Sequence[float],
    *,
    unit: str = "",
    better: Better = "higher",
) -> Figure:
    """The figure `name` out of one value per run. Unit and direction come from its goal, if any."""
    if not runs:
        raise ValueError(f"{bench}.{name}: no run gave a value")
    value = statistics.median(runs)
    goal = GOALS.get((bench, name))
    if goal is not None:
        unit, better = goal.unit, goal.better
    return Figure(
        name=name,
        value=_rounded(value),
        unit=unit,
        goal=None if goal is None else goal.value,
        better=better,
        ok=goal is None or goal.met_by(value),
        min=_rounded(min(runs)),
        max=_rounded(max(runs)),
        runs=len(runs),
    )


def missing(bench: str, figures: Iterable[Figure]) -> list[str]:
    """The figures with a goal that a bench did not give."""
    given = {each.name for each in figures}
    return [name for of, name in GOALS if of == bench and name not in given]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
