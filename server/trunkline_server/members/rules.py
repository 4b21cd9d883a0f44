"""The rules of a member's fields: what is stored for what was given, or why it is refused.

Each field has one rule in two forms that must agree. The function takes any text and returns what
is stored. The canonical pattern matches only text that the function would return unchanged, so
that an import can hand such bytes on as they are. Tests hold the two together.
"""

from __future__ import annotations

import enum
import functools
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

import phonenumbers
from phonenumbers import PhoneMetadata
from stdnum import verhoeff
from stdnum.exceptions import ValidationError
from stdnum.iso7064 import mod_11_2, mod_11_10, mod_37_2, mod_37_36, mod_97_10

from trunkline_server.members.pattern import (
    ALPHABET,
    DIGITS,
    LETTERS,
    NUMBER_CHARS_MAX,
    char_class,
    compile_pattern,
    fold_chars,
)

NAME_CHARS_MAX = 100
PLAN_CHARS_MAX = 64
EMAIL_CHARS_MAX = 254
EMAIL_LOCAL_CHARS_MAX = 64
PHONE_INPUT_CHARS_MAX = 40
ATTRIBUTES_MAX = 32
ATTRIBUTE_KEY_CHARS_MAX = 40
ATTRIBUTE_VALUE_CHARS_MAX = 500
NUMBER_INPUT_CHARS_MAX = 4 * NUMBER_CHARS_MAX


class Code(enum.StrEnum):
    """Why a value was refused. Stable: clients and stored rejects carry these."""

    NUMBER_MISSING = "NUMBER_MISSING"
    NUMBER_CHARACTERS = "NUMBER_CHARACTERS"
    NUMBER_TOO_LONG = "NUMBER_TOO_LONG"
    NUMBER_FORMAT = "NUMBER_FORMAT"
    CHECK_DIGIT = "CHECK_DIGIT"
    VALUE_MISSING = "VALUE_MISSING"
    VALUE_TOO_LONG = "VALUE_TOO_LONG"
    VALUE_CHARACTERS = "VALUE_CHARACTERS"
    DATE_INVALID = "DATE_INVALID"
    DATES_INVERTED = "DATES_INVERTED"
    BIRTH_DATE_IMPLAUSIBLE = "BIRTH_DATE_IMPLAUSIBLE"
    EMAIL_INVALID = "EMAIL_INVALID"
    PHONE_INVALID = "PHONE_INVALID"
    STATUS_UNKNOWN = "STATUS_UNKNOWN"
    PLAN_UNKNOWN = "PLAN_UNKNOWN"
    ATTRIBUTES_INVALID = "ATTRIBUTES_INVALID"


MESSAGES: Mapping[Code, str] = {
    Code.NUMBER_MISSING: "The member number is empty.",
    Code.NUMBER_CHARACTERS: "The member number holds characters that are invisible, only look "
    "right, or cannot occur in a number. Type it again by hand.",
    Code.NUMBER_TOO_LONG: f"The member number is longer than {NUMBER_CHARS_MAX} characters.",
    Code.NUMBER_FORMAT: "The member number does not have the form of the organisation's numbers.",
    Code.CHECK_DIGIT: "The member number's check digit is wrong: a digit was misread or exchanged.",
    Code.VALUE_MISSING: "A value is required.",
    Code.VALUE_TOO_LONG: "The value is too long.",
    Code.VALUE_CHARACTERS: "The value holds a control, invisible or unassigned character.",
    Code.DATE_INVALID: "The date is not written as YYYY-MM-DD, or there is no such day.",
    Code.DATES_INVERTED: "The end lies before the beginning.",
    Code.BIRTH_DATE_IMPLAUSIBLE: "The date of birth is not between 1900 and 2099.",
    Code.EMAIL_INVALID: "The e-mail address is not of the form name@domain.example.",
    Code.PHONE_INVALID: "The telephone number cannot be dialled. Write it as +, country, number.",
    Code.STATUS_UNKNOWN: "The status is not PENDING, ACTIVE, SUSPENDED or TERMINATED.",
    Code.PLAN_UNKNOWN: "The organisation has no such plan.",
    Code.ATTRIBUTES_INVALID: f"There are more than {ATTRIBUTES_MAX} attributes, or one's name is "
    "not a small letter followed by small letters, digits or underscores.",
}


