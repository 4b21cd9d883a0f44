"""Reading a CSV file of any size, cut anywhere, with every record either stored or explained.

Two ways, one rule. Records that are stored as they stand are swallowed in runs by one expression
made from the rules and go on unmodified; every other record is cut, judged value by value, and is
either written anew or rejected. How the file is cut into chunks changes nothing.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

from trunkline_server.imports.rules import (
    FIELD_BYTES_MAX,
    FIELDS,
    IGNORED,
    LINE_BYTES_MAX,
    ROW_BYTES_MAX,
    ROW_MESSAGES,
    ROWS_MAX,
    Cursor,
    FileCode,
    FileRefused,
    Layout,
    RowCode,
    judge_of,
    record_pattern,
)
from trunkline_server.members import rules as members

BATCH_ROWS = 5_000
BATCH_BYTES_MAX = 4 << 20
# A record is looked at again when more of it has come, so do not look at every small chunk.
READ_AHEAD_BYTES = 64 << 10
# The longest runs; shorter ones fill a batch up to its last row.
RUN_ROWS = (1024, 128, 16, 1)
_IGNORED_BYTES_MAX = 4 << 10


class Reject(NamedTuple):
    """A record that is not imported, and why. raw is the record as it stands, without line end."""

    row_no: int
    line_no: int
    byte_offset: int
    column: str
    code: str
    message: str
    raw: bytes


class Located(NamedTuple):
    """Where an accepted row stands in the file."""

    row_no: int
    line_no: int
    byte_offset: int
    raw: bytes


# A stretch of accepted rows: first row number, line, byte offset, rows, bytes. Plain for speed.
_Piece = tuple[int, int, int, int, bytes]


@dataclass(slots=True)
class Batch:
    """Consecutive records. copy holds the accepted ones, in order, for COPY in the file's dialect.

    An accepted row carries no number: its place p in the copy, counted from 0, gives it.
    row_no = start.row_no + 1 + p + width_bucket(p, gaps), since gaps holds, for each rejected
    row, how many rows were accepted before it.
    """

    start: Cursor
    end: Cursor
    accepted: int = 0
    copy: list[bytes] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    _pieces: list[_Piece] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return self.end.row_no - self.start.row_no

    def row_no(self, place: int) -> int:
        """Return the row number of an accepted row. The merge does the same with width_bucket."""
        return self.start.row_no + 1 + place + bisect_right(self.gaps, place)

    def locate(self, row_no: int) -> Located:
        """Find an accepted row again, for a reject that only the merge can know."""
        index = bisect_right(self._pieces, row_no, key=itemgetter(0)) - 1
        first, line_no, byte_offset, rows, raw = self._pieces[index]
        if index < 0 or row_no >= first + rows:
            raise KeyError(row_no)
        if rows == 1:
            return Located(row_no, line_no, byte_offset, _without_eol(raw))
        before = row_no - first
        lines = raw.split(b"\n", before + 1)
        offset = byte_offset + sum(map(len, lines[:before])) + before
        return Located(row_no, line_no + before, offset, _without_eol(lines[before]))


# A record cut out, not judged: bytes, where it ends, lines, cells, or what is wrong in a column.
_Cut = tuple[bytes, int, int, list[bytes] | None, RowCode | None, int]


class Parser:
    """Turns the bytes from a cursor on into batches. Feed any chunks, then finish."""

    def __init__(
        self,
        layout: Layout,
        org: members.OrgRules,
        start: Cursor | None = None,
        *,
        batch_rows: int = BATCH_ROWS,
        rows_max: int = ROWS_MAX,
        read_ahead_bytes: int = READ_AHEAD_BYTES,
    ) -> None:
        self._rules = RowRules(layout, org)
        self._cut = _Cutter(layout)
        self._batch_rows = batch_rows
        self._rows_max = rows_max
        self._read_ahead_bytes = read_ahead_bytes
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        # Where reading stands, in parts: this is the hot place, so a Cursor is made at batch
        # borders only. _base is the file offset of the buffer's first byte.
        cursor = start or layout.first
        self._buffer, self._at, self._base = b"", 0, cursor.byte_offset
        self._row_no, self._line_no = cursor.row_no, cursor.line_no
        self._batch = Batch(cursor, cursor)

    def feed(self, chunk: bytes) -> list[Batch]:
        """Take the bytes that follow and return the batches they complete."""
        self._waiting.append(chunk)
        self._waiting_bytes += len(chunk)
        if self._waiting_bytes < self._read_ahead_bytes:
            return []
        return list(self._read(is_last=False))

    def finish(self) -> list[Batch]:
        """Say that the file ends here and return the batches that are left."""
        batches = list(self._read(is_last=True))
        if self._base + self._at > self._batch.start.byte_offset:
            batches.append(self._closed())
        return batches

    def _read(self, *, is_last: bool) -> Iterator[Batch]:
        self._refill()
        while True:
            start = self._batch.start
            rows_left = start.row_no + self._batch_rows - self._row_no
            # Never past the batch's end, so that its size does not depend on the chunks.
            end = start.byte_offset + BATCH_BYTES_MAX - self._base
            if rows_left <= 0 or self._at >= end:
                yield self._closed()
                continue
            rows_max, run = self._rules.run(rows_left)
            matched = run(self._buffer, self._at, end)
            if matched is not None and self._take_run(matched.group()) == rows_max:
                continue
            # A run that could have been longer ends before a record of the other kind.
            if not self._is_full(end) and not self._take_record(is_last):
                return

    def _refill(self) -> None:
        self._buffer = b"".join((self._buffer[self._at :], *self._waiting))
        self._waiting, self._waiting_bytes = [], 0
        self._base, self._at = self._base + self._at, 0

    def _is_full(self, end: int) -> bool:
        return self._at >= end or self._row_no - self._batch.start.row_no >= self._batch_rows

    def _closed(self) -> Batch:
        if self._row_no > self._rows_max:
            raise FileRefused(FileCode.TOO_MANY_ROWS, str(self._rows_max))
        batch = self._batch
        batch.end = Cursor(self._base + self._at, self._row_no, self._line_no)
        self._batch = Batch(batch.end, batch.end)
        return batch

    def _take_run(self, run: bytes) -> int:
        """Take records that are stored as they stand, and return how many there were."""
        if not self._rules.run_holds(run):
            return self._take_each(run)
        rows = run.count(b"\n")
        self._accept(run, run, rows, len(run), rows)
        return rows

    def _take_each(self, run: bytes) -> int:
        """Go through a run with a record that the expression could not judge to the end."""
        lines = run.splitlines(keepends=True)
        for holds, group in itertools.groupby(lines, self._rules.run_holds):
            if holds:
                stretch = list(group)
                stored = b"".join(stretch)
                self._accept(stored, stored, len(stretch), len(stored), len(stretch))
                continue
            for line in group:
                raw = _without_eol(line)
                cells = raw.split(self._rules.delimiter)
                self._judge((raw, self._at + len(line), 1, cells, None, 0))
        return len(lines)

    def _take_record(self, is_last: bool) -> bool:
        """Take one record the slow way. False: it is not all there yet, or nothing is left."""
        cut = self._cut.record(self._buffer, self._at, is_last)
        if cut is None:
            return False
        if cut[0]:
            self._judge(cut)
        else:
            self._at, self._line_no = cut[1], self._line_no + 1  # A blank line is no row.
        return True

    def _judge(self, cut: _Cut) -> None:
        raw, end, lines, cells, code, column = cut
        offset, batch = self._base + self._at, self._batch
        judged = self._rules.judge(raw, cells, code, column, offset)
        if isinstance(judged, bytes):
            self._accept(judged, raw, 1, end - self._at, lines)
            return
        batch.gaps.append(batch.accepted)
        self._row_no += 1
        batch.rejects.append(
            Reject(self._row_no, self._line_no, offset, *judged, raw[:ROW_BYTES_MAX])
        )
        self._at = end
        self._line_no += lines

    def _accept(self, stored: bytes, raw: bytes, rows: int, size: int, lines: int) -> None:
        batch = self._batch
        batch.copy.append(stored)
        batch.accepted += rows
        offset = self._base + self._at
        batch._pieces.append((self._row_no + 1, self._line_no, offset, rows, raw))
        self._at += size
        self._row_no += rows
        self._line_no += lines


def _without_eol(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")


# ---- Where a record ends ----


class _Cutter:
    """Finds record ends. A record that is not well-formed is its first line, no more.

    So an unclosed quote costs one line, and the lines after it are read as if it were not there.
    """

    def __init__(self, layout: Layout) -> None:
        self._delimiter = layout.delimiter.encode()
        self._quote = layout.quote.encode()
        self._columns = len(layout.fields)
        self._record = record_pattern(layout.delimiter, layout.quote)
        self._last_record = record_pattern(layout.delimiter, layout.quote, is_last=True)
        q, d = re.escape(layout.quote), re.escape(layout.delimiter)
        quoted = f"{q}[^{q}]*+(?:{q}{q}[^{q}]*+)*+{q}"
        self._cell = re.compile(f"({quoted}|[^{q}{d}\\r\\n]*+)(?:{d}|\\Z)".encode())
        self._quoted = re.compile(quoted.encode())

    def record(self, buffer: bytes, at: int, is_last: bool) -> _Cut | None:
        line_end = buffer.find(b"\n", at, at + LINE_BYTES_MAX + 1)
        if line_end < 0:
            if len(buffer) - at > LINE_BYTES_MAX:
                raise FileRefused(FileCode.LINE_ENDLESS)
            if not is_last or at == len(buffer):
                return None
            return self._cut_line(buffer, at, buffer[at:], len(buffer), is_last)
        return self._cut_line(buffer, at, buffer[at:line_end], line_end + 1, is_last)

    def _cut_line(
        self, buffer: bytes, at: int, line: bytes, end: int, is_last: bool
    ) -> _Cut | None:
        if line.endswith(b"\r"):
            line = line[:-1]
        if len(line) > ROW_BYTES_MAX:
            return line, end, 1, None, RowCode.ROW_TOO_LONG, -1
        if self._quote in line:
            return self._quoted_record(buffer, at, line, end, is_last)
        if b"\r" in line:
            return self._malformed(line, end)
        return line, end, 1, line.split(self._delimiter), None, 0

    def _quoted_record(
        self, buffer: bytes, at: int, line: bytes, line_end: int, is_last: bool
    ) -> _Cut | None:
        reach = at + ROW_BYTES_MAX + 2
        if not is_last and len(buffer) < reach:
            matched = self._record.match(buffer, at)
            if matched is None:
                return None  # Whether the quote closes may depend on what is still to come.
        else:
            is_end = is_last and len(buffer) <= reach
            pattern = self._last_record if is_end else self._record
            matched = pattern.match(buffer, at, reach)
        if matched is None or len(matched.group("record")) > ROW_BYTES_MAX:
            return self._malformed(line, line_end)
        raw = matched.group("record")
        cells = self._cells(raw)
        lines = raw.count(b"\n") + 1
        if lines > 1 and len(cells) != self._columns:
            # A stray quote met another one further down: do not lose the lines between.
            return line, line_end, 1, None, RowCode.UNCLOSED_QUOTE, len(cells) - 1
        return raw, matched.end(), lines, cells, None, 0

    def _cells(self, record: bytes) -> list[bytes]:
        cells = self._cell.findall(record + self._delimiter)
        return [self._bare(cell) for cell in cells[:-1]]  # The last is what follows the end.

    def _bare(self, cell: bytes) -> bytes:
        quote = self._quote
        return cell[1:-1].replace(quote * 2, quote) if cell.startswith(quote) else cell

    def _malformed(self, line: bytes, end: int) -> _Cut:
        """Say what is wrong with a line on its own, and in which column."""
        at = column = 0
        while matched := self._cell.match(line, at):
            if matched.end() == len(line) and not matched.group().endswith(self._delimiter):
                break
            at, column = matched.end(), column + 1
        code = self._fault(line, at)
        return line, end, 1, None, code, column

    def _fault(self, line: bytes, at: int) -> RowCode:
        if line.startswith(self._quote, at):
            is_closed = self._quoted.match(line, at) is not None
            return RowCode.TEXT_AFTER_QUOTE if is_closed else RowCode.UNCLOSED_QUOTE
        quote, carriage_return = line.find(self._quote, at), line.find(b"\r", at)
        if carriage_return >= 0 and (quote < 0 or carriage_return < quote):
            return RowCode.VALUE_CHARACTERS
        return RowCode.BARE_QUOTE


# ---- What a record holds ----

_Refusal = tuple[str, str, str]
_Match = Callable[[bytes, int, int], re.Match[bytes] | None]
_VALUE_REFUSALS = {code: (str(code), message) for code, message in members.MESSAGES.items()}


class RowRules:
    """The rules of one file's rows: the expression for whole runs, and a judge for each value."""

    def __init__(self, layout: Layout, org: members.OrgRules) -> None:
        self.delimiter = layout.delimiter.encode()
        self._quote = layout.quote.encode()
        self._special = re.compile(b"[\\r\\n" + re.escape(self.delimiter + self._quote) + b"]")
        self._ignored = [i for i, name in enumerate(layout.fields) if name == IGNORED]
        self._layout = layout
        self._check = org.number.check_digit
        excluded = layout.delimiter + layout.quote
        sources = [_source(name, layout, org, excluded) for name in layout.fields]
        self._canonical = [
            # A check digit is no matter of form, so such numbers always go to their judge.
            _never
            if self._check is not members.CheckDigit.NONE and name == "member_number"
            else re.compile(source).fullmatch
            for name, source in zip(layout.fields, sources, strict=True)
        ]
        self._judges = [judge_of(name, org) for name in layout.fields]
        self._number_at = layout.fields.index("member_number")
        record = re.escape(self.delimiter).join(sources) + layout.eol
        self._runs: list[tuple[int, _Match]] = [
            (rows, re.compile(b"(?:%b){1,%d}+" % (record, rows)).match) for rows in RUN_ROWS
        ]
        self._numbers = _column_pattern(self._number_at, self.delimiter)
        self._number_holds: Callable[[bytes], bool] = (
            members.luhn_holds
            if self._check is members.CheckDigit.LUHN
            else lambda number: members.check_digit_holds(number.decode(), self._check)
        )

    def run(self, rows_left: int) -> tuple[int, _Match]:
        """Return what matches the longest run that fits, and how many records that has at most."""
        for run in self._runs:
            if run[0] <= rows_left:
                return run
        raise ValueError("a run has at least one row")

    def run_holds(self, run: bytes) -> bool:
        """Judge what the expression cannot: letters beyond ASCII, and check digits."""
        if not members.is_plain_text(run):
            return False
        if self._check is members.CheckDigit.NONE:
            return True
        return all(map(self._number_holds, self._numbers.findall(run)))

    def judge(
        self,
        raw: bytes,
        cells: list[bytes] | None,
        code: RowCode | None,
        column: int,
        byte_offset: int,
    ) -> bytes | _Refusal:
        """Return the record as it is stored, ready for COPY; or the column, code and message."""
        if cells is None or code is not None:
            return self._refused(column, code or RowCode.UNCLOSED_QUOTE)
        is_ascii = raw.isascii()
        if b"\0" in raw or not (is_ascii or _is_utf8(raw)):
            return self._wrong_bytes(cells, raw, byte_offset)
        found, wanted = len(cells), len(self._judges)
        if found != wanted:
            return self._refused(-1, RowCode.COLUMN_COUNT, found=found, wanted=wanted)
        if len(raw) > FIELD_BYTES_MAX:
            for index, cell in enumerate(cells):
                if len(cell) > FIELD_BYTES_MAX:
                    return self._refused(index, RowCode.FIELD_TOO_LONG)
        return self._values(cells, is_ascii)

    def _values(self, cells: list[bytes], is_ascii: bool) -> bytes | _Refusal:
        for index, (cell, is_canonical) in enumerate(zip(cells, self._canonical, strict=True)):
            if is_canonical(cell) is None or not (is_ascii or cell.isascii()):
                try:
                    cells[index] = self._judges[index](cell.decode()).encode()
                    if not cells[index] and self._layout.fields[index] in self._layout.required:
                        raise members.FieldRefused(members.Code.VALUE_MISSING)
                except members.FieldRefused as refused:
                    return self._layout.headers[index], *_VALUE_REFUSALS[refused.code]
        return self._written(cells)

    def _written(self, cells: list[bytes]) -> bytes:
        for index in self._ignored:
            cells[index] = b""
        if self._special.search(b"".join(cells)) is not None:
            cells = [self._quoted(cell) for cell in cells]
        return self.delimiter.join(cells) + self._layout.eol

    def _quoted(self, cell: bytes) -> bytes:
        if self._special.search(cell) is None:
            return cell
        return self._quote + cell.replace(self._quote, self._quote * 2) + self._quote

    def _wrong_bytes(self, cells: Sequence[bytes], raw: bytes, byte_offset: int) -> _Refusal:
        for index, cell in enumerate(cells):
            if b"\0" in cell:
                return self._refused(index, RowCode.NUL_BYTE)
            if not _is_utf8(cell):
                at = byte_offset + _first_wrong_byte(raw)
                return self._refused(index, RowCode.INVALID_UTF8, at=at)
        raise AssertionError("the record holds a wrong byte, so one of its cells does")

    def _refused(self, column: int, code: RowCode, **facts: int) -> _Refusal:
        headers = self._layout.headers
        name = headers[column] if 0 <= column < len(headers) else ""
        message = ROW_MESSAGES[code]
        return name, str(code), message.format(**facts) if facts else message


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _first_wrong_byte(raw: bytes) -> int:
    try:
        raw.decode()
    except UnicodeDecodeError as wrong:
        return wrong.start
    return 0


