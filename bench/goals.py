"""Every figure with a goal. A bench may give more figures; those have none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Goal:
    value: float
    better: Literal["higher", "lower"]
    unit: str

    def met_by(self, value: float) -> bool:
        return value >= self.value if self.better == "higher" else value <= self.value


def _at_least(value: float, unit: str = "ratio") -> Goal:
    return Goal(value, "higher", unit)


def _at_most(value: float, unit: str = "ms") -> Goal:
    return Goal(value, "lower", unit)


GOALS: dict[tuple[str, str], Goal] = {
    ("echo", "wrapper_to_bare"): _at_least(0.80),
    ("methods", "sixty_to_one"): _at_least(0.97),
    ("logins", "to_bare_argon2"): _at_least(0.90),
    ("logins", "loop_lag_p99_ms"): _at_most(20),
    ("validate", "warm_to_bare_echo"): _at_least(0.75),
    ("validate", "miss_to_warm"): _at_least(0.70),
    ("validate", "batch_per_cpu_s"): _at_least(150_000, "members/s"),
    ("stampede", "queries_per_process"): _at_most(1, "queries"),
    ("stale", "visible_p99_ms"): _at_most(50),
    ("stale", "stale_grants"): _at_most(0, "grants"),
    ("search", "search_p99_ms"): _at_most(25),
    ("search", "list_p99_ms"): _at_most(10),
    ("export", "to_copy_out"): _at_least(0.50),
    ("export", "hundred_exports_s"): _at_most(2, "s"),
    ("import", "to_raw_copy"): _at_least(0.80),
    ("import", "to_staging_upsert"): _at_least(1.2),
    ("import", "unchanged_to_first"): _at_least(1.2),
    ("import", "bad20_to_clean"): _at_least(0.80),
    ("import_memory", "growth_mb"): _at_most(32, "MB"),
    ("import_memory", "stalled_mb_per_stream"): _at_most(2, "MB"),
    ("import_small", "p95_ms"): _at_most(150),
    ("import_small", "fifty_at_once_s"): _at_most(3, "s"),
    ("mixed", "read_p99_to_idle"): _at_most(1.5, "ratio"),
    ("fair", "start_in_batch_times"): _at_most(2, "batches"),
    ("undo", "to_bare_delete"): _at_least(0.50),
    ("client", "upload_to_raw_stream"): _at_least(0.80),
    ("client", "call_overhead"): _at_most(0.15, "ratio"),
    ("content", "search_p99_ms"): _at_most(30),
    ("content", "read_to_warm_validate"): _at_least(0.60),
    ("events", "to_raw_copy"): _at_least(0.50),
    ("events", "per_s"): _at_least(40_000, "events/s"),
    ("rollup", "cached_p99_ms"): _at_most(20),
    ("rollup", "uncached_p99_ms"): _at_most(150),
    ("rollup", "late_visible_s"): _at_most(5, "s"),
    ("scenarios", "worst_case_read_p99_ms"): _at_most(200),
    ("scenarios", "overload2_goodput"): _at_least(0.90),
    ("scenarios", "overload2_validation_served"): _at_least(0.999),
    ("scenarios", "overload10_goodput"): _at_least(0.80),
    ("peers", "import_to_node"): _at_least(2),
    ("peers", "import_to_fastapi"): _at_least(2),
    ("peers", "import_to_go"): _at_least(1),
    ("peers", "miss_to_fastapi"): _at_least(2),
    ("peers", "miss_to_node"): _at_least(1),
}
