"""A plain reading of the CSV rules, byte by byte, to hold the fast one against."""

from __future__ import annotations

from typing import NamedTuple

from trunkline_server.imports.rules import FIELD_BYTES_MAX, ROW_BYTES_MAX, Layout, judge_of
from trunkline_server.members.rules import FieldRefused, OrgRules


class Row(NamedTuple):
    row_no: int
    line_no: int
    byte_offset: int
    values: tuple[str, ...]
    code: str
    column: str
    raw: bytes


class Malformed(Exception):
    def __init__(self, code: str, column: int) -> None:
        self.code, self.column = code, column


def read(content: bytes, layout: Layout, org: OrgRules) -> list[Row]:
    rows: list[Row] = []
    at, line_no, row_no = layout.first.byte_offset, layout.first.line_no, 0
    while at < len(content):
        line_end = content.find(b"\n", at)
        after_line = len(content) if line_end < 0 else line_end + 1
        line = content[at:after_line].removesuffix(b"\n").removesuffix(b"\r")
        if not line:
            at, line_no = after_line, line_no + 1
            continue
        row_no += 1
        code, column, raw, after = "", "", line, after_line
        try:
            cells, raw, after = _record(content, at, line, after_line, layout)
            values = _values(cells, raw, layout, org)
        except Malformed as wrong:
            code, values = wrong.code, ()
            column = layout.headers[wrong.column] if 0 <= wrong.column < len(layout.headers) else ""
        rows.append(Row(row_no, line_no, at, values, code, column, raw[:ROW_BYTES_MAX]))
        line_no += content[at:after].count(b"\n")
        at = after
    return rows


def _record(
    content: bytes, at: int, line: bytes, after_line: int, layout: Layout
) -> tuple[list[bytes], bytes, int]:
    if len(line) > ROW_BYTES_MAX:
        raise Malformed("ROW_TOO_LONG", -1)
    try:
        cells, end, after = _cells(content, at, layout)
    except Malformed:
        end, cells, after = at + ROW_BYTES_MAX + 1, [], 0
    if end - at > ROW_BYTES_MAX:
        _cells(line + b"\r\n", 0, layout)  # Raises what is wrong with the line on its own.
        raise AssertionError("only a quote can join lines")
    if after > after_line and len(cells) != len(layout.fields):
        raise Malformed("UNCLOSED_QUOTE", len(cells) - 1)
    return cells, content[at:end], after


def _cells(content: bytes, at: int, layout: Layout) -> tuple[list[bytes], int, int]:
    """Return the cells, where the record ends, and where the next begins."""
    delimiter, quote = layout.delimiter.encode(), layout.quote.encode()
    cells: list[bytes] = []
    while True:
        cell = bytearray()
        if content[at : at + 1] == quote:
            at += 1
            while True:
                byte = content[at : at + 1]
                if byte == b"":
                    raise Malformed("UNCLOSED_QUOTE", len(cells))
                at += 1
                if byte != quote:
                    cell += byte
                elif content[at : at + 1] == quote:
                    cell += quote
                    at += 1
                else:
                    break
            wrong = "TEXT_AFTER_QUOTE"
        else:
            while (byte := content[at : at + 1]) not in (delimiter, b"\r", b"\n", b"", quote):
                cell += byte
                at += 1
            wrong = "BARE_QUOTE" if byte == quote else "VALUE_CHARACTERS"
        cells.append(bytes(cell))
        rest = content[at : at + 2]
        if rest[:1] == delimiter:
            at += 1
            continue
        if rest in (b"", b"\r\n") or rest[:1] == b"\n" or rest == b"\r":
            size = 2 if rest == b"\r\n" else min(len(rest), 1)
            return cells, at, at + size
        raise Malformed(wrong, len(cells) - 1)


def _values(cells: list[bytes], raw: bytes, layout: Layout, org: OrgRules) -> tuple[str, ...]:
    for index, cell in enumerate(cells):
        if b"\0" in cell:
            raise Malformed("NUL_BYTE", index)
        try:
            cell.decode()
        except UnicodeDecodeError:
            raise Malformed("INVALID_UTF8", index) from None
    if len(cells) != len(layout.fields):
        raise Malformed("COLUMN_COUNT", -1)
    for index, cell in enumerate(cells):
        if len(cell) > FIELD_BYTES_MAX:
            raise Malformed("FIELD_TOO_LONG", index)
    values = []
    for index, (cell, name) in enumerate(zip(cells, layout.fields, strict=True)):
        try:
            value = judge_of(name, org)(cell.decode())
        except FieldRefused as refused:
            raise Malformed(refused.code, index) from None
        if not value and name in layout.required:
            raise Malformed("VALUE_MISSING", index)
        values.append(value)
    return tuple(values)
