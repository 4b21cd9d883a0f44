"""The search: what a text may mean, and the members that meet it (docs/adr/0013).

Typing errors are undone before the members are asked. Of a number, an address or a telephone
number all neighbours are made and looked up; of a name's words those that occur in a name are
found among the words that do.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.db import Executor, Record
from trunkline_server.members import filters, rules
from trunkline_server.members.filters import Filter
from trunkline_server.members.rules import FieldRefused, NumberCase, NumberRules

# The best this many are ranked; who gets more should ask more.
CANDIDATES_MAX = 400
SCORED_MAX = 300
NEAR_WORDS_MAX = 40
TYPO_CHARS_MIN = 4
CODE_TYPO_CHARS_MAX = 40
PHONE_DIGITS_MIN = 5
EXACT, PREFIX, ONE_ERROR, TWO_ERRORS = 1.0, 0.9, 0.75, 0.6
TWO_ERRORS_CHARS_MIN = 8

FIELDS: Mapping[str, pb.MatchedField.ValueType] = {
    "MEMBER_NUMBER": pb.MATCHED_FIELD_MEMBER_NUMBER,
    "NAME": pb.MATCHED_FIELD_NAME,
    "PHONE": pb.MATCHED_FIELD_PHONE,
    "EMAIL": pb.MATCHED_FIELD_EMAIL,
}
_DIGITS = "0123456789"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_PHONE = re.compile(r"\+?[0-9 ().\-/]+")
_NOT_DIGITS = re.compile(r"[^0-9]")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a text may be, besides a name. Empty: it cannot be that."""

    text: str
    number: str = ""
    numbers: tuple[str, ...] = ()
    email: str = ""
    emails: tuple[str, ...] = ()
    phone: str = ""  # reversed, as people leave out the beginning
    phones: tuple[str, ...] = ()

    @property
    def is_name(self) -> bool:
        return not self.email and any(char.isalpha() for char in self.text)


def read(text: str, number_rules: NumberRules) -> Asked:
    number = _number(text, number_rules)
    email = text.strip().lower() if "@" in text else ""
    phone = _phone(text)
    return Asked(
        text=text,
        number=number,
        numbers=tuple(typos(number)),
        email=email,
        emails=tuple(typos(email)),
        phone=phone,
        phones=tuple(typos(phone, digits_only=True)) if phone else (),
    )


def _number(text: str, number_rules: NumberRules) -> str:
    """As it would be stored, but without its pattern and check digit: it may be the beginning."""
    try:
        return rules.member_number(text, _loose(number_rules.case, number_rules.ignored))
    except FieldRefused:
        return ""


@functools.lru_cache(maxsize=1_000)
def _loose(case: NumberCase, ignored: str) -> NumberRules:
    return NumberRules(case=case, ignored=ignored)


def _phone(text: str) -> str:
    if _PHONE.fullmatch(text.strip()) is None:
        return ""
    # In a country's own way of writing, a zero or two stand for what E.164 begins with.
    digits = _NOT_DIGITS.sub("", text.replace("(0)", "")).lstrip("0")
    return digits[::-1] if len(digits) >= PHONE_DIGITS_MIN else ""


def typos(code: str, *, digits_only: bool = False) -> Iterator[str]:
    """All texts one typing error away: a character too many, too few, another, or two swapped."""
    if not TYPO_CHARS_MIN <= len(code) <= CODE_TYPO_CHARS_MAX:
        return
    for at, char in enumerate(code):
        before, after = code[:at], code[at + 1 :]
        yield before + after
        if after and after[0] != char:
            yield before + after[0] + char + after[1:]
        kinds = _kind(char, digits_only)
        yield from (before + other + after for other in kinds if other != char)
        yield from (before + other + char + after for other in kinds)


def _kind(char: str, digits_only: bool) -> str:
    """A digit is mistaken for a digit, a letter for a letter."""
    if digits_only or char.isdigit():
        return _DIGITS
    if char.isascii() and char.isalpha():
        return _LETTERS if char.islower() else _LETTERS.upper()
    return ""


