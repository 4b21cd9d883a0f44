import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import history, plot, registry
from bench.alternate import alternate, ratios
from bench.figures import figure, missing
from bench.histogram import Histogram
from bench.history import Record
from bench.process import ROOT
from bench.report import Report, table


def test_a_figure_is_the_median_beside_its_goal() -> None:
    made = figure("methods", "sixty_to_one", [0.9, 1.1, 0.96])
    assert (made.value, made.min, made.max, made.runs) == (0.96, 0.9, 1.1, 3)
    assert (made.goal, made.better, made.ok) == (0.97, "higher", False)


def test_lower_is_better_where_the_goal_says_so() -> None:
    assert figure("logins", "loop_lag_p99_ms", [19.0]).ok
    assert not figure("logins", "loop_lag_p99_ms", [21.0]).ok


def test_a_figure_without_runs_is_refused() -> None:
    with pytest.raises(ValueError, match="no run"):
        figure("methods", "sixty_to_one", [])


def test_a_bench_that_leaves_a_goal_out_is_noticed() -> None:
    given = [figure("logins", "loop_lag_p99_ms", [1.0])]
    assert missing("logins", given) == ["to_bare_argon2"]


def test_sides_alternate_and_the_order_turns_round() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    values = alternate({"a": lambda: side("a"), "b": lambda: side("b")}, rounds=2)
    assert order == ["a", "b", "b", "a"]
    assert ratios(values["a"], values["b"]) == [0.5, 4 / 3]


@pytest.mark.parametrize("q", [0.5, 0.99, 1.0])
def test_quantiles_are_within_one_percent(q: float) -> None:
    histogram = Histogram()
    for milliseconds in range(1, 1001):
        histogram.add(milliseconds / 1000)
    assert histogram.quantile(q) == pytest.approx(q, rel=0.011)


def test_merged_histograms_count_both() -> None:
    one, other = Histogram(), Histogram()
    one.add(0.001)
    other.add(1.0)
    one.merge(other)
    assert one.count == 2
    assert one.quantile(1.0) == pytest.approx(1.0, rel=0.011)


def test_nothing_measured_has_no_latency() -> None:
    assert Histogram().quantile(0.99) == 0.0


def test_a_report_survives_json() -> None:
    report = Report("methods", "abc", "here", [figure("methods", "sixty_to_one", [1.0])])
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert list(report.to_json()["figures"][0]) == [
        "name", "value", "unit", "goal", "better", "ok", "min", "max", "runs",
    ]  # fmt: skip


def test_a_miss_is_marked_as_one() -> None:
    missed = Report("methods", "abc", "here", [figure("methods", "sixty_to_one", [0.5])])
    assert "MISSED" in table(missed)


def test_every_bench_has_a_description_and_is_listed() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "bench", "list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in registry.names():
        assert registry.description(name).endswith((".", "?"))
        assert name in listed


def test_a_plot_shows_each_goal_and_no_more() -> None:
    figures = [
        figure("methods", "sixty_to_one", [0.9, 1.1, 0.96]),
        figure("methods", "one_per_cpu_s", [9000.0], unit="calls/s"),
        figure("stale", "stale_grants", [0.0]),
    ]
    drawn = plot.draw([Record("2026-01-01", False, Report("methods", "abc", "here", figures))])
    assert drawn is not None
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert drawn.count("<circle") == 2
    assert "one_per_cpu_s" not in drawn


def test_a_record_is_read_back_and_full_runs_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "HISTORY", tmp_path)
    for value, quick in ((0.98, False), (0.5, True)):
        report = Report("methods", "abc", "here", [figure("methods", "sixty_to_one", [value])])
        history.record(report, quick=quick)
    assert len(history.records()) == 2
    assert history.latest()["methods"].report.figures[0].value == 0.98
