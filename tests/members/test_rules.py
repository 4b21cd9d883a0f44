"""Fields, numbers, patterns, decisions, masking and history: pure, so mostly properties."""

from __future__ import annotations

import re
import time
import unicodedata
from datetime import UTC, date, datetime, timedelta

import phonenumbers
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from stdnum import luhn

from trunkline.api.imports.v1 import reject_code_pb2
from trunkline.api.members.v1 import validation_reason_pb2
from trunkline_server.members import decision, rules
from trunkline_server.members.decision import (
    ADVICE,
    SIGHT,
    BeforeImage,
    Decision,
    HistoryNotKept,
    MemberFacts,
    Reason,
    SecondFactors,
    Sight,
    as_of,
    decide,
    masked,
    number_refused,
)
from trunkline_server.members.pattern import ALPHABET, PatternRefused, compile_pattern
from trunkline_server.members.rules import (
    CheckDigit,
    Code,
    FieldRefused,
    NumberCase,
    NumberRules,
    OrgRules,
    SecondFactor,
    Status,
)

PLAIN = NumberRules()
UPPER = NumberRules(case=NumberCase.UPPER, ignored=" -")


def code_of(rule: object, *given_values: object) -> Code:
    with pytest.raises(FieldRefused) as refused:
        rule(*given_values)  # type: ignore[operator]
    return refused.value.code


# ---- Numbers ----


@settings(max_examples=500)
@given(st.text(max_size=20), st.sampled_from([PLAIN, UPPER]))
def test_a_stored_number_is_its_own_spelling(raw: str, org: NumberRules) -> None:
    try:
        stored = rules.member_number(raw, org)
    except FieldRefused:
        return
    assert rules.member_number(stored, org) == stored
    for form in ("NFC", "NFD"):
        assert rules.member_number(unicodedata.normalize(form, raw), org) == stored


@settings(max_examples=500)
@given(st.text(max_size=20))
def test_digits_keep_their_value(raw: str) -> None:
    try:
        stored = rules.member_number(raw, PLAIN)
    except FieldRefused:
        return
    meant = [unicodedata.digit(char) for char in raw if char.isdigit()]
    assert [int(char) for char in stored if char.isdigit()] == meant
    # What NFKC makes of a superscript is a digit of another number.
    assert not any(unicodedata.decomposition(char).startswith("<super>") for char in raw)


def test_numbers_keep_leading_zeros_and_lose_only_what_the_organisation_ignores() -> None:
    assert rules.member_number("  0012 ", PLAIN) == "0012"
    assert rules.member_number("ab 00-12", UPPER) == "AB0012"
    assert rules.member_number("ab-1", PLAIN) == "ab-1"
    assert rules.member_number("ＡＢ１２", PLAIN) == "AB12"
    assert rules.member_number("AB1", NumberRules(case=NumberCase.LOWER)) == "ab1"
    assert rules.member_number("e\u0301 1", UPPER) == "É1"


@pytest.mark.parametrize(
    "raw",
    ["А1", "1\u200b", "1\u00ad", "\u202e1", "1\u0000", "1\n2", "1²", "①", "٣", "ß1\u0301", "ı1",
     "\u212a\u0302", "1‐2", "K\u0336", "1\ufeff", "Ⅷ", "ａ\u0300\u0300", "\U0001d7d9", "1\u20e3"],
)  # fmt: skip
def test_look_alikes_and_invisible_characters_are_refused(raw: str) -> None:
    assert code_of(rules.member_number, raw, PLAIN) is Code.NUMBER_CHARACTERS


def test_other_number_refusals() -> None:
    assert code_of(rules.member_number, "  ", PLAIN) is Code.NUMBER_MISSING
    assert code_of(rules.member_number, "1" * 65, PLAIN) is Code.NUMBER_TOO_LONG
    assert code_of(rules.member_number, "1" * 10_000, PLAIN) is Code.NUMBER_TOO_LONG
    assert code_of(rules.member_number, "-1", PLAIN) is Code.NUMBER_FORMAT
    org = NumberRules(r"M\d{6}", CheckDigit.LUHN)
    assert rules.member_number("M100008", org) == "M100008"
    assert code_of(rules.member_number, "M100007", org) is Code.CHECK_DIGIT
    assert code_of(rules.member_number, "M1", org) is Code.NUMBER_FORMAT


