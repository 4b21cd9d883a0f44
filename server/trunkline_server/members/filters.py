"""A MemberFilter as the conditions of a statement: every value an argument."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.errors import FieldViolation
from trunkline_server.members import rules
from trunkline_server.members.rules import MESSAGES, FieldRefused
from trunkline_server.rpc.validation import FieldsInvalid

# Positions $1 to $7, after the statement's own arguments: {0} is the first of them.
_CONDITIONS = """
    ({show_deleted}::boolean OR {m}.deleted_at IS NULL)
    AND ({statuses}::text[] IS NULL OR {m}.status = ANY ({statuses}::text[]))
    AND ({plans}::text[] IS NULL OR {m}.plan = ANY ({plans}::text[]))
    AND ({day}::date IS NULL OR (coalesce({m}.effective_from <= {day}::date, true)
                                 AND coalesce({m}.effective_to >= {day}::date, true)))
    AND ({since}::timestamptz IS NULL OR {m}.updated_at >= {since}::timestamptz)
    AND ({until}::timestamptz IS NULL OR {m}.updated_at < {until}::timestamptz)
    AND ({import_id}::uuid IS NULL OR {m}.import_id = {import_id}::uuid)
"""
_NAMES = ("show_deleted", "statuses", "plans", "day", "since", "until", "import_id")


@dataclass(frozen=True, slots=True)
class Filter:
    show_deleted: bool
    statuses: list[str] | None
    plans: list[str] | None
    day: date | None
    since: datetime | None
    until: datetime | None
    import_id: UUID | None

    def arguments(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in _NAMES)


def conditions(first: int, table: str = "v") -> str:
    """The conditions on `table`, whose arguments begin at ${first}."""
    places = {name: f"${first + offset}" for offset, name in enumerate(_NAMES)}
    return _CONDITIONS.format(m=table, **places)


def read(message: pb.MemberFilter) -> Filter:
    return Filter(
        show_deleted=message.show_deleted,
        statuses=[
            pb.MemberStatus.Name(status).removeprefix("MEMBER_STATUS_")
            for status in message.statuses
        ]
        or None,
        plans=list(message.plans) or None,
        day=_day(message.effective_on),
        since=_moment(message, "updated_from_time"),
        until=_moment(message, "updated_to_time"),
        import_id=UUID(message.last_import_id) if message.last_import_id else None,
    )


def _day(text: str) -> date | None:
    try:
        return rules.effective_date(text)
    except FieldRefused as refused:
        violation = FieldViolation("filter.effective_on", MESSAGES[refused.code], refused.code)
        raise FieldsInvalid(violations=[violation]) from None


def _moment(message: pb.MemberFilter, field: str) -> datetime | None:
    if not message.HasField(field):  # type: ignore[arg-type]
        return None
    moment: datetime = getattr(message, field).ToDatetime(UTC)
    return moment