def distance(one: str, other: str, most: int) -> int:
    """How many typing errors apart; more than `most` counts as one more."""
    if abs(len(one) - len(other)) > most:
        return most + 1
    two_before: list[int] | None = None
    before = list(range(len(other) + 1))
    for i, char in enumerate(one, start=1):
        row = [i]
        for j, against in enumerate(other, start=1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (char != against))
            if two_before and j > 1 and char == other[j - 2] and one[i - 2] == against:
                best = min(best, two_before[j - 2] + 1)
            row.append(best)
        if min(row) > most:
            return most + 1
        two_before, before = before, row
    return min(before[-1], most + 1)


def weight(asked: str, word: str) -> float:
    """How well a word of a name meets a word that was asked; 0: not at all."""
    if word == asked:
        return EXACT
    if word.startswith(asked):
        return PREFIX
    if len(asked) < TYPO_CHARS_MIN:
        return 0.0
    most = 2 if len(asked) >= TWO_ERRORS_CHARS_MIN else 1
    match distance(asked, word, most):
        case 1:
            return ONE_ERROR
        case 2 if most == 2:
            return TWO_ERRORS
        case _:
            return 0.0


def term(org_id: UUID, word: str) -> int:
    """member_term() of the database."""
    digest = hashlib.md5(f"{org_id}{word}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


@dataclass(frozen=True, slots=True)
class Meant:
    """A word of a name that an asked word may stand for."""

    token: int  # which of the asked words
    term: int
    weight: float


def meant(org_id: UUID, words: Mapping[str, Sequence[str]]) -> list[Meant]:
    """The best few for each asked word; none at all when one resembles nothing."""
    found: list[Meant] = []
    for token, (asked, like) in enumerate(words.items()):
        weighed = sorted(((weight(asked, word), word) for word in like), reverse=True)
        near = [(much, word) for much, word in weighed[:NEAR_WORDS_MAX] if much > 0]
        if not near:
            return []
        found.extend(Meant(token, term(org_id, word), much) for much, word in near)
    return found


@dataclass(frozen=True, slots=True)
class Hit:
    score: float
    field: str


class Hits:
    """The best score of each member."""

    def __init__(self) -> None:
        self.by_id: dict[UUID, Hit] = {}

    def add(self, member_id: UUID, score: float, field: str) -> None:
        known = self.by_id.get(member_id)
        if known is None or score > known.score:
            self.by_id[member_id] = Hit(score, field)

    def whole_after(self, position: Sequence[Any] | None) -> int:
        """How many of the next pages' members are met exactly."""
        return sum(
            hit.score >= EXACT
            and (position is None or (position[0] >= EXACT and str(member_id) > position[1]))
            for member_id, hit in self.by_id.items()
        )


async def run(
    tx: Executor,
    org_id: UUID,
    asked: Asked,
    wanted: Filter,
    position: Sequence[Any] | None,
    limit: int,
) -> list[Record]:
    """The members after the position, best first, with `score` and `field`."""
    hits = Hits()
    if asked.number or asked.email or asked.phone:
        await _by_codes(tx, org_id, asked, hits)
    if asked.is_name:
        await _by_words(tx, org_id, asked, hits, position, limit)
    return await _rows(tx, org_id, hits, wanted, position, limit) if hits.by_id else []


_BY_CODES = """
SELECT member_id, score, field FROM members_by_codes($1, $2, $3, $4, $5, $6, $7, $8)
"""


async def _by_codes(tx: Executor, org_id: UUID, asked: Asked, hits: Hits) -> None:
    """Typing errors are looked for only where there is nothing as it stands."""
    as_it_stands = dataclasses.replace(asked, numbers=(), emails=(), phones=())
    await _by_these_codes(tx, org_id, as_it_stands, hits)
    if not hits.by_id:
        await _by_these_codes(tx, org_id, asked, hits)


async def _by_these_codes(tx: Executor, org_id: UUID, asked: Asked, hits: Hits) -> None:
    for row in await tx.fetch(
        _BY_CODES, org_id, asked.number, asked.numbers, asked.email, asked.emails, asked.phone,
        asked.phones, CANDIDATES_MAX,
    ):  # fmt: skip
        hits.add(row["member_id"], row["score"], row["field"])


_WORDS_LIKE = "SELECT asked, word FROM member_words_like($1, $2)"
_BY_EXACT_WORDS = "SELECT member_id FROM members_by_exact_words($1, $2, $3)"
_BY_WORDS = "SELECT member_id, score FROM members_by_words($1, $2, $3, $4, $5)"


async def _by_words(
    tx: Executor,
    org_id: UUID,
    asked: Asked,
    hits: Hits,
    position: Sequence[Any] | None,
    limit: int,
) -> None:
    words: dict[str, list[str]] = {}
    for row in await tx.fetch(_WORDS_LIKE, org_id, asked.text):
        like = words.setdefault(row["asked"], [])
        if row["word"] is not None and row["word"] not in like:
            like.append(row["word"])
    if not words:
        return
    if all(word in like for word, like in words.items()):
        whole = [term(org_id, word) for word in words]
        for row in await tx.fetch(_BY_EXACT_WORDS, org_id, whole, CANDIDATES_MAX):
            hits.add(row["member_id"], EXACT, "NAME")
    if hits.whole_after(position) >= limit:
        return  # the page is full of better ones
    near = meant(org_id, words)
    for row in await tx.fetch(
        _BY_WORDS,
        org_id,
        [each.term for each in near],
        [each.token for each in near],
        [each.weight for each in near],
        SCORED_MAX,
    ):
        hits.add(row["member_id"], row["score"], "NAME")


_ROWS = f"""
SELECT v.member_id, v.member_number, v.given_name, v.family_name, v.email, v.phone,
       v.date_of_birth, v.plan, v.status, v.effective_from, v.effective_to, v.attributes,
       v.version, v.row_no, v.created_at, v.updated_at, v.deleted_at, v.purge_at, v.cause,
       v.actor_kind, v.actor_id, v.actor_name, v.import_id, v.file_name, v.changed_at,
       v.score, v.field
FROM (
    SELECT m.member_id, m.member_number, m.given_name, m.family_name, m.email, m.phone,
           m.date_of_birth, m.plan, m.status, m.effective_from, m.effective_to, m.attributes,
           m.version, m.row_no, m.created_at, m.updated_at, m.deleted_at, m.purge_at, c.cause,
           c.actor_kind, c.actor_id, c.actor_name, c.import_id, c.file_name, c.changed_at,
           hit.score, hit.field
    FROM unnest($2::uuid[], $3::float8[], $4::text[]) AS hit (member_id, score, field)
    JOIN members m ON m.org_id = $1 AND m.member_id = hit.member_id
    LEFT JOIN member_changes c ON c.org_id = $1 AND c.change_id = m.change_id
) v
WHERE {filters.conditions(6)}
ORDER BY v.score DESC, v.member_id LIMIT $5
"""  # noqa: S608 - made of constants


async def _rows(
    tx: Executor,
    org_id: UUID,
    hits: Hits,
    wanted: Filter,
    position: Sequence[Any] | None,
    limit: int,
) -> list[Record]:
    best = [
        item
        for item in sorted(hits.by_id.items(), key=_rank)
        if position is None or _rank(item) > (-position[0], UUID(position[1]).bytes)
    ]
    rows: list[Record] = []
    # A page's worth at a time: only a filter makes a second time necessary.
    some = limit + limit // 2
    for first in range(0, len(best), some):
        part = best[first : first + some]
        rows += await tx.fetch(
            _ROWS,
            org_id,
            [member_id for member_id, _ in part],
            [hit.score for _, hit in part],
            [hit.field for _, hit in part],
            limit - len(rows),
            *wanted.arguments(),
        )
        if len(rows) >= limit:
            break
    return rows


def _rank(item: tuple[UUID, Hit]) -> tuple[float, bytes]:
    """The order of the pages: the database's own."""
    return -item[1].score, item[0].bytes
