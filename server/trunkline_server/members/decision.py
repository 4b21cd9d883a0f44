"""What an agent is told about a number: the decision, its reasons, and what to say next."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Generic, TypeVar

from trunkline_server.members.rules import Code, OrgRules, SecondFactor, Status, name_key


class Decision(enum.StrEnum):
    ELIGIBLE = "ELIGIBLE"
    NOT_ELIGIBLE = "NOT_ELIGIBLE"
    NOT_FOUND = "NOT_FOUND"
    NEEDS_CHECK = "NEEDS_CHECK"


class Reason(enum.StrEnum):
    NOT_FOUND = "NOT_FOUND"
    PENDING = "PENDING"
    SUSPENDED = "SUSPENDED"
    TERMINATED = "TERMINATED"
    NOT_YET_EFFECTIVE = "NOT_YET_EFFECTIVE"
    EXPIRED = "EXPIRED"
    DATE_OF_BIRTH_MISMATCH = "DATE_OF_BIRTH_MISMATCH"
    FAMILY_NAME_MISMATCH = "FAMILY_NAME_MISMATCH"
    SECOND_FACTOR_MISSING = "SECOND_FACTOR_MISSING"
    SECOND_FACTOR_NOT_ON_FILE = "SECOND_FACTOR_NOT_ON_FILE"
    NUMBER_FORMAT = "NUMBER_FORMAT"
    CHECK_DIGIT = "CHECK_DIGIT"
    NUMBER_CHARACTERS = "NUMBER_CHARACTERS"
    PLAN_LAPSED = "PLAN_LAPSED"
    PLAN_UNKNOWN = "PLAN_UNKNOWN"
    DELETED = "DELETED"
    HISTORY_NOT_KEPT = "HISTORY_NOT_KEPT"


@dataclass(frozen=True, slots=True)
class Advice:
    """A reason's decision, the sentence for the agent, and the next step. {day} may be filled."""

    decision: Decision
    sentence: str
    next_step: str


_NO, _CHECK, _UNKNOWN = Decision.NOT_ELIGIBLE, Decision.NEEDS_CHECK, Decision.NOT_FOUND

ADVICE: Mapping[Reason, Advice] = {
    Reason.NOT_FOUND: Advice(
        _UNKNOWN,
        "No member has this number.",
        "Ask the caller to read the number out again, digit by digit.",
    ),
    Reason.PENDING: Advice(
        _NO,
        "The membership is registered but not confirmed.",
        "Tell the caller that the registration is being processed.",
    ),
    Reason.SUSPENDED: Advice(
        _NO,
        "The membership is suspended.",
        "Pass the caller to the organisation's administration.",
    ),
    Reason.TERMINATED: Advice(
        _NO,
        "The membership was ended.",
        "Offer to register again.",
    ),
    Reason.NOT_YET_EFFECTIVE: Advice(
        _NO,
        "The membership begins on {day}.",
        "Tell the caller from which day it counts.",
    ),
    Reason.EXPIRED: Advice(
        _NO,
        "The membership ended on {day}.",
        "Tell the caller since when, and offer to renew.",
    ),
    Reason.DATE_OF_BIRTH_MISMATCH: Advice(
        _CHECK,
        "The date of birth differs from the member's.",
        "Ask for it once more; do not say what is on file.",
    ),
    Reason.FAMILY_NAME_MISMATCH: Advice(
        _CHECK,
        "The family name differs from the member's.",
        "Ask for the spelling; do not say what is on file.",
    ),
    Reason.SECOND_FACTOR_MISSING: Advice(
        _CHECK,
        "The organisation asks for a second proof that was not given.",
        "Ask the caller for it.",
    ),
    Reason.SECOND_FACTOR_NOT_ON_FILE: Advice(
        _CHECK,
        "A second proof was given, but none is on file to compare it with.",
        "Check who is calling in another way.",
    ),
    Reason.NUMBER_FORMAT: Advice(
        _UNKNOWN,
        "The number does not have the form of the organisation's numbers.",
        "Ask for the number again.",
    ),
    Reason.CHECK_DIGIT: Advice(
        _UNKNOWN,
        "The number's check digit is wrong, so a digit was misread or exchanged.",
        "Ask for the number again, digit by digit.",
    ),
    Reason.NUMBER_CHARACTERS: Advice(
        _UNKNOWN,
        "The number holds characters that only look right, or invisible ones.",
        "Type the number by hand.",
    ),
    Reason.PLAN_LAPSED: Advice(
        _NO,
        "The member's plan was honoured until {day}.",
        "Tell the caller since when, and offer another plan.",
    ),
    Reason.PLAN_UNKNOWN: Advice(
        _CHECK,
        "The member's plan is not one the organisation lists.",
        "Pass the caller to the organisation's administration.",
    ),
    Reason.DELETED: Advice(
        _NO,
        "The member's record is deleted and can still be restored.",
        "Pass the caller to the organisation's administration.",
    ),
    Reason.HISTORY_NOT_KEPT: Advice(
        _CHECK,
        "The day asked about lies before the history that is kept.",
        "Ask about a later day.",
    ),
}

