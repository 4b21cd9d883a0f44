"""Pictures of time series: lines of blocks for a terminal, SVG for a document. No library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# None is a bucket without a value: a gap, never a zero.
Values = Sequence[float | None]

COLUMNS_MAX = 72
ROWS = 8
SERIES_MAX = 8
_BLOCKS = " ▁▂▃▄▅▆▇█"
_COLOURS = (
    "#1b6ca8", "#c8553d", "#2e8b57", "#8a5fbf", "#b8860b", "#40888c", "#a03e66", "#5b6770",
)  # fmt: skip
_WIDTH, _HEIGHT = 960, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 50, 60
_GRID_LINES = 4
_TIME_LABELS = 6


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    values: Values


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    unit: str
    times: Sequence[str]  # one a bucket
    lines: Sequence[Line]
    note: str  # how final it is

    @property
    def top(self) -> float:
        """The upper end of the axis: zero is always its lower end."""
        return max((v for line in self.lines for v in line.values if v is not None), default=0.0)


def terminal(chart: Chart) -> str:
    """One picture below the other, with one scale."""
    shown = [f"{chart.title} ({chart.unit})"]
    for line in chart.lines[:SERIES_MAX]:
        shown += ["", line.name] if line.name else [""]
        shown += _rows(_narrowed(line.values), chart.top)
    if len(chart.lines) > SERIES_MAX:
        shown.append(f"... and {len(chart.lines) - SERIES_MAX} more")
    if chart.times:
        margin = " " * (len(_label(chart.top)) + 2)
        shown.append(f"{margin}{chart.times[0]} to {chart.times[-1]}")
    return "\n".join([*shown, chart.note])


def _narrowed(values: Values) -> list[float | None]:
    """At most COLUMNS_MAX columns; the largest value of those that share one."""
    step = -(-len(values) // COLUMNS_MAX) or 1
    groups = [
        [v for v in values[i : i + step] if v is not None] for i in range(0, len(values), step)
    ]
    return [max(group) if group else None for group in groups]


def _rows(values: Sequence[float | None], top: float) -> list[str]:
    label = _label(top)
    rows = []
    for row in range(ROWS - 1, -1, -1):
        cells = "".join(_cell(value, top, row) for value in values)
        margin = (
            label if row == ROWS - 1 else "0".rjust(len(label)) if row == 0 else " " * len(label)
        )
        rows.append(f"{margin} |{cells}".rstrip())
    return rows


def _cell(value: float | None, top: float, row: int) -> str:
    if value is None:
        return "." if row == 0 else " "
    eighths = round(value / top * ROWS * 8) if top else 0
    return _BLOCKS[min(8, max(0, eighths - row * 8))]


def _label(value: float) -> str:
    return f"{value:,.4g}" if value < 10_000 else f"{value:,.0f}"


def svg(chart: Chart) -> str:
    """A document of its own; texts are the caller's and are escaped."""
    top = chart.top or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        ' font-family="sans-serif" font-size="12" role="img">',
        f"<title>{escape(chart.title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        _text(_LEFT, 24, f"{chart.title} ({chart.unit})", size=16),
        *_grid(top),
        *_times(chart.times),
    ]
    for number, line in enumerate(chart.lines):
        colour = _COLOURS[number % len(_COLOURS)]
        parts += _runs(line.values, top, colour)
        if line.name and number < len(_COLOURS):
            parts.append(_text(_LEFT + 110 * number, 42, line.name[:16], colour=colour))
    parts.append(_text(_LEFT, _HEIGHT - 10, chart.note, colour="#666666"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(
    x: float, y: float, text: str, *, size: int = 12, colour: str = "#222222", anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}"'
        f' text-anchor="{anchor}">{escape(text)}</text>'
    )


def _x(place: int, count: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (place / (count - 1) if count > 1 else 0.5)


def _y(value: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / top


def _grid(top: float) -> list[str]:
    parts = []
    for number in range(_GRID_LINES + 1):
        value = top * number / _GRID_LINES
        y = _y(value, top)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
            ' stroke="#dddddd"/>'
        )
        parts.append(_text(_LEFT - 8, y + 4, _label(value), anchor="end"))
    return parts


def _times(times: Sequence[str]) -> list[str]:
    step = -(-len(times) // _TIME_LABELS) or 1
    y = _HEIGHT - _BOTTOM + 18
    return [
        _text(_x(place, len(times)), y, times[place], anchor="middle")
        for place in range(0, len(times), step)
    ]


def _runs(values: Values, top: float, colour: str) -> list[str]:
    """A line for each run of values; where there is none, there is no line."""
    parts: list[str] = []
    run: list[str] = []
    for place, value in enumerate([*values, None]):
        if value is not None:
            run.append(f"{_x(place, len(values)):.1f},{_y(value, top):.1f}")
        elif run:
            points = " ".join(run if len(run) > 1 else run * 2)
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"'
                ' stroke-linecap="round" stroke-linejoin="round"/>'
            )
            run = []
    return parts
