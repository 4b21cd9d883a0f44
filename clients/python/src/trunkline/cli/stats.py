"""stats query | plot | overview | metrics | export."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from trunkline._shared.enums import names_of
from trunkline.api.stats.v1 import stats_service_pb2 as pb
from trunkline.cli import plot as drawing
from trunkline.cli.app import Setup, pass_setup
from trunkline.cli.output import emit, emit_one, local, output_option

_METRICS = (("metric", "metric"), ("dimensions", "dimensions"), ("what", "description"))
_OVERVIEW = (
    ("from", "start_time"),
    ("to", "end_time"),
    ("calls", "calls.count"),
    ("handle time p50 (s)", "calls.handle_seconds_p50"),
    ("handle time p90 (s)", "calls.handle_seconds_p90"),
    ("validations", "validations.count"),
    ("eligible", "validations.eligible_ratio"),
    ("rows accepted", "imports.rows_accepted"),
    ("rows rejected", "imports.rows_rejected"),
    ("article views", "content.views"),
    ("searches", "content.searches"),
    ("sign-ins", "sign_ins.count"),
    ("as of", "finality.as_of"),
    ("final", "finality.is_final"),
)
_INTERVALS = click.Choice([name.lower() for name in names_of(pb.Interval)], case_sensitive=False)
_TIME = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])


@click.group()
def stats() -> None:
    """Numbers, and how final they are."""


def _range(command: click.decorators.FC) -> click.decorators.FC:
    for option in (
        click.argument("metric"),
        click.option("--from", "from_time", type=_TIME, help="Default: a week before the end."),
        click.option("--to", "to_time", type=_TIME, help="Default: now."),
        click.option("--interval", type=_INTERVALS, default="day", show_default=True),
        click.option("--time-zone", default="", help="Default: the organisation's."),
        click.option("--group-by", multiple=True),
    ):
        command = option(command)
    return command


def _times(from_time: datetime | None, to_time: datetime | None) -> tuple[datetime, datetime]:
    end = to_time or datetime.now(UTC)
    return from_time or end - timedelta(days=7), end


@stats.command()
@_range
@output_option
@pass_setup
def query(
    setup: Setup,
    metric: str,
    from_time: datetime | None,
    to_time: datetime | None,
    interval: str,
    time_zone: str,
    group_by: tuple[str, ...],
    output: str,
) -> None:
    """Show METRIC over time."""
    start, end = _times(from_time, to_time)
    with setup.client() as client:
        found = client.stats.query(
            metric, start, end, interval=interval, time_zone=time_zone, group_by=group_by
        )
    if output == "json":
        emit_one(found, (), output)
        return
    separator = "," if output == "csv" else "  "
    click.echo(separator.join(("start", *group_by, *found.value_names)))
    for series in found.series:
        keys = [key.display_name or key.value for key in series.keys]
        for point in series.points:
            values = [f"{v.value:g}" if v.HasField("value") else "" for v in point.values]
            click.echo(separator.join((local(point.start_time), *keys, *values)))
    click.echo(_finality(found.finality), err=True)


@stats.command()
@_range
@pass_setup
def export(
    setup: Setup,
    metric: str,
    from_time: datetime | None,
    to_time: datetime | None,
    interval: str,
    time_zone: str,
    group_by: tuple[str, ...],
) -> None:
    """Write METRIC over time as CSV to standard output."""
    start, end = _times(from_time, to_time)
    with setup.client() as client:
        for part in client.stats.export(
            metric, start, end, interval=interval, time_zone=time_zone, group_by=group_by
        ):
            sys.stdout.buffer.write(part)


@stats.command()
@_range
@click.option("--value", default="", help="Which of the metric's values. Default: the first.")
@click.option("--svg", type=click.Path(path_type=Path), help="Write an SVG file in its place.")
@pass_setup
def plot(
    setup: Setup,
    metric: str,
    from_time: datetime | None,
    to_time: datetime | None,
    interval: str,
    time_zone: str,
    group_by: tuple[str, ...],
    value: str,
    svg: Path | None,
) -> None:
    """Draw METRIC over time."""
    start, end = _times(from_time, to_time)
    with setup.client() as client:
        units = {(m.metric, v.name): v.unit for m in client.stats.metrics() for v in m.values}
        found = client.stats.query(
            metric, start, end, interval=interval, time_zone=time_zone, group_by=group_by,
            values=[value] if value else (),
        )  # fmt: skip
    chart = _chart(found, metric, units)
    if svg is None:
        click.echo(drawing.terminal(chart))
    else:
        svg.write_text(drawing.svg(chart), encoding="utf-8")
        click.echo(f"wrote {svg}", err=True)


def _chart(
    found: pb.QueryStatsResponse, metric: str, units: dict[tuple[str, str], str]
) -> drawing.Chart:
    """The first value of each series."""
    name = found.value_names[0]
    points = [[p.values[0] for p in series.points] for series in found.series]
    unit = units.get((metric, name), "1")
    return drawing.Chart(
        title=f"{metric}: {name}",
        unit="count" if unit == "1" else unit,
        times=[local(p.start_time) for p in found.series[0].points] if found.series else [],
        lines=[
            drawing.Line(
                ", ".join(key.display_name or key.value or "-" for key in series.keys),
                [v.value if v.HasField("value") else None for v in values],
            )
            for series, values in zip(found.series, points, strict=True)
        ],
        note=_finality(found.finality),
    )


def _finality(finality: pb.Finality) -> str:
    pending = f", {finality.hours_pending} hours pending" if finality.hours_pending else ""
    late = f"{finality.late_events} late events, revision {finality.revision}"
    return f"{'final' if finality.is_final else 'not final'}: {late}{pending}"


@stats.command()
@click.option("--watch", is_flag=True, help="Show them again each time they change.")
@output_option
@pass_setup
def overview(setup: Setup, output: str, watch: bool) -> None:
    """Show today's main numbers."""
    with setup.client() as client:
        if not watch:
            emit_one(client.stats.overview(), _OVERVIEW, output)
            return
        for seen in client.stats.watch_overview():
            if output == "table" and sys.stdout.isatty():
                click.clear()
            emit_one(seen, _OVERVIEW, output)


@stats.command()
@output_option
@pass_setup
def metrics(setup: Setup, output: str) -> None:
    """List the metrics."""
    with setup.client() as client:
        emit(client.stats.metrics(), _METRICS, output)


COMMANDS = (stats,)