class FieldRefused(ValueError):
    """A value breaks its rule. Carries the code only: the value is personal data."""

    def __init__(self, code: Code) -> None:
        super().__init__(code)
        self.code = code


class Status(enum.StrEnum):
    PENDING = "PENDING"
    ACTIVE = "ACTIVE"
    SUSPENDED = "SUSPENDED"
    TERMINATED = "TERMINATED"


DEFAULT_STATUS = Status.ACTIVE


class CheckDigit(enum.StrEnum):
    NONE = "NONE"
    LUHN = "LUHN"
    VERHOEFF = "VERHOEFF"
    ISO_7064_MOD_11_10 = "ISO_7064_MOD_11_10"
    ISO_7064_MOD_11_2 = "ISO_7064_MOD_11_2"
    ISO_7064_MOD_37_36 = "ISO_7064_MOD_37_36"
    ISO_7064_MOD_37_2 = "ISO_7064_MOD_37_2"
    ISO_7064_MOD_97_10 = "ISO_7064_MOD_97_10"


class NumberCase(enum.StrEnum):
    KEEP = "KEEP"
    UPPER = "UPPER"
    LOWER = "LOWER"


class SecondFactor(enum.StrEnum):
    DATE_OF_BIRTH = "DATE_OF_BIRTH"
    FAMILY_NAME = "FAMILY_NAME"


@dataclass(frozen=True)
class NumberRules:
    """How an organisation writes its numbers. A bad pattern raises PatternRefused here."""

    pattern: str = ""
    check_digit: CheckDigit = CheckDigit.NONE
    case: NumberCase = NumberCase.KEEP
    ignored: str = ""

    def __post_init__(self) -> None:
        _ = self.source

    @functools.cached_property
    def alphabet(self) -> frozenset[str]:
        """The ASCII characters a canonical number can hold."""
        return fold_chars(ALPHABET, self.case) - frozenset(self.ignored)

    @functools.cached_property
    def source(self) -> str:
        """The canonical ASCII numbers as a linear regular expression."""
        if self.pattern:
            return compile_pattern(self.pattern, fold=self.case, ignored=self.ignored)
        first = char_class(self.alphabet & (LETTERS | DIGITS))
        return f"{first}{char_class(self.alphabet)}{{0,{NUMBER_CHARS_MAX - 1}}}+"

    @functools.cached_property
    def regex(self) -> re.Pattern[str]:
        return re.compile(self.source)


@dataclass(frozen=True)
class OrgRules:
    """What an organisation set for its members. Plans map to the last day each is honoured."""

    number: NumberRules = field(default_factory=NumberRules)
    phone_region: str = ""
    plans: Mapping[str, date | None] = field(default_factory=dict)
    required_factors: frozenset[SecondFactor] = frozenset()

    @functools.cached_property
    def plan_spellings(self) -> Mapping[str, str]:
        return {plan.casefold(): plan for plan in self.plans}


# ---- Member numbers ----

_SPACES = " \u00a0\u3000"


def member_number(raw: str, rules: NumberRules) -> str:
    """Return the one spelling under which the number is stored and found."""
    if len(raw) > NUMBER_INPUT_CHARS_MAX:
        raise FieldRefused(Code.NUMBER_TOO_LONG)
    text = raw.strip(_SPACES)
    if not text.isascii():
        text = _plain_latin(text)
    text = _fold(text, rules.case)
    for separator in rules.ignored:
        text = text.replace(separator, "")
    _check_number(text, rules)
    return text


