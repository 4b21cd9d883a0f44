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


_COUNT = "SELECT count(member_id) FROM members WHERE org_id = $1"


async def count(db: Executor, org_id: UUID) -> int:
    counted: int = await db.fetchval(_COUNT, org_id)
    return counted


_ID_OF_NUMBER = """
SELECT member_id FROM members WHERE org_id = $1 AND member_number = $2
"""


async def id_of_number(db: Executor, org_id: UUID, number: str) -> UUID | None:
    found: UUID | None = await db.fetchval(_ID_OF_NUMBER, org_id, number)
    return found


_LOCK = """
SELECT m.member_id, m.member_number, m.given_name, m.family_name, m.email, m.phone,
       m.date_of_birth, m.plan, m.status, m.effective_from, m.effective_to, m.attributes,
       m.version, m.change_id, m.row_no, m.created_at, m.updated_at, m.deleted_at, m.purge_at
FROM members m WHERE m.org_id = $1 AND m.member_id = $2 FOR UPDATE
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


_INDEX = "SELECT index_members($1, $2)"
_RECORD = "SELECT record_member_change($1, $2, $3, $4, $5, $6, $7, $8)"


async def record(db: Executor, org_id: UUID, change: Change) -> int:
    """Writes the change down; last in a transaction, for the sequence stays locked.

    An import leaves the search to the worker: its own transactions must not pay for it.
    """
    if change.import_id is None:
        await db.execute(_INDEX, org_id, change.change_id)
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


_NUMBER_AT = """
SELECT v.member_id, v.member_number, v.given_name, v.family_name, v.email, v.phone,
       v.date_of_birth, v.plan, v.status, v.effective_from, v.effective_to, v.attributes,
       v.version, v.change_id, v.row_no, v.created_at, v.updated_at, v.deleted_at, v.purge_at,
       c.cause, c.actor_kind, c.actor_id, c.actor_name, c.import_id, c.file_name, c.changed_at
FROM (
    SELECT h.member_id, h.member_number, h.given_name, h.family_name, h.email, h.phone,
           h.date_of_birth, h.plan, h.status, h.effective_from, h.effective_to, h.attributes,
           h.version, h.change_id, h.row_no, h.created_at, h.updated_at, h.deleted_at, h.purge_at
    FROM members h WHERE h.org_id = $1 AND h.member_number = $2 AND h.updated_at <= $3
    UNION ALL
    SELECT h.member_id, h.member_number, h.given_name, h.family_name, h.email, h.phone,
           h.date_of_birth, h.plan, h.status, h.effective_from, h.effective_to, h.attributes,
           h.version, h.change_id, h.row_no, h.created_at, h.updated_at, h.deleted_at, h.purge_at
    FROM member_history h WHERE h.org_id = $1 AND h.member_number = $2
      AND h.updated_at <= $3 AND h.superseded_at > $3
) v
LEFT JOIN member_changes c ON c.org_id = $1 AND c.change_id = v.change_id
ORDER BY v.version DESC LIMIT 1
"""
_NUMBER_FIRST = """
SELECT v.member_id, v.member_number, v.given_name, v.family_name, v.email, v.phone,
       v.date_of_birth, v.plan, v.status, v.effective_from, v.effective_to, v.attributes,
       v.version, v.change_id, v.row_no, v.created_at, v.updated_at, v.deleted_at, v.purge_at,
       c.cause, c.actor_kind, c.actor_id, c.actor_name, c.import_id, c.file_name, c.changed_at
FROM (
    SELECT h.member_id, h.member_number, h.given_name, h.family_name, h.email, h.phone,
           h.date_of_birth, h.plan, h.status, h.effective_from, h.effective_to, h.attributes,
           h.version, h.change_id, h.row_no, h.created_at, h.updated_at, h.deleted_at, h.purge_at
    FROM members h WHERE h.org_id = $1 AND h.member_number = $2 AND h.created_at > $3
    UNION ALL
    SELECT h.member_id, h.member_number, h.given_name, h.family_name, h.email, h.phone,
           h.date_of_birth, h.plan, h.status, h.effective_from, h.effective_to, h.attributes,
           h.version, h.change_id, h.row_no, h.created_at, h.updated_at, h.deleted_at, h.purge_at
    FROM member_history h WHERE h.org_id = $1 AND h.member_number = $2 AND h.created_at > $3
) v
LEFT JOIN member_changes c ON c.org_id = $1 AND c.change_id = v.change_id
ORDER BY v.created_at DESC, v.version LIMIT 1
"""


async def number_at(db: Executor, org_id: UUID, number: str, moment: datetime) -> Record | None:
    """Whom the number belonged to at the moment, as that member was.

    A member registered later is judged by its first version: what is known now about a day before
    the registration is in its dates, not in a record of that day.
    """
    found = await db.fetchrow(_NUMBER_AT, org_id, number, moment)
    return found or await db.fetchrow(_NUMBER_FIRST, org_id, number, moment)


_MEMBER_AT = """
SELECT v.member_id, v.member_number, v.given_name, v.family_name, v.email, v.phone,
       v.date_of_birth, v.plan, v.status, v.effective_from, v.effective_to, v.attributes,
       v.version, v.change_id, v.row_no, v.created_at, v.updated_at, v.deleted_at, v.purge_at,
       c.cause, c.actor_kind, c.actor_id, c.actor_name, c.import_id, c.file_name, c.changed_at
