"""An import's specification from arguments."""

from collections.abc import Mapping, Sequence

from trunkline._shared.enums import names_of, value_of
from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline.errors import Invalid

ATTRIBUTES = "attributes."

# Column name -> field name, "attributes.name", or None to ignore it; or the messages themselves.
Columns = Mapping[str, str | None] | Sequence[pb.ColumnMapping]


def spec_of(
    *,
    mode: pb.ImportMode.ValueType | str,
    commit: pb.CommitMode.ValueType | str,
    dry_run: bool,
    columns: Columns,
    dialect: pb.Dialect | None,
    max_rejects: int | None,
    max_reject_ratio: float | None,
    sync_max_terminations_ratio: float | None,
    parent_import_id: str,
    allow_same_file: bool,
) -> pb.ImportSpec:
    return pb.ImportSpec(
        dialect=dialect,
        columns=_mappings(columns),
        mode=value_of(pb.ImportMode, mode),
        commit=value_of(pb.CommitMode, commit),
        validate_only=dry_run,
        max_rejects=max_rejects,
        max_reject_ratio=max_reject_ratio,
        sync_max_terminations_ratio=sync_max_terminations_ratio,
        parent_import_id=parent_import_id,
        allow_same_file=allow_same_file,
    )


def _mappings(columns: Columns) -> list[pb.ColumnMapping]:
    if not isinstance(columns, Mapping):
        return list(columns)
    return [_mapping(column, target) for column, target in columns.items()]


def _mapping(column: str, target: str | None) -> pb.ColumnMapping:
    if target is None:
        return pb.ColumnMapping(column=column, ignored=True)
    if target.startswith(ATTRIBUTES):
        return pb.ColumnMapping(column=column, attribute=target.removeprefix(ATTRIBUTES))
    try:
        return pb.ColumnMapping(column=column, field=value_of(pb.ImportField, target))
    except Invalid as error:
        names = ", ".join(name.lower() for name in names_of(pb.ImportField))
        raise Invalid(
            f"Column {column!r} cannot fill {target!r}.",
            remedy=f"Map it to one of {names}, to attributes.NAME, or to None.",
        ) from error