def _check_number(text: str, rules: NumberRules) -> None:
    if not text:
        raise FieldRefused(Code.NUMBER_MISSING)
    if len(text) > NUMBER_CHARS_MAX:
        raise FieldRefused(Code.NUMBER_TOO_LONG)
    if not all(char in rules.alphabet or not char.isascii() for char in text):
        raise FieldRefused(Code.NUMBER_CHARACTERS)
    if rules.regex.fullmatch(text if text.isascii() or rules.pattern else _bases(text)) is None:
        raise FieldRefused(Code.NUMBER_FORMAT)
    if not check_digit_holds(text, rules.check_digit):
        raise FieldRefused(Code.CHECK_DIGIT)


def _plain_latin(text: str) -> str:
    """Compose accents and narrow full-width forms; refuse whatever could pass for another."""
    for char in text:
        # Superscripts, circled digits and fractions would turn into other numbers.
        if char > "~" and unicodedata.decomposition(char)[:1] == "<" and not _is_width_form(char):
            raise FieldRefused(Code.NUMBER_CHARACTERS)
    composed = unicodedata.normalize("NFKC", text)
    if not all(char.isascii() or _is_accented_latin(char) for char in composed):
        raise FieldRefused(Code.NUMBER_CHARACTERS)
    return composed


def _is_width_form(char: str) -> bool:
    return char in _SPACES or unicodedata.decomposition(char).startswith("<wide>")


def _is_accented_latin(char: str) -> bool:
    base = unicodedata.normalize("NFD", char)[0]
    return base in LETTERS and unicodedata.category(char) in ("Lu", "Ll")


def _bases(text: str) -> str:
    return "".join(unicodedata.normalize("NFD", char)[0] for char in text)


def _fold(text: str, case: NumberCase) -> str:
    match case:
        case NumberCase.UPPER:
            folded = text.upper()
        case NumberCase.LOWER:
            folded = text.lower()
        case NumberCase.KEEP:
            return text
    if len(folded) != len(text):
        raise FieldRefused(Code.NUMBER_CHARACTERS)
    return folded


# ---- Check digits ----

_DOUBLED = bytes.maketrans(b"0123456789", b"0246813579")


def check_digit_holds(number: str, check: CheckDigit) -> bool:
    """Judge a canonical number. Punctuation never counts, letters where the scheme has them."""
    if check is CheckDigit.NONE:
        return True
    if not number.isascii():
        return False
    if check is CheckDigit.LUHN:
        return luhn_holds(number.encode())
    scheme, has_letters = _SCHEMES[check]
    kept = [char for char in number.upper() if char in DIGITS or (has_letters and char in LETTERS)]
    if check is CheckDigit.ISO_7064_MOD_11_2 and number[-1:] in ("X", "x"):
        kept.append("X")
    try:
        scheme.validate("".join(kept))
    except ValidationError:
        return False
    return True


def luhn_holds(number: bytes) -> bool:
    """Luhn over the digits. Written out because an import asks it once a row."""
    digits = number if number.isdigit() else bytes(byte for byte in number if 48 <= byte <= 57)
    total = sum(digits[-1::-2]) + sum(digits[-2::-2].translate(_DOUBLED)) - 48 * len(digits)
    return len(digits) > 1 and total % 10 == 0


_SCHEMES = {
    CheckDigit.VERHOEFF: (verhoeff, False),
    CheckDigit.ISO_7064_MOD_11_10: (mod_11_10, False),
    CheckDigit.ISO_7064_MOD_11_2: (mod_11_2, False),
    CheckDigit.ISO_7064_MOD_37_36: (mod_37_36, True),
    CheckDigit.ISO_7064_MOD_37_2: (mod_37_2, True),
    CheckDigit.ISO_7064_MOD_97_10: (mod_97_10, True),
}


# ---- Text ----

# Joiners shape Persian and Indic names, so they are text; every other invisible is refused.
_JOINERS = "\u200c\u200d"
_LINE_CHARACTERS = "\t\r\n"
_PLAIN = re.compile(r"[ -~]*")


def text(raw: str, chars_max: int) -> str:
    """Return free text in NFC without outer spaces. A leading = + - @ is kept as it came."""
    if _PLAIN.fullmatch(raw) is None:
        if not all(map(_is_text, raw)):
            raise FieldRefused(Code.VALUE_CHARACTERS)
        raw = unicodedata.normalize("NFC", raw)
    stored = raw.strip(" ")
    if len(stored) > chars_max:
        raise FieldRefused(Code.VALUE_TOO_LONG)
    return stored