FROM (
    SELECT h.member_id, h.member_number, h.given_name, h.family_name, h.email, h.phone,
           h.date_of_birth, h.plan, h.status, h.effective_from, h.effective_to, h.attributes,
           h.version, h.change_id, h.row_no, h.created_at, h.updated_at, h.deleted_at, h.purge_at
    FROM members h WHERE h.org_id = $1 AND h.member_id = $2 AND h.updated_at <= $3
    UNION ALL
    SELECT h.member_id, h.member_number, h.given_name, h.family_name, h.email, h.phone,
           h.date_of_birth, h.plan, h.status, h.effective_from, h.effective_to, h.attributes,
           h.version, h.change_id, h.row_no, h.created_at, h.updated_at, h.deleted_at, h.purge_at
    FROM member_history h WHERE h.org_id = $1 AND h.member_id = $2
      AND h.updated_at <= $3 AND h.superseded_at > $3
) v
LEFT JOIN member_changes c ON c.org_id = $1 AND c.change_id = v.change_id
ORDER BY v.version DESC LIMIT 1
"""


async def member_at(db: Executor, org_id: UUID, member_id: UUID, moment: datetime) -> Record | None:
    return await db.fetchrow(_MEMBER_AT, org_id, member_id, moment)


async def exact_number_at(
    db: Executor, org_id: UUID, number: str, moment: datetime
) -> Record | None:
    return await db.fetchrow(_NUMBER_AT, org_id, number, moment)


_LOG_VALIDATIONS = """
INSERT INTO validation_log (
    org_id, validation_id, actor_id, decision, reasons, validations, member_ids, as_of, at
)
SELECT $1, validation_id, actor_id, decision, string_to_array(reasons, ','), validations,
       string_to_array(member_ids, ',')::uuid[], as_of, at
FROM unnest($2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::integer[], $7::text[],
            $8::date[], $9::timestamptz[])
    AS given (validation_id, actor_id, decision, reasons, validations, member_ids, as_of, at)
ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True, slots=True)
class Logged:
    """Validations as they are counted and audited. No numbers, no names: ids only."""

    validation_id: UUID
    actor_id: UUID
    decision: str
    reasons: str
    validations: int
    member_ids: Sequence[UUID]
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
        [row.validations for row in logged],
        # An array of arrays of unequal length does not exist: their members travel as text.
        [",".join(map(str, row.member_ids)) for row in logged],
        [row.as_of for row in logged],
        [row.at for row in logged],
    )


_SAVE_GUARD = """
INSERT INTO validation_guards (
    org_id, actor_id, actor_name, level, sign, lookups, misses, sequential
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (org_id, actor_id) DO UPDATE SET
    actor_name = excluded.actor_name, sign = excluded.sign, lookups = excluded.lookups,
    misses = excluded.misses, sequential = excluded.sequential, updated_at = now(),
    -- Another process may have stopped the actor: only an administrator takes that back.
    level = CASE WHEN validation_guards.level = 'STOPPED' THEN 'STOPPED' ELSE excluded.level END
"""


async def save_guard(
    db: Executor,
    org_id: UUID,
    actor_id: UUID,
    actor_name: str,
    level: str,
    sign: str,
    figures: tuple[int, int, int],
) -> None:
    """`figures`: look-ups, misses, sequential ones."""
    await db.execute(_SAVE_GUARD, org_id, actor_id, actor_name, level, sign, *figures)


_STOPPED = "SELECT actor_id FROM stopped_validators()"


async def stopped(db: Executor) -> list[UUID]:
    """Of all organisations."""
    return [row["actor_id"] for row in await db.fetch(_STOPPED)]


_GUARDS = """
SELECT actor_id, actor_name, level, lookups, misses, sequential, started_at, updated_at
FROM validation_guards
WHERE org_id = $1
  AND ($2::timestamptz IS NULL OR (updated_at, actor_id) < ($2::timestamptz, $3::uuid))
ORDER BY updated_at DESC, actor_id DESC LIMIT $4
"""


async def guards(
    db: Executor, org_id: UUID, before: datetime | None, before_actor: UUID | None, limit: int
) -> list[Record]:
    return await db.fetch(_GUARDS, org_id, before, before_actor, limit)


_RELEASE = """
DELETE FROM validation_guards WHERE org_id = $1 AND actor_id = $2
RETURNING actor_id, actor_name, level, lookups, misses, sequential, started_at, updated_at
"""


async def release_guard(db: Executor, org_id: UUID, actor_id: UUID) -> Record | None:
    return await db.fetchrow(_RELEASE, org_id, actor_id)