_NUMBER_REASONS: Mapping[Code, Reason] = {
    Code.NUMBER_CHARACTERS: Reason.NUMBER_CHARACTERS,
    Code.CHECK_DIGIT: Reason.CHECK_DIGIT,
}


@dataclass(frozen=True, slots=True)
class MemberFacts:
    """What a decision depends on."""

    status: Status
    plan: str = ""
    effective_from: date | None = None
    effective_to: date | None = None
    date_of_birth: date | None = None
    family_name: str = ""
    is_deleted: bool = False


@dataclass(frozen=True, slots=True)
class SecondFactors:
    """What the caller said beside the number. None: not asked."""

    date_of_birth: date | None = None
    family_name: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A reason as it applies to this member, with the day it turns on where there is one."""

    reason: Reason
    day: date | None = None

    @property
    def sentence(self) -> str:
        return ADVICE[self.reason].sentence.format(day=self.day)

    @property
    def next_step(self) -> str:
        return ADVICE[self.reason].next_step


@dataclass(frozen=True, slots=True)
class Verdict:
    decision: Decision
    findings: tuple[Finding, ...] = ()


_ELIGIBLE = Verdict(Decision.ELIGIBLE)
_NO_FACTORS = SecondFactors()


def number_refused(code: Code) -> Verdict:
    """The verdict on a number that breaks its rules, given without looking it up."""
    return _verdict([Finding(_NUMBER_REASONS.get(code, Reason.NUMBER_FORMAT))])


def decide(
    member: MemberFacts | None,
    as_of: date,
    rules: OrgRules,
    given: SecondFactors = _NO_FACTORS,
) -> Verdict:
    """Judge a member on a day. Until the caller is proved, nothing else is disclosed."""
    if member is None:
        return _verdict([Finding(Reason.NOT_FOUND)])
    doubts = _doubts(member, given, rules)
    if doubts:
        return _verdict(doubts)
    findings = [*_standing(member), *_dates(member, as_of), *_plan(member, as_of, rules)]
    return _verdict(findings) if findings else _ELIGIBLE


def _verdict(findings: Sequence[Finding]) -> Verdict:
    decisions = {ADVICE[finding.reason].decision for finding in findings}
    for decision in (_UNKNOWN, _NO, _CHECK):
        if decision in decisions:
            return Verdict(decision, tuple(findings))
    raise ValueError("a verdict needs a finding")


def _doubts(member: MemberFacts, given: SecondFactors, rules: OrgRules) -> list[Finding]:
    doubts: list[Reason] = []
    if given.date_of_birth is not None:
        if member.date_of_birth is None:
            doubts.append(Reason.SECOND_FACTOR_NOT_ON_FILE)
        elif member.date_of_birth != given.date_of_birth:
            doubts.append(Reason.DATE_OF_BIRTH_MISMATCH)
    if given.family_name is not None:
        if not member.family_name:
            doubts.append(Reason.SECOND_FACTOR_NOT_ON_FILE)
        elif name_key(member.family_name) != name_key(given.family_name):
            doubts.append(Reason.FAMILY_NAME_MISMATCH)
    if any(_is_missing(factor, given) for factor in rules.required_factors):
        doubts.append(Reason.SECOND_FACTOR_MISSING)
    return [Finding(reason) for reason in dict.fromkeys(doubts)]


def _is_missing(factor: SecondFactor, given: SecondFactors) -> bool:
    match factor:
        case SecondFactor.DATE_OF_BIRTH:
            return given.date_of_birth is None
        case SecondFactor.FAMILY_NAME:
            return not given.family_name


def _standing(member: MemberFacts) -> list[Finding]:
    findings = [Finding(Reason.DELETED)] if member.is_deleted else []
    match member.status:
        case Status.ACTIVE:
            return findings
        case Status.PENDING:
            return [*findings, Finding(Reason.PENDING)]
        case Status.SUSPENDED:
            return [*findings, Finding(Reason.SUSPENDED)]
        case Status.TERMINATED:
            return [*findings, Finding(Reason.TERMINATED)]


def _dates(member: MemberFacts, as_of: date) -> list[Finding]:
    """Both border days count as covered."""
    findings = []
    if member.effective_from is not None and as_of < member.effective_from:
        findings.append(Finding(Reason.NOT_YET_EFFECTIVE, member.effective_from))
    if member.effective_to is not None and as_of > member.effective_to:
        findings.append(Finding(Reason.EXPIRED, member.effective_to))
    return findings


def _plan(member: MemberFacts, as_of: date, rules: OrgRules) -> list[Finding]:
    if not rules.plans or not member.plan:
        return []
    if member.plan not in rules.plans:
        return [Finding(Reason.PLAN_UNKNOWN)]
    last_day = rules.plans[member.plan]
    if last_day is not None and as_of > last_day:
        return [Finding(Reason.PLAN_LAPSED, last_day)]
    return []


# ---- Masking: what each role sees of a member ----


class Sight(enum.Enum):
    FULL = "full"
    PARTLY = "partly"
    HIDDEN = "hidden"


_FULL, _PARTLY, _HIDDEN = Sight.FULL, Sight.PARTLY, Sight.HIDDEN

# The second factors stay out of an agent's sight: else the agent could prompt the caller.
SIGHT: Mapping[str, Mapping[str, Sight]] = {
    #                   AGENT              REGISTRAR            ADMIN            SYSTEM
    "member_number": {"AGENT": _FULL, "REGISTRAR": _FULL, "ADMIN": _FULL, "SYSTEM": _FULL},
    "given_name": {"AGENT": _FULL, "REGISTRAR": _FULL, "ADMIN": _FULL, "SYSTEM": _FULL},
    "family_name": {"AGENT": _PARTLY, "REGISTRAR": _FULL, "ADMIN": _FULL, "SYSTEM": _FULL},
    "email": {"AGENT": _PARTLY, "REGISTRAR": _PARTLY, "ADMIN": _FULL, "SYSTEM": _FULL},
    "phone": {"AGENT": _PARTLY, "REGISTRAR": _PARTLY, "ADMIN": _FULL, "SYSTEM": _FULL},
    "date_of_birth": {"AGENT": _HIDDEN, "REGISTRAR": _HIDDEN, "ADMIN": _FULL, "SYSTEM": _FULL},
    "plan": {"AGENT": _FULL, "REGISTRAR": _FULL, "ADMIN": _FULL, "SYSTEM": _FULL},
    "status": {"AGENT": _FULL, "REGISTRAR": _FULL, "ADMIN": _FULL, "SYSTEM": _FULL},
    "effective_from": {"AGENT": _FULL, "REGISTRAR": _FULL, "ADMIN": _FULL, "SYSTEM": _FULL},
    "effective_to": {"AGENT": _FULL, "REGISTRAR": _FULL, "ADMIN": _FULL, "SYSTEM": _FULL},
    "attributes": {"AGENT": _HIDDEN, "REGISTRAR": _HIDDEN, "ADMIN": _FULL, "SYSTEM": _FULL},
    "provenance": {"AGENT": _FULL, "REGISTRAR": _FULL, "ADMIN": _FULL, "SYSTEM": _FULL},
}


def sight(field: str, role: str) -> Sight:
    """Return what the role sees of the field. Whatever the table does not name is hidden."""
    return SIGHT.get(field, {}).get(role, Sight.HIDDEN)


def masked(field: str, value: str, role: str) -> str:
    """Return the value as the role may see it."""
    match sight(field, role):
        case Sight.FULL:
            return value
        case Sight.PARTLY:
            return _PARTS[field](value) if value else ""
        case Sight.HIDDEN:
            return ""


def _initial(value: str) -> str:
    return value[0] + "."


def _masked_email(value: str) -> str:
    local, _, domain = value.rpartition("@")
    return f"{local[:1]}***@{domain}"


def _last_digits(value: str) -> str:
    return "*" * max(len(value) - 4, 4) + value[-3:]


_PARTS: Mapping[str, Callable[[str], str]] = {
    "family_name": _initial,
    "email": _masked_email,
    "phone": _last_digits,
}


# ---- As of: a member at a moment in the past, from before-images ----

Image = TypeVar("Image")


@dataclass(frozen=True, slots=True)
class BeforeImage(Generic[Image]):
    """What a member was until a change, and the version that it was. None: it did not exist."""

    changed_at: datetime
    version: int
    before: Image | None


class HistoryNotKept(ValueError):
    """The moment lies before the history that is kept."""


def as_of(
    current: Image | None,
    created_at: datetime | None,
    history: Sequence[BeforeImage[Image]],
    moment: datetime,
    kept_from: datetime | None = None,
) -> Image | None:
    """Return the member as it was: the earliest image replaced after the moment, or the current.

    A change counts from its own instant on. History may come in any order.
    """
    if kept_from is not None and moment < kept_from:
        raise HistoryNotKept
    if created_at is None or moment < created_at:
        return None
    replaced_later = [image for image in history if image.changed_at > moment]
    if not replaced_later:
        return current
    return min(replaced_later, key=lambda image: (image.changed_at, image.version)).before