@given(st.text("0123456789", min_size=2, max_size=30))
def test_luhn_agrees_with_stdnum(number: str) -> None:
    assert rules.luhn_holds(number.encode()) == luhn.is_valid(number)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (CheckDigit.VERHOEFF, "M-2363", "M-2364"),
        (CheckDigit.ISO_7064_MOD_11_10, "794623", "794632"),
        (CheckDigit.ISO_7064_MOD_11_2, "M-07940", "M-07941"),
        (CheckDigit.ISO_7064_MOD_11_2, "079X", "0791"),
        (CheckDigit.ISO_7064_MOD_37_36, "A12425GABC1234002M", "A12425GABC1234002N"),
        (CheckDigit.ISO_7064_MOD_37_2, "G123489654321Y", "G123489654321X"),
        (CheckDigit.ISO_7064_MOD_97_10, "99991234567890121414-90", "99991234567890121414-09"),
    ],
)
def test_check_digits(check: CheckDigit, good: str, bad: str) -> None:
    assert rules.check_digit_holds(good, check)
    assert not rules.check_digit_holds(bad, check)


# ---- Patterns an organisation sets ----

_classes = st.sampled_from([r"\d", "[A-Z]", "[A-Z0-9]", "A", r"\-", "[a-c._]", "7", "/"])
_repeats = st.sampled_from(["", "?", "{2}", "{1,3}", "{0,2}", "+", "*"])
_steps = st.tuples(_classes, _repeats).map("".join)
_patterns = st.lists(
    st.lists(_steps, min_size=1, max_size=4).map("".join), min_size=1, max_size=3
).map("|".join)


@settings(max_examples=500)
@given(_patterns, st.text("AB019-._ac/", max_size=8))
def test_an_accepted_pattern_means_what_it_says(pattern: str, number: str) -> None:
    try:
        compiled = compile_pattern(pattern)
    except PatternRefused:
        assume(False)
        raise
    assert bool(re.fullmatch(compiled, number)) == bool(re.fullmatch(f"(?:{pattern})", number))


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+", r"(\d|\d\d)*", ".*", r"\d+\d+", r"\d*-?\d*", r"\w+", r"[^A]", r"\d{1,99}", "a||b",
     "[z-a]", "[A-9]", "[", "]", "a{", "é", r"\1", "(?=a)", r"\d{40}[A-Z]{40}",
     "|".join("123456789"), "a" * 257, "?", "*", r"\d{0}", "a^", "$a", r"[\w]", '"', ","],
)  # fmt: skip
def test_a_pattern_outside_the_subset_is_refused(pattern: str) -> None:
    with pytest.raises(PatternRefused):
        NumberRules(pattern)


def test_patterns_know_case_and_separators() -> None:
    org = NumberRules("^[a-z]{2}[0-9 -]{2,4}$".replace(" ", ""), case=NumberCase.UPPER, ignored="-")
    assert rules.member_number("ab-12", org) == "AB12"
    with pytest.raises(PatternRefused):
        NumberRules(r"M-\d+", ignored="-")


def test_matching_is_linear_whatever_the_pattern() -> None:
    compiled = re.compile(compile_pattern(r"[A-Z]{0,20}[a-z]{0,20}\d{0,20}[_]?|[A-Z]*|\d*"))

    def seconds(size: int) -> float:
        start = time.process_time()
        for _ in range(300):
            compiled.fullmatch("A" * size + "!")
        return time.process_time() - start

    assert seconds(8_000) <= 8 * seconds(2_000) + 0.01


# ---- Other fields ----


@settings(max_examples=500)
@given(st.text(max_size=30))
def test_text_is_stored_once_and_for_all(raw: str) -> None:
    try:
        stored = rules.name(raw)
    except FieldRefused as refused:
        assert refused.code is Code.VALUE_CHARACTERS
        return
    assert rules.name(stored) == stored
    assert rules.is_plain_text(stored.encode()) <= (stored == unicodedata.normalize("NFC", stored))


