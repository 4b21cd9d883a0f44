"""Members as messages: rows in, protobuf out, masked for the role that asks."""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline.api.members.v1.validation_reason_pb2 import ValidationReason
from trunkline_server.db import Record
from trunkline_server.members.decision import Finding, Sight, masked, sight
from trunkline_server.rpc.caller import Role

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _numbers(enumeration: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, number in enumeration.items():
        yield name.removeprefix(prefix), number


_STATUSES = dict(_numbers(pb.MemberStatus, "MEMBER_STATUS_"))
_CHANGE_CAUSES = dict(_numbers(pb.ChangeCause, "CHANGE_CAUSE_"))
_REASONS = dict(_numbers(ValidationReason, "VALIDATION_REASON_"))
_TEXTS = ("member_number", "given_name", "family_name", "email", "phone", "plan")
_DAYS = ("date_of_birth", "effective_from", "effective_to")
_TIMES = {
    "created_at": "create_time",
    "updated_at": "update_time",
    "deleted_at": "delete_time",
    "purge_at": "purge_time",
}


def _sights(fields: tuple[str, ...], role: Role) -> tuple[tuple[str, Sight], ...]:
    seen = ((field, sight(field, role.name)) for field in fields)
    return tuple((field, how) for field, how in seen if how is not Sight.HIDDEN)


# The masking table, worked out once for each role: a validation is in a hurry.
_SEEN_TEXTS = {role: _sights(_TEXTS, role) for role in Role}
_SEEN_DAYS = {role: _sights(_DAYS, role) for role in Role}
_SEES_ATTRIBUTES = {role: sight("attributes", role.name) is Sight.FULL for role in Role}
_IS_MASKED = {
    role: any(
        sight(field, role.name) is not Sight.FULL for field in (*_TEXTS, *_DAYS, "attributes")
    )
    for role in Role
}


def member(row: Record, role: Role, origin: pb.Provenance | None = None) -> pb.Member:
    """The member as the role may see it."""
    version = row["version"]
    content: dict[str, Any] = {
        "member_id": str(row["member_id"]),
        "status": _STATUSES[row["status"]],
        "version": version,
        "etag": str(version),
        "masked": _IS_MASKED[role],
        "provenance": provenance(row) if origin is None else origin,
    }
    for field, how in _SEEN_TEXTS[role]:
        value = row[field]
        content[field] = value if how is Sight.FULL else masked(field, value, role.name)
    for field, _ in _SEEN_DAYS[role]:
        if (moment := row[field]) is not None:
            content[field] = moment.isoformat()
    for column, field in _TIMES.items():
        if (moment := row.get(column)) is not None:
            content[field] = timestamp(moment)
    if _SEES_ATTRIBUTES[role] and (attributes := row.get("attributes")):
        content["attributes"] = json.loads(attributes)
    return pb.Member(**content)


def is_masked(role: Role) -> bool:
    return _IS_MASKED[role]


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
    cause = row["cause"]
    if cause is None:
        return pb.Provenance()
    import_id, actor_id = row["import_id"], row["actor_id"]
    return pb.Provenance(
        cause=_CHANGE_CAUSES[cause],
        import_id="" if import_id is None else str(import_id),
        file_name=row["file_name"],
        row_no=row["row_no"] or 0,
        actor_id="" if actor_id is None else str(actor_id),
        actor_name=row["actor_name"],
        change_time=timestamp(row["changed_at"]),
        summary=summary(row),
    )


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
            code=(code := _REASONS[finding.reason]),
            text=finding.sentence,
            next_step=finding.next_step,
            article_ids=articles.get(code, ()),
        )
        for finding in findings
    ]


def change_cause(name: str) -> pb.ChangeCause.ValueType:
    cause: pb.ChangeCause.ValueType = _CHANGE_CAUSES[name]
    return cause


def timestamp(moment: datetime) -> Timestamp:
    since = moment - _EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1_000)


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


_LEVELS = dict(_numbers(pb.GuardLevel, "GUARD_LEVEL_"))


def guard(row: Record) -> pb.ValidationGuard:
    return pb.ValidationGuard(
        actor_id=str(row["actor_id"]),
        actor_name=row["actor_name"],
        level=_LEVELS[row["level"]],
        lookups=row["lookups"],
        misses=row["misses"],
        longest_sequence=row["sequential"],
        start_time=timestamp(row["started_at"]),
    )
