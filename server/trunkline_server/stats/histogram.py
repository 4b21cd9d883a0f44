"""Logarithmic histograms of durations: percentiles within 1 %, and sums of them exact.

Bin i holds durations of more than GAMMA**(i - 1) and at most GAMMA**i microseconds, and stands for
the value in its middle, which is at most 1 % away from any of them (DDSketch, arXiv 1908.10693).
Bins are fixed for all time, so histograms of any hours, agents and days add up by adding counts.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

RELATIVE_ERROR = 0.01
GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
ZERO_BIN = -1
_LN_GAMMA = math.log(1.01 / 0.99)
_US_PER_S = 1_000_000


def bin_of(duration_us: int) -> int:
    """The same as stats_bin() in the database."""
    return ZERO_BIN if duration_us <= 0 else math.ceil(math.log(duration_us) / _LN_GAMMA)


def seconds_of(number: int) -> float:
    """What a bin stands for."""
    if number == ZERO_BIN:
        return 0.0
    return 2 * GAMMA**number / (GAMMA + 1) / _US_PER_S


class Histogram:
    """Counts by bin."""

    __slots__ = ("counts",)

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: dict[int, int] = dict(counts or {})

    @classmethod
    def of(cls, durations_us: Iterable[int]) -> "Histogram":
        made = cls()
        for duration_us in durations_us:
            number = bin_of(duration_us)
            made.counts[number] = made.counts.get(number, 0) + 1
        return made

    def add(self, bins: Sequence[int], counts: Sequence[int]) -> None:
        mine = self.counts
        for number, count in zip(bins, counts, strict=True):
            mine[number] = mine.get(number, 0) + count

    def merge(self, other: "Histogram") -> None:
        self.add(list(other.counts), list(other.counts.values()))

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def quantile_s(self, share: float) -> float | None:
        """The seconds that `share` of the durations do not exceed; None of nothing."""
        total = self.total
        if not total:
            return None
        rank = max(1, math.ceil(share * total))
        seen = 0
        for number in sorted(self.counts):
            seen += self.counts[number]
            if seen >= rank:
                return seconds_of(number)
        raise AssertionError("a rank beyond the total")
