"""Members as messages: rows in, protobuf out, masked for the role that asks."""

from datetime import date, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline.api.members.v1.validation_reason_pb2 import ValidationReason
from trunkline_server.db import Record
from trunkline_server.members.decision import Finding, Sight, masked, sight
from trunkline_server.rpc.caller import Role

_TEXTS = ("member_number", "given_name", "family_name", "email", "phone", "plan")
_DAYS = ("date_of_birth", "effective_from", "effective_to")


def member(row: Record, role: Role) -> pb.Member:
    """The member as the role may see it."""
    message = pb.Member(
        member_id=str(row["member_id"]),
        status=pb.MemberStatus.Value(f"MEMBER_STATUS_{row['status']}"),
        version=row["version"],
        etag=etag(row),
        masked=is_masked(role),
    )
    for field in _TEXTS:
        if row[field]:
            setattr(message, field, masked(field, row[field], role.name))
    for field in _DAYS:
        if row[field] is not None:
            setattr(message, field, masked(field, row[field].isoformat(), role.name))
    message.provenance.CopyFrom(provenance(row))
    for column, field in _TIMES.items():
        if (moment := row.get(column)) is not None:
            getattr(message, field).FromDatetime(moment)
    if sight("attributes", role.name) is Sight.FULL:
        message.attributes.update(row.get("attributes") or {})
    return message


_TIMES = {
    "created_at": "create_time",
    "updated_at": "update_time",
    "deleted_at": "delete_time",
    "purge_at": "purge_time",
}


def is_masked(role: Role) -> bool:
    return any(sight(field, role.name) is not Sight.FULL for field in ("email", "date_of_birth"))


def etag(row: Record) -> str:
    return str(row["version"])


_CAUSES = {
    "CREATED": "registered",
    "UPDATED": "changed",
    "IMPORTED": "imported",
    "SYNC_TERMINATED": "ended, because it was missing",
    "IMPORT_UNDONE": "set back",
    "DELETED": "deleted",
    "UNDELETED": "restored",
    "PURGED": "purged",
}


def provenance(row: Record) -> pb.Provenance:
    if row["cause"] is None:
        return pb.Provenance()
    message = pb.Provenance(
        cause=pb.ChangeCause.Value(f"CHANGE_CAUSE_{row['cause']}"),
        file_name=row["file_name"],
        row_no=row["row_no"] or 0,
        actor_name=row["actor_name"],
        change_time=timestamp(row["changed_at"]),
        summary=summary(row),
    )
    if row["import_id"] is not None:
        message.import_id = str(row["import_id"])
    if row["actor_id"] is not None:
        message.actor_id = str(row["actor_id"])
    return message


def summary(row: Record) -> str:
    """`row 1,204 of june.csv, uploaded by key nightly`."""
    kind = {"USER": "", "KEY": "key ", "OPERATOR": "operator ", "WORKER": "the system "}
    who = f"{kind[row['actor_kind']]}{row['actor_name']}".strip()
    if row["import_id"] is None:
        return f"{_CAUSES[row['cause']]} by {who}"
    file_name = row["file_name"] or "an import"
    if row["cause"] == "IMPORTED" and row["row_no"]:
        return f"row {row['row_no']:,} of {file_name}, uploaded by {who}"
    joint = "in" if row["cause"] == "SYNC_TERMINATED" else "with"
    return f"{_CAUSES[row['cause']]} {joint} {file_name}, uploaded by {who}"


def reasons(
    findings: tuple[Finding, ...], articles: dict[int, list[str]]
) -> list[pb.DecisionReason]:
    return [
        pb.DecisionReason(
            code=(code := ValidationReason.Value(f"VALIDATION_REASON_{finding.reason}")),
            text=finding.sentence,
            next_step=finding.next_step,
            article_ids=articles.get(code, ()),
        )
        for finding in findings
    ]


def timestamp(moment: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def day(value: date | None) -> str:
    return value.isoformat() if value is not None else ""


def read_masked(message: pb.Member, paths: list[str]) -> pb.Member:
    """Only the named fields; all of them when none is named."""
    if not paths:
        return message
    kept = pb.Member()
    for field, value in message.ListFields():
        if field.name not in paths:
            continue
        if field.name == "attributes":
            kept.attributes.update(value)
        elif field.message_type is not None:
            getattr(kept, field.name).CopyFrom(value)
        else:
            setattr(kept, field.name, value)
    return kept
