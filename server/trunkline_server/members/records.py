"""One member at a time: register, read, change, delete, restore, and its history."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from google.protobuf import field_mask_pb2

from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server import audit
from trunkline_server.cache import Cache
from trunkline_server.db import Connection, Database, Executor, Record
from trunkline_server.errors import FieldViolation, QuotaViolation, Resource
from trunkline_server.idempotency import once
from trunkline_server.ids import uuid7
from trunkline_server.link import Link
from trunkline_server.members import present, queries, rules
from trunkline_server.members.errors import (
    AsOfOutOfRange,
    AttributesTooLarge,
    MemberChanged,
    MemberDatesInverted,
    MemberDeleted,
    MemberFieldInvalid,
    MemberNotDeleted,
    MemberNotFound,
    MemberNumberInvalid,
    MemberQuotaReached,
)
from trunkline_server.members.queries import FIELDS, Change
from trunkline_server.members.rules import MESSAGES, FieldRefused, OrgRules
from trunkline_server.members.settings import SettingsReader
from trunkline_server.members.validation import TOPIC_MEMBER
from trunkline_server.orgs import Orgs, OrgSettings
from trunkline_server.paging import PageTokens, page_size
from trunkline_server.rpc.caller import Caller, caller

ATTRIBUTES_BYTES_MAX = 16 << 10
# A million members are counted in a tenth of a second: not for each that is registered.
COUNT_TTL_S = 60.0
COUNTED_ORGS_MAX = 10_000


class Records:
    def __init__(self, db: Database, orgs: Orgs, link: Link | None, pages: PageTokens) -> None:
        self._db = db
        self._orgs = orgs
        self._link = link
        self._pages = pages
        self._settings = SettingsReader()
        self._counts: Cache[str, list[int]] = Cache(
            "member-counts", entries_max=COUNTED_ORGS_MAX, ttl_s=COUNT_TTL_S
        )

    async def create(self, request: pb.CreateMemberRequest) -> pb.CreateMemberResponse:
        who = caller()
        org, org_rules = await self._rules(who)
        values = _values(request.member, org_rules, FIELDS)
        _check_whole(values)
        await self._check_quota(who, org)

        async def produce() -> pb.CreateMemberResponse:
            change = _change(who, "CREATED")
            member_id = await queries.create(tx, who.org_id, change, values)
            row = await _audited(tx, who, "member.create", member_id)
            return pb.CreateMemberResponse(member=present.member(row, who.role))

        async with self._db.tenant_tx(who.org_id) as tx:
            reply = await once(tx, request, pb.CreateMemberResponse, produce)
        await self._announce(who, values["member_number"])
        return reply

    async def get(self, request: pb.GetMemberRequest) -> pb.GetMemberResponse:
        who = caller()
        number = ""
        if request.WhichOneof("name") == "member_number":
            number = await self._number(who, request.member_number)
        moment = None
        if request.HasField("as_of_time"):
            moment = await self._moment(who, request)
        async with self._db.tenant_tx(who.org_id) as tx:
            row = await _found(tx, who.org_id, request.member_id, number, moment)
        if row is None or (row["deleted_at"] is not None and not request.show_deleted):
            raise MemberNotFound
        member = present.member(row, who.role)
        return pb.GetMemberResponse(
            member=present.read_masked(member, list(request.read_mask.paths))
        )

    async def update(self, request: pb.UpdateMemberRequest) -> pb.UpdateMemberResponse:
        who = caller()
        _, org_rules = await self._rules(who)
        member_id = _member_id(request.member)
        given = _values(request.member, org_rules, _named(request.update_mask))
        numbers: set[str] = set()

        async def produce() -> pb.UpdateMemberResponse:
            row = await _locked(tx, who.org_id, member_id, request.member.etag)
            if row["deleted_at"] is not None:
                raise MemberDeleted
            before = {field: row[field] for field in FIELDS}
            values = {**before, **given}
            _check_whole(values)
            changed = _differing(before, values)
            if changed:
                await queries.update(tx, who.org_id, member_id, _change(who, "UPDATED"), values)
                numbers.update((row["member_number"], values["member_number"]))
            details = {"fields": ",".join(changed)}
            row = await _audited(tx, who, "member.update", member_id, details)
            return pb.UpdateMemberResponse(member=present.member(row, who.role))

        async with self._db.tenant_tx(who.org_id) as tx:
            reply = await once(tx, request, pb.UpdateMemberResponse, produce)
        await self._announce(who, *numbers, reply.member.member_number)
        return reply

    async def delete(self, request: pb.DeleteMemberRequest) -> pb.DeleteMemberResponse:
        who = caller()
        org, _ = await self._rules(who)
        member_id = UUID(request.member_id)
        keep_days = org.retention.deleted_members_days

        async def produce() -> pb.DeleteMemberResponse:
            row = await _locked(tx, who.org_id, member_id, request.etag)
            if row["deleted_at"] is not None:
                raise MemberDeleted
            await queries.delete(tx, who.org_id, member_id, _change(who, "DELETED"), keep_days)
            row = await _audited(tx, who, "member.delete", member_id)
            return pb.DeleteMemberResponse(member=present.member(row, who.role))

        async with self._db.tenant_tx(who.org_id) as tx:
            reply = await once(tx, request, pb.DeleteMemberResponse, produce)
        await self._announce(who, reply.member.member_number)
        return reply

    async def undelete(self, request: pb.UndeleteMemberRequest) -> pb.UndeleteMemberResponse:
        who = caller()
        member_id = UUID(request.member_id)

        async def produce() -> pb.UndeleteMemberResponse:
            row = await _locked(tx, who.org_id, member_id, request.etag)
            if row["deleted_at"] is None:
                raise MemberNotDeleted
            await queries.undelete(tx, who.org_id, member_id, _change(who, "UNDELETED"))
            row = await _audited(tx, who, "member.undelete", member_id)
            return pb.UndeleteMemberResponse(member=present.member(row, who.role))

        async with self._db.tenant_tx(who.org_id) as tx:
            reply = await once(tx, request, pb.UndeleteMemberResponse, produce)
        await self._announce(who, reply.member.member_number)
        return reply

    async def history(self, request: pb.ListMemberHistoryRequest) -> pb.ListMemberHistoryResponse:
        """Newest first: the member as it is, then its before-images."""
        who = caller()
        size = page_size(request.page_size)
        position = self._pages.open(request.page_token, request)
        member_id = UUID(request.member_id)
        async with self._db.tenant_tx(who.org_id) as tx:
            current = await queries.get(tx, who.org_id, member_id)
            if current is None:
                raise MemberNotFound
            below = position[0] if position else current["version"] + 1
            # One more than the page: the last version's changes show against the one before.
            rows = await queries.history(tx, who.org_id, member_id, below, size + 1)
        versions = [current, *rows] if not position else rows
        reply = pb.ListMemberHistoryResponse(
            versions=[
                _version(row, before, who)
                for row, before in zip(versions[:size], [*versions[1:], None], strict=False)
            ]
        )
        if len(versions) > size:
            reply.next_page_token = self._pages.seal([versions[size - 1]["version"]], request)
        return reply

    async def _rules(self, who: Caller) -> tuple[OrgSettings, OrgRules]:
        org = self._orgs.cached(who.org_key) or await self._orgs.get(who.org_id)
        return org, self._settings.of(who.org_key, org).rules

    async def _number(self, who: Caller, raw: str) -> str:
        _, org_rules = await self._rules(who)
        try:
            return rules.member_number(raw, org_rules.number)
        except FieldRefused as refused:
            raise MemberNumberInvalid(violations=[_violation("member_number", refused)]) from None

    async def _moment(self, who: Caller, request: pb.GetMemberRequest) -> datetime:
        org, _ = await self._rules(who)
        moment, now = request.as_of_time.ToDatetime(UTC), datetime.now(UTC)
        oldest = now - timedelta(days=org.retention.member_history_days)
        if moment > now or moment < oldest:
            raise AsOfOutOfRange
        return moment

    async def _check_quota(self, who: Caller, org: OrgSettings) -> None:
        """By a count a minute old at most: what others added since may go beyond the quota."""
        counted = await self._counts.get_or_load(
            who.org_id, who.org_key, lambda: self._count(who.org_id)
        )
        assert counted is not None
        if counted[0] >= org.quotas.members:
            raise MemberQuotaReached(
                quota=[QuotaViolation("members", f"at most {org.quotas.members:,} members")]
            )
        counted[0] += 1

    async def _count(self, org_id: UUID) -> list[int]:
        async with self._db.tenant_tx(org_id) as tx:
            return [await queries.count(tx, org_id)]

    async def _announce(self, who: Caller, *numbers: str) -> None:
        """After the commit, and for a repeated request too: the first may have died before this."""
        if self._link is not None:
            for number in dict.fromkeys(numbers):
                await self._link.publish(TOPIC_MEMBER, f"{who.org_key} {number}")


def _change(who: Caller, cause: str) -> Change:
    return Change(uuid7(), cause, who.actor_kind.upper(), who.actor_id, who.actor_name)


async def _audited(
    tx: Connection,
    who: Caller,
    action: str,
    member_id: UUID,
    details: Mapping[str, str] | None = None,
) -> Record:
    """The row after the change, which the audit log tells of."""
    await audit.append(
        tx, who.org_id, action, resource_type="member", resource_id=member_id, details=details
    )
    row = await queries.get(tx, who.org_id, member_id)
    assert row is not None
    return row


async def _locked(tx: Executor, org_id: UUID, member_id: UUID, etag: str) -> Record:
    row = await queries.lock(tx, org_id, member_id)
    if row is None:
        raise MemberNotFound
    if etag and etag != present.etag(row):
        raise MemberChanged(
            metadata={"etag": present.etag(row)}, resource=Resource("member", str(member_id))
        )
    return row


async def _found(
    tx: Executor, org_id: UUID, member_id: str, number: str, moment: datetime | None
) -> Record | None:
    if moment is not None:
        if number:
            return await queries.exact_number_at(tx, org_id, number, moment)
        return await queries.member_at(tx, org_id, UUID(member_id), moment)
    found = await queries.id_of_number(tx, org_id, number) if number else UUID(member_id)
    return await queries.get(tx, org_id, found) if found is not None else None


def _member_id(member: pb.Member) -> UUID:
    if not member.member_id:
        raise MemberFieldInvalid(violations=[FieldViolation("member.member_id", "is required")])
    return UUID(member.member_id)


def _named(mask: field_mask_pb2.FieldMask) -> tuple[str, ...]:
    return tuple(field for field in FIELDS if field in mask.paths)


_READERS: Mapping[str, Callable[[pb.Member, OrgRules], Any]] = {
    "member_number": lambda m, org: rules.member_number(m.member_number, org.number),
    "given_name": lambda m, org: rules.name(m.given_name),
    "family_name": lambda m, org: rules.name(m.family_name),
    "email": lambda m, org: rules.email(m.email),
    "phone": lambda m, org: rules.phone(m.phone, org.phone_region),
    "date_of_birth": lambda m, org: rules.date_of_birth(m.date_of_birth),
    "plan": lambda m, org: rules.plan(m.plan, org),
    "status": lambda m, org: _status(m.status),
    "effective_from": lambda m, org: rules.effective_date(m.effective_from),
    "effective_to": lambda m, org: rules.effective_date(m.effective_to),
    "attributes": lambda m, org: json.dumps(rules.attributes(m.attributes)),
}


def _status(status: pb.MemberStatus.ValueType) -> str:
    if status == pb.MEMBER_STATUS_UNSPECIFIED:
        return rules.DEFAULT_STATUS
    return pb.MemberStatus.Name(status).removeprefix("MEMBER_STATUS_")


def _values(member: pb.Member, org_rules: OrgRules, fields: tuple[str, ...]) -> dict[str, Any]:
    """The fields as they are stored; all that is wrong with them at once."""
    values: dict[str, Any] = {}
    violations = []
    for field in fields:
        try:
            values[field] = _READERS[field](member, org_rules)
        except FieldRefused as refused:
            violations.append(_violation(f"member.{field}", refused))
    if len(violations) == 1 and violations[0].field == "member.member_number":
        raise MemberNumberInvalid(violations=violations)
    if violations:
        raise MemberFieldInvalid(violations=violations)
    if len(values.get("attributes", "").encode()) > ATTRIBUTES_BYTES_MAX:
        raise AttributesTooLarge(
            violations=[FieldViolation("member.attributes", "larger than 16 KiB together")]
        )
    return values


def _check_whole(values: Mapping[str, Any]) -> None:
    try:
        rules.dates_in_order(values["effective_from"], values["effective_to"])
    except FieldRefused as refused:
        raise MemberDatesInverted(violations=[_violation("member.effective_to", refused)]) from None


def _violation(field: str, refused: FieldRefused) -> FieldViolation:
    return FieldViolation(field, MESSAGES[refused.code], refused.code)


def _differing(before: Mapping[str, Any] | Record, after: Mapping[str, Any] | Record) -> list[str]:
    return [field for field in FIELDS if not _same(field, before[field], after[field])]


def _same(field: str, one: Any, other: Any) -> bool:
    return bool(json.loads(one) == json.loads(other) if field == "attributes" else one == other)


def _version(row: Record, before: Record | None, who: Caller) -> pb.MemberVersion:
    provenance = present.provenance(row)
    superseded_at = row.get("superseded_at")
    return pb.MemberVersion(
        version=row["version"],
        member=present.member(row, who.role, provenance),
        changed_fields=_changed_fields(row, before),
        cause=provenance.cause,
        provenance=provenance,
        start_time=present.timestamp(row["updated_at"]),
        end_time=present.timestamp(superseded_at) if superseded_at is not None else None,
    )


def _changed_fields(row: Record, before: Record | None) -> list[str]:
    if before is None:
        return []
    changed = _differing(before, row)
    if (row["deleted_at"] is None) != (before["deleted_at"] is None):
        changed.append("delete_time")
    return changed
