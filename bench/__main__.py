"""`python -m bench list | NAME [--json] [--quick] [--record] | all | render | profile NAME`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from bench import history, profile, registry, render
from bench.figures import Figure, missing
from bench.machine import commit, machine
from bench.process import ROOT
from bench.registry import CannotMeasure, Plan
from bench.report import Report, table

EXIT_CANNOT_MEASURE = 1


def main() -> int:
    asked = _arguments()
    match asked.what:
        case "list":
            return _list()
        case "render":
            print(render.render().relative_to(ROOT))
            return 0
        case "profile":
            return profile.profile(asked.name, quick=asked.quick)
        case "all":
            return _all(asked)
        case name:
            return _one(name, asked)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "what", choices=["list", "all", "render", "profile", *registry.names()], metavar="WHAT"
    )
    parser.add_argument("name", nargs="?", choices=registry.names(), help="for profile")
    parser.add_argument("--json", action="store_true", help="JSON as the last line")
    parser.add_argument("--quick", action="store_true", help="less work by the same method")
    parser.add_argument("--record", action="store_true", help="keep the figures in bench/history")
    asked = parser.parse_args()
    if asked.what == "profile" and asked.name is None:
        parser.error("profile what? Give the name of a bench.")
    return asked


def _list() -> int:
    width = max(map(len, registry.names()))
    for name in registry.names():
        print(f"{name.ljust(width)}  {registry.description(name)}")
    return 0


def _one(name: str, asked: argparse.Namespace) -> int:
    try:
        figures = list(registry.load_bench(name)(Plan(quick=asked.quick)))
    except CannotMeasure as why:
        print(f"{name} cannot be measured here: {why}", file=sys.stderr)
        return EXIT_CANNOT_MEASURE
    left_out = missing(name, figures)
    report = Report(name, commit(), machine(), figures)
    if asked.record:
        history.record(report, quick=asked.quick)
    _print(report, as_json=asked.json)
    if left_out:
        print(f"{name} gave no figure for: {', '.join(left_out)}", file=sys.stderr)
        return EXIT_CANNOT_MEASURE
    return 0


def _all(asked: argparse.Namespace) -> int:
    """Each bench in a process of its own, so that none inherits another's memory or threads."""
    figures: list[Figure] = []
    failed: list[str] = []
    for name in registry.names():
        report = _in_a_process(name, asked)
        if report is None:
            failed.append(name)
            continue
        if not asked.json:
            print(table(report), end="\n\n", flush=True)
        figures += report.figures_named_by_bench()
    if asked.json:
        print(json.dumps(Report("all", commit(), machine(), figures).to_json()))
    misses = [each.name for each in figures if not each.ok]
    print(f"goals missed: {', '.join(misses) or 'none'}", file=sys.stderr)
    if failed:
        print(f"not measured: {', '.join(failed)}", file=sys.stderr)
    return EXIT_CANNOT_MEASURE if failed else 0


def _in_a_process(name: str, asked: argparse.Namespace) -> Report | None:
    flags = [flag for flag in ("quick", "record") if getattr(asked, flag)]
    command = [sys.executable, "-m", "bench", name, "--json", *(f"--{flag}" for flag in flags)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        return None
    return Report.from_json(json.loads(done.stdout.splitlines()[-1]))


def _print(report: Report, *, as_json: bool) -> None:
    print(json.dumps(report.to_json()) if as_json else table(report))


if __name__ == "__main__":
    sys.exit(main())
