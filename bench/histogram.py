"""Latencies in logarithmic buckets: 1 % relative error, mergeable, a few hundred integers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

_GROWTH = 1.02
_LOG_GROWTH = math.log(_GROWTH)
_FLOOR_S = 1e-6


class Histogram:
    def __init__(self, buckets: Mapping[int, int] | None = None) -> None:
        self.buckets: Counter[int] = Counter(buckets or {})

    def add(self, seconds: float) -> None:
        self.buckets[math.ceil(math.log(max(seconds, _FLOOR_S) / _FLOOR_S) / _LOG_GROWTH)] += 1

    def merge(self, other: Histogram) -> None:
        self.buckets.update(other.buckets)

    @property
    def count(self) -> int:
        return self.buckets.total()

    def quantile(self, q: float) -> float:
        """Seconds below which the share `q` of the values lies; 0 when there are none."""
        rank = max(1, math.ceil(q * self.count))
        seen = 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= rank:
                # The middle of the bucket, so that the error is half its width either way.
                return _FLOOR_S * math.pow(_GROWTH, bucket - 0.5)
        return 0.0
