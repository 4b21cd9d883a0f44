"""What the sender asked for, checked once and turned into what the file's rules take."""

from __future__ import annotations

from collections.abc import Sequence

from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline_server.imports import rules
from trunkline_server.imports.errors import SpecInvalid, TooManyColumns
from trunkline_server.members.rules import ATTRIBUTE_KEY_CHARS_MAX

SYNC_MAX_TERMINATIONS_RATIO = 0.05

_FIELD_PREFIX = "IMPORT_FIELD_"


def file_spec(spec: pb.ImportSpec) -> rules.Spec:
    """Raises SpecInvalid. The worker reads the same file by the same spec."""
    has_header = not spec.dialect.HasField("has_header") or spec.dialect.has_header
    columns = _by_name(spec.columns) if has_header else {}
    positions = () if has_header else _by_position(spec.columns)
    _check_twice(positions or tuple(columns.values()))
    return rules.Spec(
        delimiter=spec.dialect.delimiter,
        quote=spec.dialect.quote or '"',
        has_header=has_header,
        columns=columns,
        positions=positions,
    )


def check(spec: pb.ImportSpec, columns_max: int) -> None:
    """All that is wrong with the spec by itself."""
    if len(spec.columns) > columns_max:
        raise TooManyColumns
    file_spec(spec)
    for i, column in enumerate(spec.columns):
        if len(column.attribute) > ATTRIBUTE_KEY_CHARS_MAX:
            raise SpecInvalid.at(f"columns[{i}].attribute", "longer than members' attributes are")
    if spec.HasField("sync_max_terminations_ratio") and spec.mode != pb.IMPORT_MODE_SYNC:
        raise SpecInvalid.at("sync_max_terminations_ratio", "only with the SYNC mode")
    if spec.parent_import_id and spec.mode == pb.IMPORT_MODE_SYNC:
        raise SpecInvalid.at(
            "parent_import_id", "a file of corrections is not the whole roster: do not SYNC with it"
        )


def target(column: pb.ColumnMapping) -> str:
    """The field's name in the rules."""
    match column.WhichOneof("target"):
        case "field":
            return pb.ImportField.Name(column.field).removeprefix(_FIELD_PREFIX).lower()
        case "attribute":
            return rules.ATTRIBUTE_PREFIX + column.attribute
        case _:
            return rules.IGNORED


def field_value(name: str) -> pb.ImportField.ValueType:
    return pb.ImportField.Value(_FIELD_PREFIX + name.upper())


def _by_name(columns: Sequence[pb.ColumnMapping]) -> dict[str, str]:
    found: dict[str, str] = {}
    for i, column in enumerate(columns):
        name = column.column.strip().casefold()
        if name in found:
            raise SpecInvalid.at(f"columns[{i}].column", "mapped twice")
        found[name] = target(column)
    return found


def _by_position(columns: Sequence[pb.ColumnMapping]) -> tuple[str, ...]:
    """Every column needs a mapping: what a missing one holds would be a guess."""
    by_position: dict[int, str] = {}
    for i, column in enumerate(columns):
        if not column.column.isascii() or not column.column.isdigit():
            raise SpecInvalid.at(f"columns[{i}].column", "a position, as the file has no header")
        position = int(column.column)
        if position in by_position:
            raise SpecInvalid.at(f"columns[{i}].column", "mapped twice")
        by_position[position] = target(column)
    if sorted(by_position) != list(range(1, len(columns) + 1)) or not columns:
        raise SpecInvalid.at("columns", "map positions 1 to the last one, each once")
    if "member_number" not in by_position.values():
        raise SpecInvalid.at("columns", "no column holds the member number")
    return tuple(by_position[position] for position in sorted(by_position))


def _check_twice(names: tuple[str, ...]) -> None:
    taken = [name for name in names if name != rules.IGNORED]
    for name in taken:
        if taken.count(name) > 1:
            raise SpecInvalid.at("columns", f"two columns fill {name}")
