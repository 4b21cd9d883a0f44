"""A bench's figures against their goals, commit by commit, as an SVG without any library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from bench.figures import Figure
from bench.history import Record

RECORDS_MAX = 5  # the newest ones
LABEL_PX, PLOT_PX, ROW_PX, MARGIN_PX = 330, 420, 18, 28
SCALE_MAX = 2.0  # what is twice as good as its goal ends at the edge
_MET, _MISSED, _INK = "#2a7a4b", "#b3261e", "#444"


def draw(records: Sequence[Record]) -> str | None:
    """None where no figure has a goal to be held against."""
    rows = list(_rows(records[-RECORDS_MAX:]))
    if not rows:
        return None
    width, height = LABEL_PX + PLOT_PX + MARGIN_PX, len(rows) * ROW_PX + 2 * MARGIN_PX
    goal_x = _x(1.0)
    marks = [
        f'<line x1="{goal_x:.0f}" x2="{goal_x:.0f}" y1="{MARGIN_PX}" '
        f'y2="{height - MARGIN_PX}" stroke="{_INK}" stroke-dasharray="4 3"/>',
        f'<text x="{goal_x:.0f}" y="{MARGIN_PX - 8}" text-anchor="middle">goal</text>',
    ]
    for number, (label, figure) in enumerate(rows):
        marks += _row(label, figure, MARGIN_PX + number * ROW_PX + ROW_PX // 2)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" font-family="sans-serif" font-size="11" fill="{_INK}">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n'
        + "\n".join(marks)
        + "\n</svg>\n"
    )


def _rows(records: Sequence[Record]) -> Iterator[tuple[str, Figure]]:
    """Figure by figure, oldest record first."""
    names = dict.fromkeys(
        each.name for record in records for each in record.report.figures if each.goal is not None
    )
    for name in names:
        for record in records:
            for each in record.report.figures:
                if each.name == name and each.goal is not None:
                    yield f"{name} {record.report.commit}", each


def _row(label: str, figure: Figure, y: int) -> list[str]:
    colour = _MET if figure.ok else _MISSED
    ends = sorted((_x(_against_goal(figure, figure.min)), _x(_against_goal(figure, figure.max))))
    value_x = _x(_against_goal(figure, figure.value))
    return [
        f'<text x="{LABEL_PX - 10}" y="{y + 4}" text-anchor="end">{escape(label)}</text>',
        f'<line x1="{ends[0]:.0f}" x2="{ends[1]:.0f}" y1="{y}" y2="{y}" stroke="{colour}"/>',
        f'<circle cx="{value_x:.0f}" cy="{y}" r="4" fill="{colour}">'
        f"<title>{figure.value:g} {escape(figure.unit)}</title></circle>",
    ]


def _against_goal(figure: Figure, value: float) -> float:
    """1 is the goal, more is better; a goal of nothing is met or missed, not measured."""
    assert figure.goal is not None
    above, below = (value, figure.goal) if figure.better == "higher" else (figure.goal, value)
    if below == 0:
        return 1.0 if above == 0 else SCALE_MAX
    return above / below


def _x(against_goal: float) -> float:
    return LABEL_PX + PLOT_PX * min(against_goal, SCALE_MAX) / SCALE_MAX
