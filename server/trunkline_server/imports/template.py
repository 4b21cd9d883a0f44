"""The template: what columns a file may have, and one that works as it stands."""

from __future__ import annotations

from typing import NamedTuple

from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline_server.imports import rules
from trunkline_server.imports.spec import field_value
from trunkline_server.members import rules as members
from trunkline_server.members.pattern import NUMBER_CHARS_MAX


class _Column(NamedTuple):
    description: str
    example: str
    max_length: int


_DATE = "A day, written YYYY-MM-DD."
_COLUMNS = {
    "member_number": _Column(
        "The number that names the member in your organisation. Leading zeros count.", "M-000123",
        NUMBER_CHARS_MAX,
    ),
    "given_name": _Column("Given names.", "Ada", members.NAME_CHARS_MAX),
    "family_name": _Column("Family name.", "Sample", members.NAME_CHARS_MAX),
    "email": _Column("E-mail address.", "ada@example.org", members.EMAIL_CHARS_MAX),
    "phone": _Column(
        "Telephone number, best with its country code.", "+4930123456",
        members.PHONE_INPUT_CHARS_MAX,
    ),
    "date_of_birth": _Column(_DATE, "1980-02-29", 10),
    "plan": _Column("The plan, as your organisation calls it.", "", members.PLAN_CHARS_MAX),
    "status": _Column("PENDING, ACTIVE, SUSPENDED or TERMINATED. Empty: ACTIVE.", "ACTIVE", 10),
    "effective_from": _Column("The first day the membership counts: YYYY-MM-DD.", "2026-01-01", 10),
    "effective_to": _Column("The last day the membership counts: YYYY-MM-DD.", "2026-12-31", 10),
}  # fmt: skip


def template() -> pb.GetImportTemplateResponse:
    header = ",".join(rules.FIELDS)
    example = ",".join(_COLUMNS[name].example for name in rules.FIELDS)
    return pb.GetImportTemplateResponse(
        csv=f"{header}\r\n{example}\r\n".encode(),
        columns=[
            pb.TemplateColumn(
                field=field_value(name),
                column=name,
                aliases=[alias for alias, wanted in rules.ALIASES.items() if wanted == name],
                required=name == "member_number",
                description=_COLUMNS[name].description,
                example=_COLUMNS[name].example,
                max_length=_COLUMNS[name].max_length,
            )
            for name in rules.FIELDS
        ],
    )