@settings(max_examples=500)
@given(st.text(max_size=6), st.text(max_size=6))
@example("\u1112", "\u1161\u11ab")
def test_plain_letters_do_not_change_beside_each_other(one: str, other: str) -> None:
    both = one + other
    if rules.is_plain_text(one.encode()) and rules.is_plain_text(other.encode()):
        assert rules.is_plain_text(both.encode())
        assert unicodedata.normalize("NFC", both) == both


@given(st.binary(max_size=12))
def test_plain_text_is_utf8(content: bytes) -> None:
    if rules.is_plain_text(content):
        content.decode()


@pytest.mark.parametrize(
    "raw", ["a\0b", "\u202ea", "a\u200b", "a\u00ad", "\ue000", "a\u0378", "\x1b[0m"]
)
def test_names_refuse_what_cannot_be_seen(raw: str) -> None:
    assert code_of(rules.name, raw) is Code.VALUE_CHARACTERS


def test_names_keep_what_people_are_called() -> None:
    for given_name in ("Jörg", "O'Brien", "علی\u200cرضا", "=1+1", "@home", "李", "Nguyễn Văn"):
        assert rules.name(given_name) == unicodedata.normalize("NFC", given_name)
    assert code_of(rules.name, "x" * 101) is Code.VALUE_TOO_LONG


def test_dates_agree_with_the_calendar() -> None:
    birth = re.compile(rules.canonical("date_of_birth", OrgRules()))
    effective = re.compile(rules.canonical("effective_to", OrgRules()))
    for year in (1899, 1900, 1904, 2000, 2023, 2024, 2099, 2100, 2400, 9999):
        for month in range(14):
            for day in range(33):
                written = f"{year:04}-{month:02}-{day:02}"
                is_real = _is_real(year, month, day)
                for years, pattern, rule in (
                    (rules.BIRTH_YEARS, birth, rules.date_of_birth),
                    (rules.EFFECTIVE_YEARS, effective, rules.effective_date),
                ):
                    wanted = is_real and year in years
                    assert (pattern.fullmatch(written.encode()) is not None) == wanted, written
                    if wanted:
                        assert rule(written) == date(year, month, day)
                    else:
                        assert code_of(rule, written) in (
                            Code.DATE_INVALID,
                            Code.BIRTH_DATE_IMPLAUSIBLE,
                        )