def _is_text(char: str) -> bool:
    return (
        unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
        or char in _JOINERS
        or char in _LINE_CHARACTERS
    )


def name(raw: str) -> str:
    return text(raw, NAME_CHARS_MAX)


def name_key(raw: str) -> str:
    """Return what two spellings of one name have in common, for second factors."""
    decomposed = unicodedata.normalize("NFKD", raw.casefold())
    return "".join(char for char in decomposed if char.isalnum())


def plan(raw: str, rules: OrgRules) -> str:
    stored = text(raw, PLAN_CHARS_MAX)
    if not rules.plans or not stored:
        return stored
    spelling = rules.plan_spellings.get(stored.casefold())
    if spelling is None:
        raise FieldRefused(Code.PLAN_UNKNOWN)
    return spelling


def status(raw: str) -> Status | None:
    """Return the status, or None where nothing was given."""
    wanted = raw.strip(" ").upper()
    if not wanted:
        return None
    if wanted not in Status.__members__:
        raise FieldRefused(Code.STATUS_UNKNOWN)
    return Status[wanted]


_ATTRIBUTE_KEY = re.compile(rf"[a-z][a-z0-9_]{{0,{ATTRIBUTE_KEY_CHARS_MAX - 1}}}")


def attribute_key(raw: str) -> str:
    if _ATTRIBUTE_KEY.fullmatch(raw) is None:
        raise FieldRefused(Code.ATTRIBUTES_INVALID)
    return raw


def attribute_value(raw: str) -> str:
    return text(raw, ATTRIBUTE_VALUE_CHARS_MAX)


def attributes(raw: Mapping[str, str]) -> dict[str, str]:
    if len(raw) > ATTRIBUTES_MAX:
        raise FieldRefused(Code.ATTRIBUTES_INVALID)
    return {attribute_key(key): attribute_value(value) for key, value in raw.items()}


# ---- E-mail ----

_ATEXT = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\-"
_LABEL = r"[a-z0-9](?:[a-z0-9\-]{0,61}[a-z0-9])?"
_EMAIL = re.compile(
    rf"[{_ATEXT}]++(?:\.[{_ATEXT}]++)*+@(?:{_LABEL}\.){{1,20}}(?:[a-z]{{2,63}}|xn--[a-z0-9\-]{{1,59}})"
)


def email(raw: str) -> str:
    """Return the address with its domain in small letters; the part before @ is kept as given."""
    address = raw.strip(" ")
    if not address:
        return ""
    if len(address) > EMAIL_CHARS_MAX:
        raise FieldRefused(Code.VALUE_TOO_LONG)
    local, _, domain = address.rpartition("@")
    stored = f"{local}@{domain.lower()}"
    if len(local) > EMAIL_LOCAL_CHARS_MAX or _EMAIL.fullmatch(stored) is None:
        raise FieldRefused(Code.EMAIL_INVALID)
    return stored


# ---- Telephone ----

_PHONE_INPUT = re.compile(r"\+?[0-9 ().\-/]{4,40}")
_PHONE_MARKS = str.maketrans("", "", " ().-/")


def phone(raw: str, region: str) -> str:
    """Return E.164. The region reads numbers that have no country code."""
    given = raw.strip(" ")
    if not given:
        return ""
    if len(given) > PHONE_INPUT_CHARS_MAX:
        raise FieldRefused(Code.VALUE_TOO_LONG)
    # Cheap first: the library parses 60,000 numbers a second.
    if _PHONE_INPUT.fullmatch(given) is None:
        raise FieldRefused(Code.PHONE_INVALID)
    if given.startswith("+"):
        stored = given.replace("(0)", "").translate(_PHONE_MARKS)
    else:
        stored = _from_national(given, region)
    if e164().fullmatch(stored) is None:
        raise FieldRefused(Code.PHONE_INVALID)
    return stored


