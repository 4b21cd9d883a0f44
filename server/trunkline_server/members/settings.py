"""An organisation's member rules, from the message it stores to what the pure rules take."""

from dataclasses import dataclass
from datetime import date

from trunkline.api.identity.v1 import identity_service_pb2 as identity
from trunkline_server.members.guard import GuardLimits
from trunkline_server.members.rules import (
    CheckDigit,
    NumberCase,
    NumberRules,
    OrgRules,
    SecondFactor,
)
from trunkline_server.orgs import OrgSettings

RULES_MAX = 10_000


@dataclass(frozen=True, slots=True)
class MemberSettings:
    version: int
    rules: OrgRules
    guard: GuardLimits
    articles: dict[int, list[str]]  # by validation reason


def read(message: identity.MemberRules, version: int) -> MemberSettings:
    return MemberSettings(
        version=version,
        rules=OrgRules(
            number=NumberRules(
                pattern=message.number_pattern,
                check_digit=_check_digit(message.check_digit),
                case=_case(message.number_case),
                ignored=message.ignored_separators,
            ),
            phone_region=message.default_phone_region,
            plans={
                plan.plan: date.fromisoformat(plan.lapse_date) if plan.lapse_date else None
                for plan in message.plans
            },
            required_factors=frozenset(
                SecondFactor(identity.SecondFactor.Name(factor).removeprefix("SECOND_FACTOR_"))
                for factor in message.required_second_factors
            ),
        ),
        guard=_guard(message.enumeration_guard),
        articles={entry.reason: list(entry.article_ids) for entry in message.reason_articles},
    )


def _check_digit(value: identity.CheckDigit.ValueType) -> CheckDigit:
    if value == identity.CHECK_DIGIT_UNSPECIFIED:
        return CheckDigit.NONE
    return CheckDigit(identity.CheckDigit.Name(value).removeprefix("CHECK_DIGIT_"))


def _case(value: identity.NumberCase.ValueType) -> NumberCase:
    if value == identity.NUMBER_CASE_UNSPECIFIED:
        return NumberCase.KEEP
    return NumberCase(identity.NumberCase.Name(value).removeprefix("NUMBER_CASE_"))


def _guard(message: identity.EnumerationGuard) -> GuardLimits:
    default = GuardLimits()
    return GuardLimits(
        enabled=not message.disabled,
        min_lookups=message.min_lookups or default.min_lookups,
        warn_miss_percent=message.warn_miss_percent or default.warn_miss_percent,
        slow_miss_percent=message.slow_miss_percent or default.slow_miss_percent,
        stop_miss_percent=message.stop_miss_percent or default.stop_miss_percent,
        stop_sequential=message.stop_sequential or default.stop_sequential,
        window_s=message.window.ToTimedelta().total_seconds() or default.window_s,
    )


def check_member_rules(message: identity.MemberRules) -> None:
    """Raises ValueError with a sentence on what is not usable, before it is stored."""
    read(message, 0)


class SettingsReader:
    """Reads each version of an organisation's rules once."""

    def __init__(self) -> None:
        self._read: dict[str, MemberSettings] = {}

    def of(self, org_key: str, settings: OrgSettings) -> MemberSettings:
        found = self._read.get(org_key)
        if found is None or found.version != settings.version:
            if len(self._read) >= RULES_MAX:
                self._read.clear()
            found = self._read[org_key] = read(settings.member_rules, settings.version)
        return found

    def held(self, org_key: str) -> MemberSettings | None:
        return self._read.get(org_key)
