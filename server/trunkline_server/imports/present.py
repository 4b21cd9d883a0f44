"""Imports as messages: rows in, protobuf out."""

from __future__ import annotations

import json
from datetime import datetime

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from trunkline.api.errors.v1.item_error_pb2 import ItemError
from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline.api.imports.v1.reject_code_pb2 import RejectCode
from trunkline_server.db import Record
from trunkline_server.imports import rules
from trunkline_server.imports.protocol import CHUNK_BYTES_MAX
from trunkline_server.imports.spec import field_value

_COUNTERS = (
    "bytes_processed", "rows_read", "created", "updated", "unchanged", "rejected", "superseded",
    "terminated",
)  # fmt: skip
_TIMES = {
    "created_at": "create_time",
    "upload_ended_at": "upload_end_time",
    "started_at": "start_time",
    "ended_at": "end_time",
    "expires_at": "expire_time",
}


def stored(message: Message) -> str:
    """A message as a jsonb column holds it."""
    return json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None)


def spec(row: Record) -> pb.ImportSpec:
    return json_format.Parse(row["spec"], pb.ImportSpec(), ignore_unknown_fields=True)


def plan(row: Record) -> pb.ImportPlan:
    return json_format.Parse(row["plan"], pb.ImportPlan(), ignore_unknown_fields=True)


def timestamp(moment: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def import_(row: Record, imports_running: int) -> pb.Import:
    """`imports_running` is the organisation's quota, which tells why an import waits."""
    message = pb.Import(
        import_id=str(row["import_id"]),
        state=pb.ImportState.Value(f"IMPORT_STATE_{row['state']}"),
        spec=spec(row),
        counters=pb.ImportCounters(
            bytes_received=row["persisted_bytes"], **{name: row[name] for name in _COUNTERS}
        ),
        actor_id=str(row["actor_id"]),
        actor_name=row["actor_name"],
        attempts=row["attempts"],
        etag=str(row["version"]),
    )
    for column, field in _TIMES.items():
        if row[column] is not None:
            getattr(message, field).FromDatetime(row[column])
    if row["layout"] is not None:
        _add_layout(message, rules.Layout.from_json(json.loads(row["layout"])))
    if row["problem"] is not None:
        problem = json_format.Parse(row["problem"], ItemError(), ignore_unknown_fields=True)
        message.problem.CopyFrom(problem)
    if row["plan"] is not None:
        message.plan.CopyFrom(plan(row))
    if row["state"] == "QUEUED":
        message.queue.CopyFrom(_queue(row, imports_running))
    if row["child_ids"]:
        message.net_totals.CopyFrom(_net_totals(row))
    if row["undo_requested_at"] is not None:
        message.undo.CopyFrom(_undo(row))
    return message


def _add_layout(message: pb.Import, layout: rules.Layout) -> None:
    asked = message.spec.dialect
    has_header = not asked.HasField("has_header") or asked.has_header
    message.dialect.CopyFrom(
        pb.Dialect(delimiter=layout.delimiter, quote=layout.quote, has_header=has_header)
    )
    for i, (header, name) in enumerate(zip(layout.headers, layout.fields, strict=True)):
        column = message.columns.add(column=header, position=i + 1)
        if name.startswith(rules.ATTRIBUTE_PREFIX):
            column.attribute = name.removeprefix(rules.ATTRIBUTE_PREFIX)
        elif name == rules.IGNORED:
            column.ignored = True
        else:
            column.field = field_value(name)


def _queue(row: Record, imports_running: int) -> pb.ImportQueue:
    earliest = max(row["start_not_before"], row["run_after"] or row["start_not_before"])
    if row["start_not_before"] > row["read_at"]:
        cause = pb.QUEUE_CAUSE_START_RATE
    elif earliest > row["read_at"]:
        cause = pb.QUEUE_CAUSE_RETRY_DELAY
    elif row["running"] >= imports_running:
        cause = pb.QUEUE_CAUSE_RUNNING_QUOTA
    else:
        cause = pb.QUEUE_CAUSE_WORKERS_BUSY
    return pb.ImportQueue(
        position=row["position"], cause=cause, earliest_start_time=timestamp(earliest)
    )


def _net_totals(row: Record) -> pb.NetTotals:
    return pb.NetTotals(
        child_import_ids=[str(child) for child in row["child_ids"]],
        created=row["created"] + row["child_created"],
        updated=row["updated"] + row["child_updated"],
        rejected_open=max(0, row["rejected"] - row["child_accepted"]),
    )


def _undo(row: Record) -> pb.UndoSummary:
    message = pb.UndoSummary(
        reversed=row["undo_reversed"],
        kept_because_edited=row["undo_kept"],
        failed=row["undo_failed"],
        request_time=timestamp(row["undo_requested_at"]),
        actor_id=str(row["undo_actor_id"] or ""),
    )
    if row["undo_ended_at"] is not None:
        message.end_time.FromDatetime(row["undo_ended_at"])
    return message


def upload(row: Record, send_limit: int) -> pb.Upload:
    message = pb.Upload(
        import_id=str(row["import_id"]),
        persisted_bytes=row["persisted_bytes"],
        prefix_crc32=row["crc32"],
        send_limit=send_limit,
        chunk_bytes_max=CHUNK_BYTES_MAX,
        epoch=row["upload_epoch"],
        finished=row["total_bytes"] is not None,
    )
    if row["expires_at"] is not None:
        message.expire_time.FromDatetime(row["expires_at"])
    return message


def reject(row: Record) -> pb.Reject:
    return pb.Reject(
        row_no=row["row_no"],
        line_no=row["line_no"],
        byte_offset=row["byte_offset"],
        column=row["column_name"],
        code=RejectCode.Value(f"REJECT_CODE_{row['code']}"),
        message=row["message"],
        raw=row["raw"],
    )


def undo_result(row: Record) -> pb.UndoResult:
    return pb.UndoResult(
        member_id=str(row["member_id"]),
        member_number=row["member_number"],
        row_no=row["row_no"],
        outcome=pb.UndoOutcome.Value(f"UNDO_OUTCOME_{row['outcome']}"),
        message=row["message"],
    )