@functools.lru_cache(maxsize=4096)
def _from_national(given: str, region: str) -> str:
    if not region:
        raise FieldRefused(Code.PHONE_INVALID)
    try:
        parsed = phonenumbers.parse(given, region)
    except phonenumbers.NumberParseException:
        raise FieldRefused(Code.PHONE_INVALID) from None
    return phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)


@functools.cache
def e164() -> re.Pattern[str]:
    return re.compile(e164_source())


@functools.cache
def e164_source() -> str:
    """Every country code with the lengths its numbers can have, as one expression."""
    lengths: dict[str, set[int]] = {}
    for metadata in _phone_metadata():
        possible = lengths.setdefault(str(metadata.country_code), set())
        if metadata.general_desc is not None:
            possible.update(n for n in metadata.general_desc.possible_length if n > 0)
    return r"\+" + _country_codes(lengths, "")


def _phone_metadata() -> list[PhoneMetadata]:
    regions = [PhoneMetadata.metadata_for_region(r) for r in phonenumbers.SUPPORTED_REGIONS]
    networks = [
        PhoneMetadata.metadata_for_nongeo_region(code)
        for code in phonenumbers.COUNTRY_CODES_FOR_NON_GEO_REGIONS
    ]
    return [metadata for metadata in (*regions, *networks) if metadata is not None]


def _country_codes(lengths: Mapping[str, set[int]], prefix: str) -> str:
    """A tree over the digits, so that the engine takes one branch a digit."""
    branches = []
    for digit in "0123456789":
        code = prefix + digit
        if code in lengths:
            branches.append(digit + _digit_runs(lengths[code]))
        elif any(other.startswith(code) for other in lengths):
            branches.append(digit + _country_codes(lengths, code))
    return "(?:" + "|".join(branches) + ")"


def _digit_runs(lengths: set[int]) -> str:
    runs: list[list[int]] = []
    for length in sorted(lengths):
        if runs and runs[-1][1] == length - 1:
            runs[-1][1] = length
        else:
            runs.append([length, length])
    # Longest first and closed by a look-ahead: a possessive run cannot give digits back.
    return "(?:" + "|".join(f"[0-9]{{{a},{b}}}+(?![0-9])" for a, b in reversed(runs)) + ")"


# ---- Dates ----

_ISO = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
BIRTH_YEARS = range(1900, 2100)
EFFECTIVE_YEARS = range(1900, 10000)


def date_of_birth(raw: str) -> date | None:
    return _date(raw, BIRTH_YEARS, Code.BIRTH_DATE_IMPLAUSIBLE)


def effective_date(raw: str) -> date | None:
    """Return the day. 9999-12-31 is a usual way to write "no end", and is kept."""
    return _date(raw, EFFECTIVE_YEARS, Code.DATE_INVALID)


def dates_in_order(effective_from: date | None, effective_to: date | None) -> None:
    if effective_from and effective_to and effective_to < effective_from:
        raise FieldRefused(Code.DATES_INVERTED)


def _date(raw: str, years: range, out_of_range: Code) -> date | None:
    given = raw.strip(" ")
    if not given:
        return None
    if _ISO.fullmatch(given) is None:
        raise FieldRefused(Code.DATE_INVALID)
    try:
        day = date.fromisoformat(given)
    except ValueError:
        raise FieldRefused(Code.DATE_INVALID) from None
    if day.year not in years:
        raise FieldRefused(out_of_range)
    return day


# ---- Canonical patterns: bytes that are stored as they are ----

_YY_LEAP = "(?:0[48]|[2468][048]|[13579][26])"
_BIRTH_CENTURY, _BIRTH_LEAP = "(?:19|20)", f"(?:(?:19|20){_YY_LEAP}|2000)"
_EFFECTIVE_CENTURY = "(?:19|[2-9][0-9])"
_EFFECTIVE_LEAP = f"(?:{_EFFECTIVE_CENTURY}{_YY_LEAP}|(?:[2468][048]|[3579][26])00)"