def _never(cell: bytes) -> None:
    return None


def _source(name: str, layout: Layout, org: members.OrgRules, excluded: str) -> bytes:
    if name == IGNORED:
        spared = re.escape(excluded.encode())
        return b"[^\\x00-\\x1f\\x7f%b]{0,%d}+" % (spared, _ignored_bytes(layout))
    source = members.canonical(name, org, excluded)
    if name in layout.required and name != "member_number":
        return b"(?=[^%b\\r\\n])%b" % (re.escape(layout.delimiter.encode()), source)
    return source


def _ignored_bytes(layout: Layout) -> int:
    """So much that a whole record keeps within ROW_BYTES_MAX; longer ones go the slow way."""
    ignored = layout.fields.count(IGNORED)
    others = (len(layout.fields) - ignored) * (members.ATTRIBUTE_VALUE_CHARS_MAX + 1)
    return max(min(_IGNORED_BYTES_MAX, (ROW_BYTES_MAX - others) // ignored - 1), 0)


def _column_pattern(index: int, delimiter: bytes) -> re.Pattern[bytes]:
    cell = b"[^\\n%b]*+" % re.escape(delimiter)
    before = b"(?:%b%b){%d}" % (cell, re.escape(delimiter), index)
    return re.compile(b"%b(%b)[^\\n]*+\\n" % (before, cell.replace(b"\\n", b"\\r\\n")))


# ---- Writing CSV ----

FORMULA_MARKS = ("=", "+", "-", "@", "\t", "\r")
_TELEPHONE = re.compile(r"\+[1-9][0-9]{6,14}")


def neutralised(cell: str) -> str:
    """Keep a spreadsheet from running a cell. A telephone number in E.164 cannot be run."""
    if cell.startswith(FORMULA_MARKS) and _TELEPHONE.fullmatch(cell) is None:
        return "'" + cell
    return cell


def csv_line(cells: Iterable[str], delimiter: str = ",", quote: str = '"') -> str:
    """Write one record for people's spreadsheets: neutralised, ended by CRLF."""
    line = io.StringIO()
    writer = csv.writer(line, delimiter=delimiter, quotechar=quote)
    writer.writerow([neutralised(cell) for cell in cells])
    return line.getvalue()


def rejects_header(layout: Layout) -> str:
    headers = (*layout.headers, "reject_code", "reject_message")
    return csv_line(headers, layout.delimiter, layout.quote)


def rejects_line(layout: Layout, raw: bytes, code: str, message: str) -> str:
    """Write a rejected record with all its columns, to be corrected and sent again."""
    cells = original_cells(layout, raw)
    return csv_line((*cells, code, message), layout.delimiter, layout.quote)


def original_cells(layout: Layout, raw: bytes) -> list[str]:
    """Return as many cells as the header has, whatever shape the record is in."""
    text = raw.decode(errors="replace").replace("\0", "\ufffd")
    cells = _lenient_cells(text, layout)
    wanted = len(layout.headers)
    if len(cells) > wanted:
        cells = [*cells[: wanted - 1], layout.delimiter.join(cells[wanted - 1 :])]
    return cells + [""] * (wanted - len(cells))


def _lenient_cells(text: str, layout: Layout) -> list[str]:
    pattern = record_pattern(layout.delimiter, layout.quote, is_last=True)
    if pattern.fullmatch(text.encode()) is None:
        return text.split(layout.delimiter)
    reader = csv.reader([text], delimiter=layout.delimiter, quotechar=layout.quote)
    return next(reader, [""])


_EXAMPLE = {
    "member_number": "M-0001042",
    "given_name": "Ann",
    "family_name": "Example",
    "email": "ann@example.com",
    "phone": "+12125550123",
    "date_of_birth": "1980-02-29",
    "plan": "",
    "status": "ACTIVE",
    "effective_from": "2026-01-01",
    "effective_to": "",
}


def template() -> str:
    """Return a header line and an example."""
    return csv_line(FIELDS) + csv_line(_EXAMPLE[name] for name in FIELDS)
