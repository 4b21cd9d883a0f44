"""The numbers as plain Python counts them, from a list of events."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Told:
    """A call as the test made it."""

    event_id: str
    at: datetime
    agent: str
    outcome: str
    seconds: float


def once(events: Iterable[Told]) -> list[Told]:
    """The first of each id."""
    kept: dict[str, Told] = {}
    for event in events:
        kept.setdefault(event.event_id, event)
    return list(kept.values())


def quantile(seconds: Sequence[float], share: float) -> float | None:
    if not seconds:
        return None
    return sorted(seconds)[max(1, math.ceil(share * len(seconds))) - 1]


def counts(
    events: Iterable[Told], edges: Sequence[tuple[datetime, datetime]]
) -> dict[tuple[int, str, str], list[float]]:
    """Durations by bucket, agent and outcome."""
    found: dict[tuple[int, str, str], list[float]] = defaultdict(list)
    for event in events:
        for number, (start, end) in enumerate(edges):
            if start <= event.at < end:
                found[number, event.agent, event.outcome].append(event.seconds)
    return found
