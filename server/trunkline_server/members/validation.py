"""The fast path: from memory, else one read on a kept connection; counted and audited aside.

An answer is prepared once for each member, role and day, as the bytes that go on the wire: a warm
validation is a few dictionary look-ups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from uuid import UUID

from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.cache import MISS, Cache
from trunkline_server.db import Database, Executor, Record
from trunkline_server.link import Link
from trunkline_server.members import decision, present, queries, rules
from trunkline_server.members.decision import (
    Decision,
    MemberFacts,
    Reason,
    SecondFactors,
    Verdict,
)
from trunkline_server.members.errors import AsOfOutOfRange
from trunkline_server.members.rules import FieldRefused, Status
from trunkline_server.members.settings import MemberSettings, SettingsReader
from trunkline_server.orgs import Orgs, OrgSettings
from trunkline_server.rpc.caller import Caller, Role

TOPIC_MEMBER = "member"  # payload: organisation, space, number
TOPIC_MEMBERS = "members"  # payload: organisation; all its members
ENTRIES_MAX = 200_000
TTL_S = 30.0
NEGATIVE_TTL_S = 2.0
# With the link down nothing granted is older than this.
SHORT_TTL_S = 1.0
ANSWERS_PER_MEMBER_MAX = 8
AS_OF_YEARS_AHEAD_MAX = 5

_UNDISCLOSED = frozenset(
    {
        Reason.DATE_OF_BIRTH_MISMATCH,
        Reason.FAMILY_NAME_MISMATCH,
        Reason.SECOND_FACTOR_MISSING,
        Reason.SECOND_FACTOR_NOT_ON_FILE,
    }
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A validation as it is sent, and as it is counted."""

    validation: bytes
    response: bytes  # the same as ValidateMemberResponse
    decision: str
    reasons: str
    member_id: UUID | None
    as_of: date

    @property
    def is_miss(self) -> bool:
        return self.member_id is None


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked beside the number. All empty: the question of nearly every call."""

    given: SecondFactors | None = None
    as_of: date | None = None
    fresh: bool = False


PLAIN = Question()


@dataclass(slots=True)
class Known:
    """A number as it was read: the member, or that there is none, and the answers made of it."""

    row: Record | None
    facts: MemberFacts | None
    read_at: datetime
    answers: dict[tuple[int, date], Answer] = field(default_factory=dict)


class Validator:
    """Answers questions for one process."""

    def __init__(self, db: Database, orgs: Orgs, link: Link | None) -> None:
        self._db = db
        self._orgs = orgs
        self._settings = SettingsReader()
        self.cache: Cache[tuple[str, str], Known] = Cache(
            "members",
            entries_max=ENTRIES_MAX,
            ttl_s=TTL_S,
            negative_ttl_s=NEGATIVE_TTL_S,
            short_ttl_s=SHORT_TTL_S,
        )
        if link is not None:
            link.subscribe(TOPIC_MEMBER, self._changed)
            link.subscribe(TOPIC_MEMBERS, self._bulk_changed)
            link.subscribe("org", self._bulk_changed)
            link.on_loss(self.cache.distrust)
            link.on_recovery(self.cache.restore)
        else:
            self.cache.distrust()

    async def settings(self, who: Caller) -> tuple[OrgSettings, MemberSettings]:
        org = self._orgs.cached(who.org_key) or await self._orgs.get(who.org_id)
        return org, self._settings.of(who.org_key, org)

    def warm(self, who: Caller, number: str, now: datetime) -> Answer | None:
        """The answer to a plain question, when it is at hand without waiting for anything."""
        known = self.cache.get((who.org_key, number))
        if known is None or known is MISS:
            return None
        org = self._orgs.cached(who.org_key)
        if org is None:
            return None
        return known.answers.get((who.role, org.today(now)))  # type: ignore[union-attr]

    async def answer(
        self, who: Caller, raw_number: str, question: Question, now: datetime
    ) -> Answer:
        org, settings = await self.settings(who)
        today = org.today(now)
        as_of = question.as_of or today
        if as_of.year > today.year + AS_OF_YEARS_AHEAD_MAX:
            raise AsOfOutOfRange
        try:
            number = rules.member_number(raw_number, settings.rules.number)
        except FieldRefused as refused:
            verdict = decision.number_refused(refused.code)
            return self._told(who.role, None, verdict, as_of, now, settings)
        if question.fresh or as_of < today:
            known = await self._read_tenant(org, number, as_of if as_of < today else None, now)
        else:
            found = await self.cache.get_or_load(
                who.org_id, (who.org_key, number), lambda: self._load(who.org_id, number)
            )
            known = found or _known(None, now)
        return self._answer_from(known, who.role, question, as_of, settings)

    async def preload(self, who: Caller, numbers: Sequence[str]) -> None:
        """One read for all numbers of a batch that are not at hand."""
        _, settings = await self.settings(who)
        wanted = []
        for raw in numbers:
            try:
                number = rules.member_number(raw, settings.rules.number)
            except FieldRefused:
                continue
            if self.cache.get((who.org_key, number)) is MISS:
                wanted.append((who.org_key, number))
        if wanted:
            await self.cache.load_many(
                who.org_id, wanted, lambda keys: self._load_many(who.org_id, keys)
            )

    async def _load(self, org_id: UUID, number: str) -> Known | None:
        now = datetime.now(UTC)
        row = await queries.by_number(self._db.readers, org_id, number)
        return _known(row, now) if row is not None else None

    async def _load_many(
        self, org_id: UUID, keys: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], Known]:
        now = datetime.now(UTC)
        rows = await queries.by_numbers(self._db.readers, org_id, [number for _, number in keys])
        org_key = keys[0][0]
        return {(org_key, row["member_number"]): _known(row, now) for row in rows}

    async def _read_tenant(
        self, org: OrgSettings, number: str, past: date | None, now: datetime
    ) -> Known:
        """Past every cache, from the primary; as it was at the end of a day in the past."""
        async with self._db.tenant_tx(org.org_id) as tx:
            row = await queries.by_number(tx, org.org_id, number)
            if row is not None and past is not None:
                row = await _as_it_was(tx, org, row, past)
        return _known(row, now)

    def _answer_from(
        self, known: Known, role: Role, question: Question, as_of: date, settings: MemberSettings
    ) -> Answer:
        key = (int(role), as_of)
        plain = question.given is None
        if plain and (prepared := known.answers.get(key)) is not None:
            return prepared
        given = question.given or SecondFactors()
        verdict = decision.decide(known.facts, as_of, settings.rules, given)
        answer = self._told(role, known, verdict, as_of, known.read_at, settings)
        if plain and len(known.answers) < ANSWERS_PER_MEMBER_MAX:
            known.answers[key] = answer
        return answer

    def _told(
        self,
        role: Role,
        known: Known | None,
        verdict: Verdict,
        as_of: date,
        checked_at: datetime,
        settings: MemberSettings,
    ) -> Answer:
        message = pb.Validation(
            decision=pb.Decision.Value(f"DECISION_{verdict.decision}"),
            reasons=present.reasons(verdict.findings, settings.articles),
            as_of=as_of.isoformat(),
            checked_at=present.timestamp(checked_at),
        )
        row = known.row if known is not None else None
        disclosed = verdict.decision is not Decision.NOT_FOUND and not any(
            finding.reason in _UNDISCLOSED for finding in verdict.findings
        )
        if row is not None and disclosed:
            message.plan = row["plan"]
            message.effective_from = present.day(row["effective_from"])
            message.effective_to = present.day(row["effective_to"])
            message.member.CopyFrom(present.member(row, role))
            message.provenance.CopyFrom(message.member.provenance)
        content = message.SerializeToString()
        return Answer(
            validation=content,
            response=pb.ValidateMemberResponse(validation=message).SerializeToString(),
            decision=verdict.decision,
            reasons=",".join(finding.reason for finding in verdict.findings),
            member_id=row["member_id"] if row is not None else None,
            as_of=as_of,
        )

    def _changed(self, payload: str) -> None:
        org_key, _, number = payload.partition(" ")
        self.cache.invalidate((org_key, number))

    def _bulk_changed(self, payload: str) -> None:
        self.cache.bump(UUID(payload))


def _known(row: Record | None, read_at: datetime) -> Known:
    if row is None:
        return Known(None, None, read_at)
    facts = MemberFacts(
        status=Status(row["status"]),
        plan=row["plan"],
        effective_from=row["effective_from"],
        effective_to=row["effective_to"],
        date_of_birth=row["date_of_birth"],
        family_name=row["family_name"],
        is_deleted=row["deleted_at"] is not None,
    )
    return Known(row, facts, read_at)


async def _as_it_was(tx: Executor, org: OrgSettings, row: Record, day: date) -> Record:
    """The version that held when the day ended.

    A member registered later is judged by its first version: what is known now about a day before
    the registration is in its dates, not in a record of that day.
    """
    day_end = datetime.combine(day + timedelta(days=1), time.min, org.zone)
    earlier = await queries.version_at(tx, org.org_id, row["member_id"], day_end)
    return earlier or row
