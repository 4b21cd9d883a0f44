"""The YAML that deploy/ is written in, and no more: what is outside of it is an error.

Blocks of mappings and sequences, one-line scalars, flow sequences and mappings as JSON, comments
on lines of their own. A parser for all of YAML would be a dependency for one test.
"""

from __future__ import annotations

import json
import re
from typing import Any

_KEY = re.compile(r'(?P<key>"[^"]*"|[^\s"#:\[\]{}&*!|>%@`-][^"#]*?):(?: (?P<value>.*))?')
_INTEGER = re.compile(r"[-+]?\d+")
_FLOAT = re.compile(r"[-+]?\d+\.\d*(?:[eE][-+]?\d+)?")
# Words and signs that mean something else to a real parser than they seem to.
_TREACHEROUS = re.compile(r"(?i:yes|no|on|off|null|~)|[&*!|>%@`#?,'].*|.*: .*|.* #.*|.*:")

Line = tuple[int, int, str]  # number, indentation, text


class NotPlain(ValueError):
    """The text is not YAML, or more of it than this house uses."""


def load(text: str) -> list[Any]:
    """The documents of a file."""
    documents: list[list[Line]] = [[]]
    for number, raw in enumerate(text.splitlines(), 1):
        bare = raw.strip()
        if raw == "---":
            documents.append([])
        elif bare and not bare.startswith("#"):
            if "\t" in raw or raw != raw.rstrip():
                raise NotPlain(f"line {number}: a tab, or a space at the end")
            documents[-1].append((number, len(raw) - len(bare), bare))
    return [_document(lines) for lines in documents]


def _document(lines: list[Line]) -> Any:
    if not lines:
        raise NotPlain("an empty document")
    value, rest = _block(lines, lines[0][1])
    if rest:
        raise NotPlain(f"line {rest[0][0]}: wrong indentation")
    return value


def _block(lines: list[Line], indent: int) -> tuple[Any, list[Line]]:
    return (_sequence if _is_item(lines[0][2]) else _mapping)(lines, indent)


def _is_item(text: str) -> bool:
    return text.startswith("- ")


def _sequence(lines: list[Line], indent: int) -> tuple[list[Any], list[Line]]:
    items = []
    while lines and lines[0][1] == indent and _is_item(lines[0][2]):
        number, _, text = lines[0]
        inner = text[2:]
        if _KEY.fullmatch(inner):
            item, lines = _mapping([(number, indent + 2, inner), *lines[1:]], indent + 2)
            items.append(item)
        else:
            items.append(_scalar(inner, number))
            lines = lines[1:]
    return items, lines


def _mapping(lines: list[Line], indent: int) -> tuple[dict[str, Any], list[Line]]:
    found: dict[str, Any] = {}
    while lines and lines[0][1] == indent and not _is_item(lines[0][2]):
        number, _, text = lines[0]
        match = _KEY.fullmatch(text)
        if match is None:
            raise NotPlain(f"line {number}: neither a key nor an item")
        key, value, lines = match["key"].strip('"'), match["value"], lines[1:]
        if key in found:
            raise NotPlain(f"line {number}: {key} for the second time")
        if value is not None:
            found[key] = _scalar(value, number)
        elif lines and lines[0][1] > indent:
            found[key], lines = _block(lines, lines[0][1])
        else:
            raise NotPlain(f"line {number}: {key} has no value")
    return found, lines


def _scalar(text: str, number: int) -> Any:
    if text[0] in '"[{':
        try:
            return json.loads(text)
        except ValueError:
            raise NotPlain(f"line {number}: not JSON: {text}") from None
    if text in ("true", "false"):
        return text == "true"
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _TREACHEROUS.fullmatch(text):
        raise NotPlain(f"line {number}: quote {text}")
    return text