def _is_real(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def test_dates_must_be_in_order() -> None:
    rules.dates_in_order(date(2026, 1, 1), date(2026, 1, 1))
    rules.dates_in_order(None, date(2026, 1, 1))
    wrong = (rules.dates_in_order, date(2026, 1, 2), date(2026, 1, 1))
    assert code_of(*wrong) is Code.DATES_INVERTED


@pytest.mark.parametrize(
    ("raw", "stored"),
    [
        ("Ann.B+tag@Example.COM", "Ann.B+tag@example.com"),
        (" a@b.de ", "a@b.de"),
        ("", ""),
        ("a@sub.xn--bcher-kva.example", "a@sub.xn--bcher-kva.example"),
    ],
)
def test_email(raw: str, stored: str) -> None:
    assert rules.email(raw) == stored


@pytest.mark.parametrize(
    "raw", ["a", "@b.de", "a@", "a@b", "a b@c.de", "a..b@c.de", ".a@c.de", "a@-c.de", "a@c.de.",
            "a@b@c.de", "ä@c.de", "a@c.d3", "a\n@c.de", "x" * 65 + "@c.de"],
)  # fmt: skip
def test_email_refused(raw: str) -> None:
    assert code_of(rules.email, raw) is Code.EMAIL_INVALID


@pytest.mark.parametrize(
    ("raw", "region", "stored"),
    [
        ("+1 (212) 555-0123", "", "+12125550123"),
        ("+44 (0)20 7946 0000", "", "+442079460000"),
        ("030/123456", "DE", "+4930123456"),
        ("212 555 0123", "US", "+12125550123"),
        ("", "", ""),
    ],
)
def test_phone(raw: str, region: str, stored: str) -> None:
    assert rules.phone(raw, region) == stored


@pytest.mark.parametrize(
    "raw", ["030123456", "12", "+", "+999123456", "+1212555", "tel:1", "1" * 39, "+१२१२५५५०१२३"]
)
def test_phone_refused(raw: str) -> None:
    assert code_of(rules.phone, raw, "") is Code.PHONE_INVALID


def test_every_example_number_of_the_library_is_accepted() -> None:
    for region in phonenumbers.SUPPORTED_REGIONS:
        example_number = phonenumbers.example_number(region)
        assert example_number is not None
        raw = phonenumbers.format_number(example_number, phonenumbers.PhoneNumberFormat.E164)
        assert rules.phone(raw, "") == raw


def test_plan_status_attributes() -> None:
    org = OrgRules(plans={"Gold": None})
    assert rules.plan(" gOLD", org) == "Gold"
    assert rules.plan("anything", OrgRules()) == "anything"
    assert code_of(rules.plan, "tin", org) is Code.PLAN_UNKNOWN
    assert rules.status(" active ") is Status.ACTIVE
    assert rules.status("") is None
    assert code_of(rules.status, "gone") is Code.STATUS_UNKNOWN
    assert rules.attributes({"a_1": " x"}) == {"a_1": "x"}
    for wrong in ({"A": ""}, {"1": ""}, {f"k{n}": "" for n in range(33)}):
        assert code_of(rules.attributes, wrong) is Code.ATTRIBUTES_INVALID


def test_every_code_has_a_message_and_is_public() -> None:
    names = reject_code_pb2.RejectCode.DESCRIPTOR.values_by_name
    public = {name.removeprefix("REJECT_CODE_") for name in names}
    assert set(rules.MESSAGES) == set(Code)
    assert {code.value for code in Code} <= public


def test_canonical_number_characters_never_meet_a_delimiter() -> None:
    assert not ALPHABET & set(",;\t|\"'\r\n ")


# ---- Decisions ----

TODAY = date(2026, 6, 15)
NOTHING = SecondFactors()
ORG = OrgRules(plans={"GOLD": None, "OLD": date(2026, 1, 31)})


def told(
    member: MemberFacts | None, given_factors: SecondFactors = NOTHING, org: OrgRules = ORG
) -> tuple[Decision, list[Reason]]:
    verdict = decide(member, TODAY, org, given_factors)
    return verdict.decision, [finding.reason for finding in verdict.findings]


def test_decisions() -> None:
    no, check = Decision.NOT_ELIGIBLE, Decision.NEEDS_CHECK
    active = Status.ACTIVE
    assert told(MemberFacts(active, "GOLD")) == (Decision.ELIGIBLE, [])
    assert told(None) == (Decision.NOT_FOUND, [Reason.NOT_FOUND])
    for status in (Status.PENDING, Status.SUSPENDED, Status.TERMINATED):
        assert told(MemberFacts(status)) == (no, [Reason[status.value]])
    assert told(MemberFacts(active, effective_from=date(2026, 6, 16))) == (
        no,
        [Reason.NOT_YET_EFFECTIVE],
    )
    assert (
        told(MemberFacts(active, effective_from=TODAY, effective_to=TODAY))[0] is Decision.ELIGIBLE
    )
    assert told(MemberFacts(active, effective_to=date(2026, 6, 14))) == (no, [Reason.EXPIRED])
    assert told(MemberFacts(active, "OLD")) == (no, [Reason.PLAN_LAPSED])
    assert told(MemberFacts(active, "TIN")) == (check, [Reason.PLAN_UNKNOWN])
    assert told(MemberFacts(Status.TERMINATED, "TIN")) == (
        no,
        [Reason.TERMINATED, Reason.PLAN_UNKNOWN],
    )
    assert told(MemberFacts(active, is_deleted=True)) == (no, [Reason.DELETED])


def test_second_factors() -> None:
    check = Decision.NEEDS_CHECK
    born = date(1980, 2, 29)
    ann = MemberFacts(Status.TERMINATED, date_of_birth=born, family_name="Müller-Lüdenscheidt")
    wrong = SecondFactors(date(1980, 2, 28), "Meier")
    # Whoever is not proved learns nothing else, not even that the membership ended.
    assert told(ann, wrong) == (check, [Reason.DATE_OF_BIRTH_MISMATCH, Reason.FAMILY_NAME_MISMATCH])
    right = SecondFactors(born, " muller ludenscheidt")
    assert told(ann, right) == (Decision.NOT_ELIGIBLE, [Reason.TERMINATED])
    blank = MemberFacts(Status.ACTIVE)
    assert told(blank, wrong) == (check, [Reason.SECOND_FACTOR_NOT_ON_FILE])
    asks = OrgRules(required_factors=frozenset(SecondFactor))
    assert told(ann, SecondFactors(), asks) == (check, [Reason.SECOND_FACTOR_MISSING])
    assert told(ann, right, asks)[0] is Decision.NOT_ELIGIBLE


def test_refused_numbers_are_explained_without_a_look_up() -> None:
    for code, reason in (
        (Code.CHECK_DIGIT, Reason.CHECK_DIGIT),
        (Code.NUMBER_CHARACTERS, Reason.NUMBER_CHARACTERS),
        (Code.NUMBER_FORMAT, Reason.NUMBER_FORMAT),
        (Code.NUMBER_TOO_LONG, Reason.NUMBER_FORMAT),
    ):
        verdict = number_refused(code)
        assert verdict.decision is Decision.NOT_FOUND
        assert [finding.reason for finding in verdict.findings] == [reason]


def test_every_reason_has_advice_and_is_public() -> None:
    public = validation_reason_pb2.ValidationReason.keys()
    assert set(ADVICE) == set(Reason)
    assert {f"VALIDATION_REASON_{reason}" for reason in Reason} == set(public[1:])
    verdict = decide(MemberFacts(Status.ACTIVE, effective_to=date(2026, 1, 2)), TODAY, ORG)
    assert verdict.findings[0].sentence == "The membership ended on 2026-01-02."
    assert verdict.findings[0].next_step.endswith(".")


# ---- Masking ----


def test_what_an_agent_sees() -> None:
    seen = {
        field: masked(field, value, "AGENT")
        for field, value in (
            ("member_number", "M-1"), ("given_name", "Ann"), ("family_name", "Smith"),
            ("email", "ann@example.com"), ("phone", "+12125550123"),
            ("date_of_birth", "1980-02-29"), ("plan", "GOLD"), ("attributes", "x"),
        )
    }  # fmt: skip
    assert seen == {
        "member_number": "M-1", "given_name": "Ann", "family_name": "S.",
        "email": "a***@example.com", "phone": "********123",
        "date_of_birth": "", "plan": "GOLD", "attributes": "",
    }  # fmt: skip


def test_whatever_the_table_does_not_name_is_hidden() -> None:
    assert masked("email", "a@b.de", "TRAINER") == ""
    assert masked("new_field", "x", "ADMIN") == ""
    assert masked("phone", "", "AGENT") == ""
    for field, roles in SIGHT.items():
        assert roles["ADMIN"] is roles["SYSTEM"] is Sight.FULL
        for role, sight in roles.items():
            assert (masked(field, "+12125550123", role) == "+12125550123") == (sight is Sight.FULL)


# ---- As of ----

START = datetime(2026, 1, 1, tzinfo=UTC)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.one_of(st.none(), st.integers())), max_size=8),
    st.integers(-2, 30),
    st.randoms(use_true_random=False),
)
def test_as_of_agrees_with_replaying_the_changes(
    changes: list[tuple[int, int | None]], day: int, random: object
) -> None:
    moment = START + timedelta(days=day)
    value: int | None = -1
    at, history, timeline = START, [], [(START, value)]
    for version, (pause, new) in enumerate(changes, 1):
        at += timedelta(days=pause)
        history.append(BeforeImage(at, version, value))
        value = new
        timeline.append((at, value))
    random.shuffle(history)  # type: ignore[attr-defined]
    wanted = None
    for since, was in timeline:
        if since <= moment:
            wanted = was
    assert as_of(value, START, history, moment) == wanted


def test_as_of_before_the_history_that_is_kept() -> None:
    with pytest.raises(HistoryNotKept):
        as_of("now", START, [], START, kept_from=START + timedelta(days=1))
    assert as_of(None, None, [], START) is None
    assert decision.Reason.HISTORY_NOT_KEPT in ADVICE
