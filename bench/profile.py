"""A flame graph of what a bench does: `python -m bench profile NAME` (py-spy, SVG)."""

from __future__ import annotations

import shutil
import subprocess
import sys

from bench.process import ROOT

PROFILES = ROOT / "bench" / "profiles"
SAMPLES_PER_S = 200
EXIT_NO_PROFILER = 3


def profile(name: str, *, quick: bool) -> int:
    """Samples the bench and every process it starts, servers included, while it runs."""
    py_spy = _py_spy()
    if py_spy is None:
        print(
            "py-spy is not installed: `pip install py-spy` into this environment, or put it on "
            "PATH. It needs the right to trace its own children (ptrace).",
            file=sys.stderr,
        )
        return EXIT_NO_PROFILER
    PROFILES.mkdir(exist_ok=True)
    flame_graph = PROFILES / f"{name}.svg"
    options = ["--subprocesses", "--rate", str(SAMPLES_PER_S), "--format", "flamegraph"]
    bench = [sys.executable, "-m", "bench", name, *(["--quick"] if quick else [])]
    done = subprocess.run(
        [py_spy, "record", *options, "--output", str(flame_graph), "--", *bench],
        cwd=ROOT,
        check=False,
    )
    if done.returncode == 0:
        print(flame_graph.relative_to(ROOT))
    return done.returncode


def _py_spy() -> str | None:
    from_environment = shutil.which("py-spy", path=str(ROOT / ".venv" / "bin"))
    return from_environment or shutil.which("py-spy")
