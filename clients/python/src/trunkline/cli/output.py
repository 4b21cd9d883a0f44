"""What commands print: a table for people, JSON lines and CSV for programs."""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from trunkline._shared.enums import prefix

FORMATS = ("table", "json", "csv")
# What leads a spreadsheet to run a cell.
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")

Command = TypeVar("Command", bound=Callable[..., Any])
# Heading, and the path of the field.
Columns = Sequence[tuple[str, str]]


def output_option(command: Command) -> Command:
    """`-o table|json|csv`."""
    option = click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        envvar="TRUNKLINE_OUTPUT",
        help="How to print: json prints one object a line.",
    )
    decorated: Command = option(command)
    return decorated


def emit(items: Iterable[Message], columns: Columns, output: str) -> None:
    """A list. JSON and CSV come out as items arrive; a table needs them all."""
    if output == "json":
        for item in items:
            click.echo(json.dumps(plain(item), ensure_ascii=False))
    elif output == "csv":
        _csv([[heading for heading, _ in columns]])
        for item in items:
            _csv([[neutral(shown(item, path)) for _, path in columns]])
    else:
        _table(items, columns)


def emit_one(item: Message, columns: Columns, output: str) -> None:
    """One thing: a table of its fields, one a line."""
    if output != "table":
        emit([item], columns, output)
        return
    width = max(len(heading) for heading, _ in columns)
    for heading, path in columns:
        value = shown(item, path)
        if value:
            click.echo(f"{heading:<{width}}  {printable(value)}")


def emit_line(item: Message, columns: Columns, output: str) -> None:
    """One of a stream of things, on one line."""
    if output == "json":
        click.echo(json.dumps(plain(item), ensure_ascii=False))
    else:
        click.echo("  ".join(printable(shown(item, path)) for _, path in columns))
    sys.stdout.flush()


def _csv(rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    click.echo(text.getvalue(), nl=False)


def _table(items: Iterable[Message], columns: Columns) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading, _ in columns:
        table.add_column(heading, overflow="fold")
    for item in items:
        table.add_row(*(Text(printable(shown(item, path))) for _, path in columns))
    width = None if sys.stdout.isatty() else 10_000
    Console(file=sys.stdout, width=width, highlight=False).print(table)


def plain(item: Message) -> dict[str, Any]:
    return MessageToDict(item, preserving_proto_field_name=True)


def shown(item: Message, path: str) -> str:
    """The field at `a.b.c` as text: enums by their short names, times in local time."""
    value: Any = item
    for name in path.split("."):
        if value.DESCRIPTOR.fields_by_name[name].has_presence and not value.HasField(name):
            return ""
        field, value = value.DESCRIPTOR.fields_by_name[name], getattr(value, name)
    if field.is_repeated:
        return ", ".join(_text(field, each) for each in value)
    return _text(field, value)


def _text(field: Any, value: Any) -> str:
    if field.enum_type is not None:
        found = field.enum_type.values_by_number.get(value)
        name = found.name.removeprefix(prefix(field.enum_type)) if found else str(value)
        return "" if name == "UNSPECIFIED" else name
    if isinstance(value, Timestamp):
        return local(value)
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def local(value: Timestamp) -> str:
    seconds = value.ToNanoseconds() / 1e9
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def printable(text: str) -> str:
    """Without control characters: what others typed does not get to drive a terminal."""
    return "".join(char if char.isprintable() or char == " " else "\ufffd" for char in text)


def neutral(text: str) -> str:
    """A CSV cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(FORMULA_SIGNS) else text
