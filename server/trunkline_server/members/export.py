"""ExportMembers: PostgreSQL writes the CSV, a part at a time, and holds nothing in between.

A part is one short transaction, so an export that is read slowly keeps no connection, no lock and
no snapshot. Rows come by number: one that is registered meanwhile is in the file if its place was
still to come.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server import audit
from trunkline_server.db import Connection, Database
from trunkline_server.errors import FieldViolation
from trunkline_server.members import filters
from trunkline_server.members.errors import MemberFieldInvalid
from trunkline_server.members.filters import Filter
from trunkline_server.rpc.caller import caller

# What an export holds in memory: one part on its way out, and the next one.
PART_BYTES = 256 << 10
PART_ROWS_FIRST = 500
PART_ROWS_MIN, PART_ROWS_MAX = 20, 5_000
MESSAGE_BYTES_MAX = 1 << 20
ATTRIBUTE_PREFIX = "attributes."

# What an import reads, so that an export can be imported again.
DEFAULT_COLUMNS = (
    "member_number", "given_name", "family_name", "email", "phone", "date_of_birth", "plan",
    "status", "effective_from", "effective_to",
)  # fmt: skip

# A spreadsheet takes a cell that begins so for a formula: = + - @, tab, return, and the wide forms.
_MARKS = "61, 43, 45, 64, 9, 13, 65309, 65291, 65293, 65312"


def _neutralised(value: str) -> str:
    return f"CASE WHEN ascii({value}) IN ({_MARKS}) THEN '''' || {value} ELSE {value} END"


def _time(column: str) -> str:
    return f"to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"


# Telephone numbers are E.164 and nothing else: no spreadsheet can run one.
_EXPRESSIONS = {
    "member_id": "v.member_id",
    "member_number": _neutralised("v.member_number"),
    "given_name": _neutralised("v.given_name"),
    "family_name": _neutralised("v.family_name"),
    "email": _neutralised("v.email"),
    "phone": "v.phone",
    "date_of_birth": "v.date_of_birth",
    "plan": _neutralised("v.plan"),
    "status": "v.status",
    "effective_from": "v.effective_from",
    "effective_to": "v.effective_to",
    "version": "v.version",
    "etag": "v.version",
    "create_time": _time("v.created_at"),
    "update_time": _time("v.updated_at"),
    "delete_time": _time("v.deleted_at"),
    "purge_time": _time("v.purge_at"),
}

# Where the next part ends; an index-only scan.
_PART_END = """
SELECT max(part.member_number) AS last, count(part.member_number) AS rows
FROM (
    SELECT member_number FROM members WHERE org_id = $1 AND member_number > $2
    ORDER BY member_number LIMIT $3
) part
"""
_PART = """
SELECT {columns}
FROM {members}
WHERE v.org_id = $1 AND v.member_number > $2 AND v.member_number <= $3 AND {conditions}
ORDER BY v.member_number
"""
_PLAIN = "members v"
_WITH_IMPORTS = """(
    SELECT m.*, c.import_id FROM members m
    LEFT JOIN member_changes c ON c.org_id = m.org_id AND c.change_id = m.change_id
) v"""
_EVERYONE = Filter(False, None, None, None, None, None, None)


class Exporting:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def export(
        self, request: pb.ExportMembersRequest
    ) -> AsyncIterator[pb.ExportMembersResponse]:
        who = caller()
        columns = tuple(request.columns) or DEFAULT_COLUMNS
        statement = _Statement(who.org_id, columns, filters.read(request.filter))
        async with self._db.tenant_tx(who.org_id) as tx:
            await audit.append(
                tx, who.org_id, "member.export", details={"columns": ",".join(columns)}
            )
        if not request.omit_header:
            header = (",".join(columns) + "\n").encode()
            yield pb.ExportMembersResponse(data=header, rows_sent=0)
        sent = 0
        parts = _Ahead(self._db, statement)
        try:
            while (part := await parts.next()) is not None:
                sent += part.rows
                for data in part.messages:
                    yield pb.ExportMembersResponse(data=data, rows_sent=sent)
        finally:
            await parts.close()


class _Ahead:
    """Reads one part while the one before it is sent."""

    def __init__(self, db: Database, statement: _Statement) -> None:
        self._db = db
        self._statement = statement
        self._rows = PART_ROWS_FIRST
        self._last: str | None = ""
        self._task = asyncio.create_task(self._read())

    async def next(self) -> _Part | None:
        part = await self._task
        if part is not None:
            self._task = asyncio.create_task(self._read())
        return part

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> _Part | None:
        assert self._last is not None
        part = _Part()
        async with self._db.tenant_tx(self._statement.org_id) as tx:
            self._last = await self._statement.copy(tx, self._last, self._rows, part)
        if self._last is None:
            return None
        self._rows = part.next_rows(self._rows)
        part.cut()
        return part


class _Part:
    """The CSV of a part, as PostgreSQL sent it."""

    def __init__(self) -> None:
        self.rows = 0
        self.messages: list[bytes] = []
        self._received: list[bytes] = []

    async def write(self, data: bytes) -> None:
        self._received.append(data)

    def next_rows(self, asked: int) -> int:
        """How many rows of this kind make a part."""
        if not self.rows:
            return asked
        fitting = PART_BYTES * self.rows // max(sum(map(len, self._received)), 1)
        return min(max(fitting, PART_ROWS_MIN), PART_ROWS_MAX)

    def cut(self) -> None:
        """Into messages, between two rows."""
        content, first = b"".join(self._received), 0
        self._received.clear()
        while len(content) - first > MESSAGE_BYTES_MAX:
            end = _row_end(content, first, first + MESSAGE_BYTES_MAX)
            self.messages.append(content[first:end])
            first = end
        if first < len(content):
            self.messages.append(content[first:] if first else content)


def _row_end(content: bytes, first: int, most: int) -> int:
    """A line feed inside a quoted cell has an odd number of quotes before it.

    The end of the last whole row before `most`, or of the first row, however long."""
    end = content.rfind(b"\n", first, most) + 1
    while end and content.count(b'"', first, end) % 2:
        end = content.rfind(b"\n", first, end - 1) + 1
    if end:
        return end
    end = content.find(b"\n", most) + 1
    while end and content.count(b'"', first, end) % 2:
        end = content.find(b"\n", end) + 1
    return end or len(content)


class _Statement:
    """The COPY of one export."""

    def __init__(self, org_id: UUID, columns: Sequence[str], wanted: Filter) -> None:
        self.org_id = org_id
        self._sql = _PART.format(
            columns=", ".join(_expression(place, name) for place, name in enumerate(columns)),
            members=_PLAIN if wanted.import_id is None else _WITH_IMPORTS,
            conditions="v.deleted_at IS NULL" if wanted == _EVERYONE else _conditions(wanted),
        )
        self._arguments = () if wanted == _EVERYONE else wanted.arguments()

    async def copy(self, tx: Connection, after: str, rows: int, part: _Part) -> str | None:
        """Fills the part; where it ended, or None at the end of the members."""
        found = await tx.fetchrow(_PART_END, self.org_id, after, rows)
        assert found is not None
        if not found["rows"]:
            return None
        status = await tx.copy_from_query(
            self._sql,
            self.org_id,
            after,
            found["last"],
            *self._arguments,
            output=part.write,
            format="csv",
        )
        part.rows = int(status.removeprefix("COPY "))
        last: str = found["last"]
        return last


def _conditions(wanted: Filter) -> str:
    text = filters.conditions(4)
    # Only a filter by import needs the changes.
    return text if wanted.import_id is not None else text.replace("v.import_id", "NULL::uuid")


def _expression(place: int, name: str) -> str:
    if name in _EXPRESSIONS:
        return _EXPRESSIONS[name]
    # The contract lets only small letters, digits and underscores through: no quoting to escape.
    key = name.removeprefix(ATTRIBUTE_PREFIX)
    if not name.startswith(ATTRIBUTE_PREFIX) or not key.isidentifier():
        raise MemberFieldInvalid(
            violations=[FieldViolation(f"columns[{place}]", "no such column", "COLUMN_UNKNOWN")]
        )
    return _neutralised(f"coalesce(v.attributes ->> '{key}', '')")
