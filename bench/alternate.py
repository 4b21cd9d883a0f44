"""Alternating runs: A B B A A B ..., so that drift of the machine falls on every side alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence


def alternate(sides: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, list[float]]:
    """One value per side and round. The order turns round every other time."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for _ in range(rounds):
        for name in order:
            values[name].append(sides[name]())
        order.reverse()
    return values


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Pair by pair: what is left of a ratio once the machine's drift is out of it."""
    return [a / b for a, b in zip(above, below, strict=True)]
