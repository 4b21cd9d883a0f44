"""The SQL of members: reads by number and id, writes with their before-images, changes in order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

import asyncpg

from trunkline_server.db import Executor, Reader, Record
from trunkline_server.ids import uuid7
from trunkline_server.members.errors import MemberNumberTaken

# The columns that a caller can set, in the order of every statement below.
FIELDS = (
    "member_number", "given_name", "family_name", "email", "phone", "date_of_birth", "plan",
    "status", "effective_from", "effective_to", "attributes",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """Who changes members, and why: one row for each transaction."""

    change_id: UUID
    cause: str
    actor_kind: str
    actor_id: UUID | None
    actor_name: str
    import_id: UUID | None = None
    file_name: str = ""


_BY_NUMBER = """
SELECT member_id, member_number, given_name, family_name, email, phone, date_of_birth, plan,
       status, effective_from, effective_to, version, change_id, row_no, deleted_at, cause,
       actor_kind, actor_id, actor_name, import_id, file_name, changed_at
FROM member_by_number($1, $2)
"""


async def by_number(db: Reader, org_id: UUID, number: str) -> Record | None:
    """The validation's read; sets the tenant itself, so a kept connection serves."""
    return await db.fetchrow(_BY_NUMBER, org_id, number)


_BY_NUMBERS = """
SELECT member_id, member_number, given_name, family_name, email, phone, date_of_birth, plan,
       status, effective_from, effective_to, version, change_id, row_no, deleted_at, cause,
       actor_kind, actor_id, actor_name, import_id, file_name, changed_at
FROM members_by_numbers($1, $2)
"""


async def by_numbers(db: Reader, org_id: UUID, numbers: Sequence[str]) -> list[Record]:
    return await db.fetch(_BY_NUMBERS, org_id, numbers)


_GET = """
SELECT m.member_id, m.member_number, m.given_name, m.family_name, m.email, m.phone,
       m.date_of_birth, m.plan, m.status, m.effective_from, m.effective_to, m.attributes,
       m.version, m.change_id, m.row_no, m.created_at, m.updated_at, m.deleted_at, m.purge_at,
       c.cause, c.actor_kind, c.actor_id, c.actor_name, c.import_id, c.file_name, c.changed_at
FROM members m
LEFT JOIN member_changes c ON c.org_id = m.org_id AND c.change_id = m.change_id
WHERE m.org_id = $1 AND m.member_id = $2
"""


async def get(db: Executor, org_id: UUID, member_id: UUID) -> Record | None:
    return await db.fetchrow(_GET, org_id, member_id)


_ID_OF_NUMBER = """
SELECT member_id FROM members WHERE org_id = $1 AND member_number = $2
"""


async def id_of_number(db: Executor, org_id: UUID, number: str) -> UUID | None:
    found: UUID | None = await db.fetchval(_ID_OF_NUMBER, org_id, number)
    return found


_LOCK = """
SELECT version, deleted_at, purge_at, member_number, status FROM members
WHERE org_id = $1 AND member_id = $2 FOR UPDATE
"""


async def lock(db: Executor, org_id: UUID, member_id: UUID) -> Record | None:
    """The row as it stands, held until the commit."""
    return await db.fetchrow(_LOCK, org_id, member_id)


_CREATE = """
INSERT INTO members (
    org_id, member_id, change_id, member_number, given_name, family_name, email, phone,
    date_of_birth, plan, status, effective_from, effective_to, attributes
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
"""


async def create(db: Executor, org_id: UUID, change: Change, values: Mapping[str, Any]) -> UUID:
    member_id = uuid7()
    arguments = [values[field] for field in FIELDS]
    try:
        await db.execute(_CREATE, org_id, member_id, change.change_id, *arguments)
    except asyncpg.UniqueViolationError:
        raise MemberNumberTaken from None
    await record(db, org_id, change)
    return member_id


_KEEP_IMAGE = """
INSERT INTO member_history (
    org_id, member_id, member_number, given_name, family_name, email, phone, date_of_birth, plan,
    status, effective_from, effective_to, attributes, version, change_id, row_no, created_at,
    updated_at, deleted_at, purge_at, superseded_by
)
SELECT org_id, member_id, member_number, given_name, family_name, email, phone, date_of_birth,
       plan, status, effective_from, effective_to, attributes, version, change_id, row_no,
       created_at, updated_at, deleted_at, purge_at, $3
FROM members WHERE org_id = $1 AND member_id = $2
"""
_UPDATE = """
UPDATE members SET
    member_number = $4, given_name = $5, family_name = $6, email = $7, phone = $8,
    date_of_birth = $9, plan = $10, status = $11, effective_from = $12, effective_to = $13,
    attributes = $14, change_id = $3, row_no = NULL, version = version + 1, updated_at = now()
WHERE org_id = $1 AND member_id = $2
"""


