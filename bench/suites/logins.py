"""Hundreds of log-ins at once: throughput beside bare argon2 on the same cores, and loop lag."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

from bench import openloop, product
from bench.alternate import alternate, ratios
from bench.figures import Figure, figure
from bench.process import ask, running
from bench.product import Tenant, Watched
from bench.registry import CannotMeasure, Plan
from bench.sampler import Sampler

NAME = "logins"
PATH = "/trunkline.api.identity.v1.IdentityService/Login"
AT_ONCE_S = 0.02  # all arrive within this time
CHANNELS = 20


class _Logins:
    """The product's side, with what was seen beside its throughput."""

    def __init__(self, watched: Watched, tenant: Tenant) -> None:
        self._watched = watched
        self._tenant = tenant
        self.lag_p99_ms: list[float] = []
        self.lag_max_ms: list[float] = []
        self.peak_mb: list[float] = []
        self.growth_mb: list[float] = []

    def per_s(self) -> float:
        self._watched.start_lag()
        with Sampler(self._watched.server.pid) as sampled:
            outcomes = self._burst()
        lags = self._watched.stop_lag()
        self.lag_p99_ms.append(lags.quantile(0.99) * 1000)
        self.lag_max_ms.append(lags.quantile(1.0) * 1000)
        self.peak_mb.append(sampled.peak_rss_mb)
        self.growth_mb.append(sampled.peak_rss_mb - sampled.first_rss_mb)
        return outcomes.counts["ok"] / outcomes.seconds

    def _burst(self) -> openloop.Outcomes:
        users = self._tenant.emails
        given = {
            "address": self._watched.server.address,
            "path": PATH,
            "slug": self._tenant.slug,
            "emails": users,
            "password": product.PASSWORD,
            "channels": CHANNELS,
        }
        arrivals = openloop.Arrivals(len(users) / AT_ONCE_S, AT_ONCE_S, random=False)
        outcomes = openloop.run("bench.targets:logins", given, arrivals)
        if outcomes.unfinished or set(outcomes.counts) != {"ok"}:
            raise CannotMeasure(
                f"not all of {len(users)} log-ins at once succeeded: "
                f"{dict(outcomes.counts)}, {outcomes.unfinished} without an answer"
            )
        return outcomes


def run(plan: Plan) -> Iterator[Figure]:
    at_once = plan.pick(full=500, quick=150)
    with ExitStack() as started:
        stack = started.enter_context(product.stack())
        tenant = product.seed(stack, users=at_once)
        logins = _Logins(started.enter_context(product.watched(stack)), tenant)
        bare, _ = started.enter_context(
            running([sys.executable, "-m", "bench.servers.argon2"], "argon2")
        )
        sides = {"bare": lambda: _bare_per_s(bare, at_once), "logins": logins.per_s}
        values = alternate(sides, rounds=plan.pick(full=5, quick=3))
    yield figure(NAME, "to_bare_argon2", ratios(values["logins"], values["bare"]))
    yield figure(NAME, "loop_lag_p99_ms", logins.lag_p99_ms)
    yield figure(NAME, "loop_lag_max_ms", logins.lag_max_ms, unit="ms", better="lower")
    yield figure(NAME, "peak_mb", logins.peak_mb, unit="MB", better="lower")
    yield figure(NAME, "growth_mb", logins.growth_mb, unit="MB", better="lower")
    for name, runs in values.items():
        yield figure(NAME, f"{name}_per_s", runs, unit="log-ins/s")


def _bare_per_s(bare: subprocess.Popen[str], count: int) -> float:
    return count / float(ask(bare, str(count)))
