"""Member-number patterns an organisation may set: of regular expressions only what is linear.

A full regular expression from a tenant could backtrack for hours. What number formats need is
small: characters, classes, repeats, and alternatives. This subset is parsed here and compiled anew
with possessive repeats only, so matching never backtracks. A repeat of varying length must not be
followed by something it could have taken itself: then possessive and greedy mean the same.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

PATTERN_CHARS_MAX = 256
ALTERNATIVES_MAX = 8
NUMBER_CHARS_MAX = 64

LETTERS = frozenset(string.ascii_letters)
DIGITS = frozenset(string.digits)
PUNCTUATION = frozenset("-_./#")
ALPHABET = LETTERS | DIGITS | PUNCTUATION

_REPEAT = re.compile(r"\{(\d{1,3})(?:(,)(\d{1,3})?)?\}|[?*+]")
_SYNTAX = frozenset("[](){}|?*+^$.\\")


class PatternRefused(ValueError):
    """The pattern leaves the subset. The text says where and why; it holds no personal data."""


@dataclass(frozen=True, slots=True)
class Step:
    """Some characters, repeated low to high times."""

    chars: frozenset[str]
    low: int
    high: int


def compile_pattern(pattern: str, *, fold: str = "KEEP", ignored: str = "") -> str:
    """Return the pattern as a linear regular expression over canonical numbers."""
    if len(pattern) > PATTERN_CHARS_MAX:
        raise PatternRefused(f"longer than {PATTERN_CHARS_MAX} characters")
    alternatives = _alternatives(pattern)
    compiled = [_compile(_folded(steps, fold, ignored)) for steps in alternatives]
    return "(?:" + "|".join(compiled) + ")"


def char_class(chars: frozenset[str]) -> str:
    """Return a regular-expression class of exactly these characters."""
    return "[" + "".join(re.escape(char) for char in sorted(chars)) + "]"


def fold_chars(chars: frozenset[str], fold: str) -> frozenset[str]:
    """Return the characters as they are after the organisation's rule for letter case."""
    match fold:
        case "UPPER":
            return frozenset(char.upper() for char in chars)
        case "LOWER":
            return frozenset(char.lower() for char in chars)
        case _:
            return chars


def _alternatives(pattern: str) -> list[list[Step]]:
    alternatives: list[list[Step]] = [[]]
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "|":
            alternatives.append([])
            at += 1
        elif _is_anchor(pattern, at):
            at += 1
        else:
            step, at = _step(pattern, at)
            alternatives[-1].append(step)
    if len(alternatives) > ALTERNATIVES_MAX:
        raise PatternRefused(f"more than {ALTERNATIVES_MAX} alternatives")
    return alternatives


def _is_anchor(pattern: str, at: int) -> bool:
    """Whole numbers are matched anyway, so anchors at the borders say nothing new."""
    before, after = pattern[at - 1 : at], pattern[at + 1 : at + 2]
    return (pattern[at] == "^" and before in ("", "|")) or (
        pattern[at] == "$" and after in ("", "|")
    )


def _step(pattern: str, at: int) -> tuple[Step, int]:
    chars, at = _atom(pattern, at)
    repeat = _REPEAT.match(pattern, at)
    if repeat is None:
        return Step(chars, 1, 1), at
    low, high = _bounds(repeat)
    if low > high or high > NUMBER_CHARS_MAX or high == 0:
        raise PatternRefused(f"repeat at position {at} is not within 1 to {NUMBER_CHARS_MAX}")
    return Step(chars, low, high), repeat.end()


def _bounds(repeat: re.Match[str]) -> tuple[int, int]:
    match repeat.group():
        case "?":
            return 0, 1
        case "*":
            return 0, NUMBER_CHARS_MAX
        case "+":
            return 1, NUMBER_CHARS_MAX
    low, comma, high = repeat.groups()
    if comma is None:
        return int(low), int(low)
    return int(low), NUMBER_CHARS_MAX if high is None else int(high)


def _atom(pattern: str, at: int) -> tuple[frozenset[str], int]:
    char = pattern[at]
    if char == "[":
        return _class(pattern, at)
    if char == "\\":
        return _escape(pattern, at)
    if char in _SYNTAX:
        raise PatternRefused(f"{char!r} at position {at} is not supported")
    return _known(char, at), at + 1


def _escape(pattern: str, at: int) -> tuple[frozenset[str], int]:
    char = pattern[at + 1 : at + 2]
    if char == "d":
        return DIGITS, at + 2
    if char == "" or char.isalnum():
        raise PatternRefused(f"escape at position {at} is not supported")
    return _known(char, at), at + 2


def _class(pattern: str, at: int) -> tuple[frozenset[str], int]:
    end = pattern.find("]", at)
    inside = pattern[at + 1 : end]
    if end < 0 or not inside or inside[0] == "^":
        raise PatternRefused(f"class at position {at} is empty, open or negated")
    chars: frozenset[str] = frozenset()
    inner = 0
    while inner < len(inside):
        if inside[inner] == "\\":
            more, inner = _escape(inside, inner)
            chars |= more
        elif inside[inner + 1 : inner + 2] == "-" and inner + 2 < len(inside):
            chars |= _range(inside[inner], inside[inner + 2], at)
            inner += 3
        else:
            chars |= _known(inside[inner], at)
            inner += 1
    return chars, end + 1


def _range(first: str, last: str, at: int) -> frozenset[str]:
    span = frozenset(map(chr, range(ord(first), ord(last) + 1)))
    same_kind = any({first, last} <= kind for kind in (DIGITS, LETTERS))
    if not span or not same_kind or not span <= ALPHABET:
        raise PatternRefused(f"range {first}-{last} at position {at} is not supported")
    return span


def _known(char: str, at: int) -> frozenset[str]:
    if char not in ALPHABET:
        raise PatternRefused(f"{char!r} at position {at} cannot occur in a member number")
    return frozenset(char)


def _folded(steps: list[Step], fold: str, ignored: str) -> list[Step]:
    folded = []
    for step in steps:
        chars = fold_chars(step.chars, fold) - frozenset(ignored)
        if not chars:
            raise PatternRefused("it asks for a separator that is removed before matching")
        folded.append(Step(chars, step.low, step.high))
    return folded


def _compile(steps: list[Step]) -> str:
    if not steps:
        raise PatternRefused("an alternative is empty")
    _refuse_overlap(steps)
    return "".join(
        f"{char_class(step.chars)}{{{step.low},{high}}}+"
        for step, high in zip(steps, _within_length(steps), strict=True)
    )


def _refuse_overlap(steps: list[Step]) -> None:
    for index, step in enumerate(steps):
        if step.low == step.high:
            continue
        for later in steps[index + 1 :]:
            if step.chars & later.chars:
                raise PatternRefused(
                    f"part {index + 1} varies in length and could also take what follows it"
                )
            if later.low > 0:
                break


def _within_length(steps: list[Step]) -> list[int]:
    """Shorten an open repeat to what the longest number leaves for it."""
    highs = [step.high for step in steps]
    spare = NUMBER_CHARS_MAX - sum(high for high in highs if high < NUMBER_CHARS_MAX)
    longest = [index for index, high in enumerate(highs) if high == NUMBER_CHARS_MAX]
    if len(longest) > 1:
        raise PatternRefused("two parts have no upper bound: give them one, such as {1,10}")
    for index in longest:
        highs[index] = min(highs[index], spare)
    if sum(highs) > NUMBER_CHARS_MAX or any(
        high < step.low for high, step in zip(highs, steps, strict=True)
    ):
        raise PatternRefused(f"it allows more than {NUMBER_CHARS_MAX} characters")
    return highs