async def update(
    db: Executor, org_id: UUID, member_id: UUID, change: Change, values: Mapping[str, Any]
) -> None:
    """Call it with the row locked."""
    await db.execute(_KEEP_IMAGE, org_id, member_id, change.change_id)
    arguments = [values[field] for field in FIELDS]
    try:
        await db.execute(_UPDATE, org_id, member_id, change.change_id, *arguments)
    except asyncpg.UniqueViolationError:
        raise MemberNumberTaken from None
    await record(db, org_id, change)


_DELETE = """
UPDATE members SET
    deleted_at = now(), purge_at = now() + make_interval(days => $4), change_id = $3,
    row_no = NULL, version = version + 1, updated_at = now()
WHERE org_id = $1 AND member_id = $2
"""


async def delete(
    db: Executor, org_id: UUID, member_id: UUID, change: Change, keep_days: int
) -> None:
    await db.execute(_KEEP_IMAGE, org_id, member_id, change.change_id)
    await db.execute(_DELETE, org_id, member_id, change.change_id, keep_days)
    await record(db, org_id, change)


_UNDELETE = """
UPDATE members SET
    deleted_at = NULL, purge_at = NULL, change_id = $3, row_no = NULL, version = version + 1,
    updated_at = now()
WHERE org_id = $1 AND member_id = $2
"""


async def undelete(db: Executor, org_id: UUID, member_id: UUID, change: Change) -> None:
    await db.execute(_KEEP_IMAGE, org_id, member_id, change.change_id)
    await db.execute(_UNDELETE, org_id, member_id, change.change_id)
    await record(db, org_id, change)


_RECORD = "SELECT record_member_change($1, $2, $3, $4, $5, $6, $7, $8)"


async def record(db: Executor, org_id: UUID, change: Change) -> int:
    """Writes the change down; last in a transaction, for the sequence stays locked."""
    seq: int = await db.fetchval(
        _RECORD, org_id, change.change_id, change.cause, change.actor_kind, change.actor_id,
        change.actor_name, change.import_id, change.file_name,
    )  # fmt: skip
    return seq


_HISTORY = """
SELECT h.member_id, h.member_number, h.given_name, h.family_name, h.email, h.phone,
       h.date_of_birth, h.plan, h.status, h.effective_from, h.effective_to, h.attributes,
       h.version, h.change_id, h.row_no, h.created_at, h.updated_at, h.deleted_at, h.purge_at,
       h.superseded_at, c.cause, c.actor_kind, c.actor_id, c.actor_name, c.import_id, c.file_name,
       c.changed_at
FROM member_history h
LEFT JOIN member_changes c ON c.org_id = h.org_id AND c.change_id = h.change_id
WHERE h.org_id = $1 AND h.member_id = $2 AND h.version < $3
ORDER BY h.version DESC
LIMIT $4
"""


async def history(
    db: Executor, org_id: UUID, member_id: UUID, below_version: int, limit: int
) -> list[Record]:
    """Earlier versions, the newest first."""
    return await db.fetch(_HISTORY, org_id, member_id, below_version, limit)


_AS_OF = """
SELECT h.member_id, h.member_number, h.given_name, h.family_name, h.email, h.phone,
       h.date_of_birth, h.plan, h.status, h.effective_from, h.effective_to, h.attributes,
       h.version, h.change_id, h.row_no, h.created_at, h.updated_at, h.deleted_at, h.purge_at,
       h.superseded_at, c.cause, c.actor_kind, c.actor_id, c.actor_name, c.import_id, c.file_name,
       c.changed_at
FROM member_history h
LEFT JOIN member_changes c ON c.org_id = h.org_id AND c.change_id = h.change_id
WHERE h.org_id = $1 AND h.member_id = $2 AND h.superseded_at > $3
ORDER BY h.superseded_at, h.version
LIMIT 1
"""


async def version_at(
    db: Executor, org_id: UUID, member_id: UUID, moment: datetime
) -> Record | None:
    """The image that was replaced first after the moment; None: the current row held already."""
    return await db.fetchrow(_AS_OF, org_id, member_id, moment)


_LOG_VALIDATIONS = """
INSERT INTO validation_log (
    org_id, validation_id, actor_id, decision, reasons, member_id, as_of, at
)
SELECT $1, validation_id, actor_id, decision, string_to_array(reasons, ','), member_id, as_of, at
FROM unnest($2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::uuid[], $7::date[],
            $8::timestamptz[])
    AS given (validation_id, actor_id, decision, reasons, member_id, as_of, at)
ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True, slots=True)
class Logged:
    """One validation as it is counted and audited. No number, no name: ids only."""

    validation_id: UUID
    actor_id: UUID
    decision: str
    reasons: str
    member_id: UUID | None
    as_of: date
    at: datetime


async def log_validations(db: Executor, org_id: UUID, logged: Sequence[Logged]) -> None:
    # DO NOTHING: a flush whose answer was lost is repeated with the same ids.
    await db.execute(
        _LOG_VALIDATIONS,
        org_id,
        [row.validation_id for row in logged],
        [row.actor_id for row in logged],
        [row.decision for row in logged],
        [row.reasons for row in logged],
        [row.member_id for row in logged],
        [row.as_of for row in logged],
        [row.at for row in logged],
    )
