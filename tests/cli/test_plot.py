"""Pictures of series: gaps stay gaps, texts are escaped, nothing divides by zero."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from trunkline.cli.plot import COLUMNS_MAX, ROWS, Chart, Line, svg, terminal

values = st.lists(st.none() | st.floats(0, 1e9), max_size=200)


def chart(*lines: list[float | None], name: str = "") -> Chart:
    times = [f"t{n}" for n in range(len(lines[0]))] if lines else []
    return Chart("calls: count", "count", times, [Line(name, line) for line in lines], "not final")


def test_the_highest_value_fills_the_picture_and_a_gap_is_marked() -> None:
    drawn = terminal(chart([0, 4, None, 8])).splitlines()
    top, bottom = drawn[2], drawn[1 + ROWS]
    assert top == "8 |   █"
    assert bottom == "0 | █.█"
    assert drawn[-1] == "not final"


@given(st.lists(values, min_size=1, max_size=12))
def test_any_series_can_be_drawn(lines: list[list[float | None]]) -> None:
    drawn = terminal(chart(*lines))
    assert all(len(row) < COLUMNS_MAX + 20 for row in drawn.splitlines())
    ET.fromstring(svg(chart(*lines)))


def test_a_gap_splits_the_line_and_texts_are_escaped() -> None:
    drawn = svg(chart([1, 2, None, 3], name="<script>&"))
    root = ET.fromstring(drawn)
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{space}polyline")) == 2
    assert "<script>" not in drawn
    assert any(text.text == "<script>&" for text in root.findall(f"{space}text"))


def test_without_any_series_there_is_still_a_picture() -> None:
    ET.fromstring(svg(chart()))
    assert "not final" in terminal(chart())