def _date_source(century: str, leap_year: str) -> str:
    months = "(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])"
    ends = "(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31"
    return f"(?:{century}[0-9]{{2}}-(?:{months}|{ends})|{leap_year}-02-29)"


def _optional(source: str) -> str:
    return f"(?:{source})?+"


def _text_source(chars_max: int, excluded: str) -> str:
    # High bytes are letters of other scripts: is_plain_text judges them, once for many rows.
    low, high = _printable_without(excluded), r"\x80-\xff"
    return f"(?! )[{low}{high}]{{0,{chars_max}}}+(?<! )"


def _printable_without(excluded: str) -> str:
    return "".join(re.escape(chr(n)) for n in range(32, 127) if chr(n) not in excluded)


def _email_source(excluded: str) -> str:
    atext = "".join(char for char in _ATEXT if char not in excluded)
    # Shorter than the rule allows, so that no length has to be added up; longer ones are rare.
    local = f"[{atext}]{{1,20}}+(?:\\.[{atext}]{{1,20}}+){{0,2}}+"
    return f"{local}@(?:[a-z0-9][a-z0-9\\-]{{0,40}}+(?<!-)\\.){{1,3}}+[a-z]{{2,24}}+"


def canonical(name_of_field: str, rules: OrgRules, excluded: str = ',"') -> bytes:
    """Return the bytes pattern of a field's values that are stored as they stand.

    Excluded are the characters that mean something to the file: its delimiter and its quote.
    A number's check digit, and text beyond ASCII (is_plain_text), are to be judged beside it.
    """
    match name_of_field:
        case "member_number":
            source = rules.number.source
        case "given_name" | "family_name":
            source = _text_source(NAME_CHARS_MAX, excluded)
        case "email":
            source = _optional(_email_source(excluded))
        case "phone":
            source = _optional(e164_source())
        case "date_of_birth":
            source = _optional(_date_source(_BIRTH_CENTURY, _BIRTH_LEAP))
        case "effective_from" | "effective_to":
            source = _optional(_date_source(_EFFECTIVE_CENTURY, _EFFECTIVE_LEAP))
        case "plan":
            source = _plan_source(rules, excluded)
        case "status":
            source = _optional("|".join(Status))
        case _:
            source = _text_source(ATTRIBUTE_VALUE_CHARS_MAX, excluded)
    return source.encode("latin-1")


def _plan_source(rules: OrgRules, excluded: str) -> str:
    if not rules.plans:
        return _text_source(PLAN_CHARS_MAX, excluded)
    # Longest first: a possessive choice cannot go back from GOLD to GOLD-2.
    known = sorted(filter(_is_plain_plan, rules.plan_spellings.values()), key=len, reverse=True)
    listed = "|".join(
        re.escape(spelling) for spelling in known if not set(excluded) & set(spelling)
    )
    return _optional(listed) if listed else ""


def _is_plain_plan(plan_name: str) -> bool:
    is_plain = plan_name.isascii() and plan_name.isprintable() and plan_name == plan_name.strip()
    return is_plain and 0 < len(plan_name) <= PLAN_CHARS_MAX


@functools.cache
def _plain_letters() -> re.Pattern[str]:
    """Letters that no neighbour can change under NFC. Conjoining jamo are the exception."""
    ranges: list[list[int]] = []
    for point in range(0x80, 0xFFFF):
        char = chr(point)
        stable = unicodedata.is_normalized("NFC", char) and not 0x1100 <= point <= 0x11FF
        if not stable or unicodedata.category(char) not in ("Lu", "Ll", "Lt", "Lo"):
            continue
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return re.compile("[" + "".join(f"{chr(a)}-{chr(b)}" for a, b in ranges) + "]*+")


_ASCII_BYTES = bytes(range(128))


def is_plain_text(content: bytes) -> bool:
    """Whether the bytes are UTF-8 whose characters beyond ASCII are letters stored as they are."""
    if content.isascii():
        return True
    try:
        content.decode()
        beyond = content.translate(None, _ASCII_BYTES).decode()
    except UnicodeDecodeError:
        return False
    return _plain_letters().fullmatch(beyond) is not None
