"""The fast path: from memory, else one read on a kept connection.

An answer is prepared once for each member, role and day, as the bytes that go on the wire: a warm
validation is a few dictionary look-ups (docs/adr/0011).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from uuid import UUID

from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.cache import MISS, Cache
from trunkline_server.db import Database, Record
from trunkline_server.link import Link
from trunkline_server.members import decision, present, queries, rules, wire
from trunkline_server.members.decision import (
    Decision,
    Finding,
    MemberFacts,
    Reason,
    SecondFactors,
    Verdict,
)
from trunkline_server.members.errors import AsOfOutOfRange
from trunkline_server.members.rules import FieldRefused, Status
from trunkline_server.members.settings import MemberSettings, SettingsReader
from trunkline_server.orgs import TOPIC_ORG, Orgs, OrgSettings
from trunkline_server.rpc.caller import Caller, Role

TOPIC_MEMBER = "member"  # payload: organisation, space, number
TOPIC_MEMBERS = "members"  # payload: organisation; all its members
ENTRIES_MAX = 200_000
TTL_S = 30.0
NEGATIVE_TTL_S = 2.0
# With the link down nothing granted is older than this.
SHORT_TTL_S = 1.0
AS_OF_YEARS_AHEAD_MAX = 5

_UNDISCLOSED = frozenset(
    {
        Reason.DATE_OF_BIRTH_MISMATCH,
        Reason.FAMILY_NAME_MISMATCH,
        Reason.SECOND_FACTOR_MISSING,
        Reason.SECOND_FACTOR_NOT_ON_FILE,
        Reason.HISTORY_NOT_KEPT,
    }
)
_DECISIONS: Mapping[Decision, pb.Decision.ValueType] = {
    name: pb.Decision.Value(f"DECISION_{name}") for name in Decision
}
_NOT_KEPT = Verdict(Decision.NEEDS_CHECK, (Finding(Reason.HISTORY_NOT_KEPT),))

# What a validation is counted under: decision, reasons, day.
Tally = tuple[str, str, date]


class Answer:
    """A validation as it is sent, and as it is counted."""

    __slots__ = ("item", "member_id", "reply", "response", "result", "tally")

    def __init__(self, validation: bytes, member_id: UUID | None, tally: Tally) -> None:
        self.response = wire.validate_response(validation)
        self.reply = wire.Prepared(self.response)
        self.result = wire.framed_validation(validation)
        self.item = wire.member_answer("", self.result)
        self.member_id = member_id
        self.tally = tally

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
_NOTHING_GIVEN = SecondFactors()
_Held = tuple[Answer, float]


@dataclass(slots=True)
class Known:
    """A number as it was read: the member, or that there is none."""

    row: Record | None
    facts: MemberFacts | None
    read_at: datetime
    # By role: today's answer to the plain question, and when today ends.
    held: list[_Held | None] = field(default_factory=lambda: [None] * (max(Role) + 1))


class Validator:
    """Answers questions for one process."""

    def __init__(self, db: Database, orgs: Orgs, link: Link | None) -> None:
        self._db = db
        self._orgs = orgs
        self._settings = SettingsReader()
        self._days: dict[str, tuple[int, date, float]] = {}
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
            link.subscribe(TOPIC_ORG, self._bulk_changed)
            link.on_loss(self.cache.distrust)
            link.on_recovery(self.cache.restore)
        else:
            self.cache.distrust()

    async def settings(self, who: Caller) -> tuple[OrgSettings, MemberSettings]:
        org = self._orgs.cached(who.org_key) or await self._orgs.get(who.org_id)
        return org, self._settings.of(who.org_key, org)

    def known_settings(self, org_key: str) -> MemberSettings | None:
        """Of an organisation that this process has answered for."""
        return self._settings.held(org_key)

    def warm(self, who: Caller, number: str, now_s: float) -> Answer | None:
        """The answer to a plain question, when it is at hand without waiting for anything.

        Keys are numbers as they are stored, so another spelling of one is not found here.
        """
        known = self.cache.get((who.org_key, number))
        if known is None or known is MISS:
            return None
        held = known.held[who.role]  # type: ignore[union-attr]
        return held[0] if held is not None and now_s < held[1] else None

    async def answer(
        self,
        who: Caller,
        raw_number: str,
        question: Question,
        now_s: float,
        read: Mapping[str, Known] | None = None,
    ) -> Answer:
        """`read`: what `read_fresh` brought."""
        org, settings = await self.settings(who)
        today, day_ends_s = self._today(who.org_key, org, now_s)
        as_of = question.as_of or today
        if as_of.year > today.year + AS_OF_YEARS_AHEAD_MAX:
            raise AsOfOutOfRange
        try:
            number = rules.member_number(raw_number, settings.rules.number)
        except FieldRefused as refused:
            verdict = decision.number_refused(refused.code)
            return _told(who.role, None, verdict, as_of, _moment(now_s), settings)
        if as_of < today:
            return await self._past(org, settings, who.role, number, question, as_of, now_s)
        if question.fresh:
            if read is None:
                read = await self.read_fresh(who, (raw_number,))
            known = read.get(number) or Known(None, None, _moment(now_s))
        else:
            found = await self.cache.get_or_load(
                who.org_id, (who.org_key, number), lambda: self._load(who.org_id, number)
            )
            known = found or Known(None, None, _moment(now_s))
        if question.given is None and as_of == today:
            return _todays(known, who.role, as_of, settings, day_ends_s)
        return _judged(known, who.role, question, as_of, settings)

    async def preload(self, who: Caller, raw_numbers: Sequence[str]) -> None:
        """One read for all numbers of a batch that are not at hand."""
        wanted = [
            key
            for number in await self._numbers(who, raw_numbers)
            if self.cache.get(key := (who.org_key, number)) is MISS
        ]
        if wanted:
            await self.cache.load_many(
                who.org_id, wanted, lambda keys: self._load_many(who.org_id, keys)
            )

    async def read_fresh(self, who: Caller, raw_numbers: Sequence[str]) -> dict[str, Known]:
        """One read for all, past every cache, from the primary."""
        numbers = await self._numbers(who, raw_numbers)
        now = datetime.now(UTC)
        async with self._db.tenant_tx(who.org_id) as tx:
            rows = await queries.by_numbers(tx, who.org_id, numbers)
        return {row["member_number"]: _known(row, now) for row in rows}

    async def _numbers(self, who: Caller, raw_numbers: Sequence[str]) -> list[str]:
        """The usable ones, as they are stored, each once."""
        _, settings = await self.settings(who)
        numbers: dict[str, None] = {}
        for raw in raw_numbers:
            with contextlib.suppress(FieldRefused):
                numbers[rules.member_number(raw, settings.rules.number)] = None
        return list(numbers)

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

    async def _past(
        self,
        org: OrgSettings,
        settings: MemberSettings,
        role: Role,
        number: str,
        question: Question,
        day: date,
        now_s: float,
    ) -> Answer:
        """By what the organisation's records said when that day ended."""
        moment = datetime.combine(day + timedelta(days=1), time.min, org.zone)
        if moment < _moment(now_s) - timedelta(days=org.retention.member_history_days):
            return _told(role, None, _NOT_KEPT, day, _moment(now_s), settings)
        async with self._db.tenant_tx(org.org_id) as tx:
            row = await queries.number_at(tx, org.org_id, number, moment)
        known = _known(row, _moment(now_s))
        return _judged(known, role, question, day, settings)

    def _today(self, org_key: str, org: OrgSettings, now_s: float) -> tuple[date, float]:
        held = self._days.get(org_key)
        if held is None or held[0] != org.version or now_s >= held[2]:
            today = org.today(_moment(now_s))
            ends = datetime.combine(today + timedelta(days=1), time.min, org.zone)
            held = self._days[org_key] = (org.version, today, ends.timestamp())
        return held[1], held[2]

    def _changed(self, payload: str) -> None:
        org_key, _, number = payload.partition(" ")
        self.cache.invalidate((org_key, number))

    def _bulk_changed(self, payload: str) -> None:
        self.cache.bump(UUID(payload))


