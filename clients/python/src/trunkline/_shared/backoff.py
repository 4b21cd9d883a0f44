"""How long to wait before another attempt."""

import random

FIRST_S = 0.1
MAX_S = 10.0


class Backoff:
    """Doubling pauses with full jitter: clients that fell together do not come back together."""

    def __init__(self, first_s: float = FIRST_S, max_s: float = MAX_S) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self.attempts = 0

    def next_s(self, at_least_s: float | None = None) -> float:
        ceiling_s = min(self._max_s, self._first_s * 2.0**self.attempts)
        self.attempts += 1
        return random.uniform(ceiling_s / 2, ceiling_s) + (at_least_s or 0.0)

    def reset(self) -> None:
        self.attempts = 0