def _moment(now_s: float) -> datetime:
    return datetime.fromtimestamp(now_s, UTC)


def _known(row: Record | None, read_at: datetime) -> Known:
    if row is None:
        return Known(None, None, read_at)
    facts = MemberFacts(
        _STATUSES[row["status"]],
        row["plan"],
        row["effective_from"],
        row["effective_to"],
        row["date_of_birth"],
        row["family_name"],
        row["deleted_at"] is not None,
    )
    return Known(row, facts, read_at)


_STATUSES: Mapping[str, Status] = {status.value: status for status in Status}


def _todays(
    known: Known, role: Role, today: date, settings: MemberSettings, day_ends_s: float
) -> Answer:
    held = known.held[role]
    if held is not None and held[1] == day_ends_s:
        return held[0]
    answer = _judged(known, role, PLAIN, today, settings)
    known.held[role] = (answer, day_ends_s)
    return answer


def _judged(
    known: Known, role: Role, question: Question, as_of: date, settings: MemberSettings
) -> Answer:
    given = question.given or _NOTHING_GIVEN
    verdict = decision.decide(known.facts, as_of, settings.rules, given)
    return _told(role, known, verdict, as_of, known.read_at, settings)


def _told(
    role: Role,
    known: Known | None,
    verdict: Verdict,
    as_of: date,
    checked_at: datetime,
    settings: MemberSettings,
) -> Answer:
    row = known.row if known is not None else None
    findings = verdict.findings
    content: dict[str, object] = {
        "decision": _DECISIONS[verdict.decision],
        "as_of": as_of.isoformat(),
        "checked_at": present.timestamp(checked_at),
    }
    if findings:
        content["reasons"] = present.reasons(findings, settings.articles)
    disclosed = not any(finding.reason in _UNDISCLOSED for finding in findings)
    if row is not None and disclosed:
        provenance = present.provenance(row)
        content["plan"] = row["plan"]
        content["effective_from"] = present.day(row["effective_from"])
        content["effective_to"] = present.day(row["effective_to"])
        content["member"] = present.member(row, role, provenance)
        content["provenance"] = provenance
    return Answer(
        pb.Validation(**content).SerializeToString(),  # type: ignore[arg-type]
        row["member_id"] if row is not None else None,
        (verdict.decision, ",".join(finding.reason for finding in findings), as_of),
    )
