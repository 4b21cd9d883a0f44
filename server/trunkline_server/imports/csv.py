"""Reading a CSV file of any size, cut anywhere, with every record either stored or explained.

Two ways, one rule. Records that are stored as they stand are swallowed in runs by one expression
made from the rules and go on unmodified; every other record is cut, judged value by value, and is
either written anew or rejected. How the file is cut into chunks changes nothing.
"""

from __future__ import annotations

import csv
import io
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
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
RUN_ROWS = 1024
SHORT_RUN_ROWS = 16
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


class _Piece(NamedTuple):
    row_no: int
    line_no: int
    byte_offset: int
    rows: int
    raw: bytes


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
        index = bisect_right(self._pieces, row_no, key=lambda piece: piece.row_no) - 1
        piece = self._pieces[index]
        if index < 0 or row_no >= piece.row_no + piece.rows:
            raise KeyError(row_no)
        if piece.rows == 1:
            return Located(row_no, piece.line_no, piece.byte_offset, _without_eol(piece.raw))
        lines = piece.raw.split(b"\n", row_no - piece.row_no + 1)
        before = row_no - piece.row_no
        offset = piece.byte_offset + sum(map(len, lines[:before])) + before
        return Located(row_no, piece.line_no + before, offset, _without_eol(lines[before]))


class _Line(NamedTuple):
    """A record that the expression did not swallow, cut out but not judged."""

    raw: bytes
    end: int
    lines: int
    cells: list[bytes] | None
    code: RowCode | None
    column: int


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
    ) -> None:
        self._rules = RowRules(layout, org)
        self._cut = _Cutter(layout)
        self._batch_rows = batch_rows
        self._rows_max = rows_max
        self._buffer = b""
        self._at = 0
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._cursor = start or layout.first
        self._batch = Batch(self._cursor, self._cursor)

    def feed(self, chunk: bytes) -> list[Batch]:
        """Take the bytes that follow and return the batches they complete."""
        self._waiting.append(chunk)
        self._waiting_bytes += len(chunk)
        if self._waiting_bytes < READ_AHEAD_BYTES:
            return []
        return list(self._read(is_last=False))

    def finish(self) -> list[Batch]:
        """Say that the file ends here and return the batches that are left."""
        batches = list(self._read(is_last=True))
        if self._batch.rows or self._batch.end != self._batch.start:
            batches.append(self._batch)
            self._batch = Batch(self._cursor, self._cursor)
        return batches

    def _read(self, *, is_last: bool) -> Iterator[Batch]:
        self._buffer = b"".join((self._buffer[self._at :], *self._waiting))
        self._waiting, self._waiting_bytes, self._at = [], 0, 0
        while True:
            self._take_runs()
            if self._is_full() or not self._take_record(is_last):
                if not self._is_full():
                    return
                yield self._batch
                self._batch = Batch(self._cursor, self._cursor)

    def _is_full(self) -> bool:
        batch = self._batch
        return (
            batch.rows >= self._batch_rows
            or batch.end.byte_offset - batch.start.byte_offset >= BATCH_BYTES_MAX
        )

    def _take_runs(self) -> None:
        """Swallow records that are stored as they stand."""
        while not self._is_full():
            left = self._batch_rows - self._batch.rows
            matched = self._rules.run(left).match(self._buffer, self._at, self._window_end())
            if matched is None:
                return
            run = matched.group()
            if self._rules.run_holds(run):
                self._accept_run(run)
            else:
                self._take_each(run)

    def _window_end(self) -> int:
        """How far the batch may reach, so that its size does not depend on the chunks."""
        spent = self._batch.end.byte_offset - self._batch.start.byte_offset
        return self._at + BATCH_BYTES_MAX - spent

    def _take_each(self, run: bytes) -> None:
        """Go through a run that holds a row which the expression could not judge to the end."""
        stretch: list[bytes] = []
        for line in run.splitlines(keepends=True):
            if self._rules.run_holds(line):
                stretch.append(line)
                continue
            if stretch:
                self._accept_run(b"".join(stretch))
                stretch = []
            cells = _without_eol(line).split(self._rules.delimiter)
            self._judge(_Line(_without_eol(line), self._at + len(line), 1, cells, None, 0))
        if stretch:
            self._accept_run(b"".join(stretch))

    def _accept_run(self, run: bytes) -> None:
        rows, cursor = run.count(b"\n"), self._cursor
        self._batch.copy.append(run)
        self._batch.accepted += rows
        self._batch._pieces.append(
            _Piece(cursor.row_no + 1, cursor.line_no, cursor.byte_offset, rows, run)
        )
        self._advance(len(run), rows, rows)

    def _take_record(self, is_last: bool) -> bool:
        """Take one record the slow way. False: it is not all there yet, or nothing is left."""
        line = self._cut.record(self._buffer, self._at, is_last)
        if line is None:
            return False
        if line.cells == [b""] and not line.raw:
            self._advance(line.end - self._at, 0, 1)  # A blank line is no row.
        else:
            self._judge(line)
        return True

    def _judge(self, line: _Line) -> None:
        cursor, batch = self._cursor, self._batch
        judged = self._rules.judge(line, cursor.byte_offset)
        if isinstance(judged, bytes):
            piece = _Piece(cursor.row_no + 1, cursor.line_no, cursor.byte_offset, 1, line.raw)
            batch._pieces.append(piece)
            batch.copy.append(judged)
            batch.accepted += 1
        else:
            batch.gaps.append(batch.accepted)
            where = (cursor.row_no + 1, cursor.line_no, cursor.byte_offset)
            batch.rejects.append(Reject(*where, *judged, line.raw[:ROW_BYTES_MAX]))
        self._advance(line.end - self._at, 1, line.lines)

    def _advance(self, size: int, rows: int, lines: int) -> None:
        cursor = self._cursor
        self._at += size
        self._cursor = Cursor(
            cursor.byte_offset + size, cursor.row_no + rows, cursor.line_no + lines
        )
        self._batch.end = self._cursor
        if self._cursor.row_no > self._rows_max:
            raise FileRefused(FileCode.TOO_MANY_ROWS, str(self._rows_max))


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

    def record(self, buffer: bytes, at: int, is_last: bool) -> _Line | None:
        line_end = buffer.find(b"\n", at, at + LINE_BYTES_MAX + 1)
        if line_end < 0:
            if len(buffer) - at > LINE_BYTES_MAX:
                raise FileRefused(FileCode.LINE_ENDLESS)
            if not is_last or at == len(buffer):
                return None
        end = len(buffer) if line_end < 0 else line_end + 1
        line = _without_eol(buffer[at:end])
        if len(line) > ROW_BYTES_MAX:
            return _Line(line, end, 1, None, RowCode.ROW_TOO_LONG, -1)
        if self._quote not in line:
            if b"\r" in line:
                return self._malformed(line, end)
            return _Line(line, end, 1, line.split(self._delimiter), None, 0)
        return self._quoted_record(buffer, at, line, end, is_last)

    def _quoted_record(
        self, buffer: bytes, at: int, line: bytes, line_end: int, is_last: bool
    ) -> _Line | None:
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
        cells = self._cells(matched.group("record"))
        lines = matched.group().count(b"\n") or 1
        if lines > 1 and len(cells) != self._columns:
            # A stray quote met another one further down: do not lose the lines between.
            return _Line(line, line_end, 1, None, RowCode.UNCLOSED_QUOTE, len(cells) - 1)
        return _Line(matched.group("record"), matched.end(), lines, cells, None, 0)

    def _cells(self, record: bytes) -> list[bytes]:
        cells = self._cell.findall(record + self._delimiter)
        return [self._bare(cell) for cell in cells[:-1]]  # The last is what follows the end.

    def _bare(self, cell: bytes) -> bytes:
        quote = self._quote
        return cell[1:-1].replace(quote * 2, quote) if cell.startswith(quote) else cell

    def _malformed(self, line: bytes, end: int) -> _Line:
        """Say what is wrong with a line on its own, and in which column."""
        at = column = 0
        while matched := self._cell.match(line, at):
            if matched.end() == len(line) and not matched.group().endswith(self._delimiter):
                break
            at, column = matched.end(), column + 1
        code = self._fault(line, at)
        return _Line(line, end, 1, None, code, column)

    def _fault(self, line: bytes, at: int) -> RowCode:
        if line.startswith(self._quote, at):
            is_closed = self._quoted.match(line, at) is not None
            return RowCode.TEXT_AFTER_QUOTE if is_closed else RowCode.UNCLOSED_QUOTE
        quote, carriage_return = line.find(self._quote, at), line.find(b"\r", at)
        if carriage_return >= 0 and (quote < 0 or carriage_return < quote):
            return RowCode.VALUE_CHARACTERS
        return RowCode.BARE_QUOTE


# ---- What a record holds ----

_Verdict = tuple[str, str, str]


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
        self._canonical = [re.compile(source).fullmatch for source in sources]
        self._judges = [judge_of(name, org) for name in layout.fields]
        self._number_at = layout.fields.index("member_number")
        record = re.escape(self.delimiter).join(sources) + layout.eol
        self._runs = [
            (rows, re.compile(b"(?:%b){1,%d}+" % (record, rows)))
            for rows in (RUN_ROWS, SHORT_RUN_ROWS, 1)
        ]
        self._numbers = _column_pattern(self._number_at, self.delimiter)
        self._number_holds: Callable[[bytes], bool] = (
            members.luhn_holds
            if self._check is members.CheckDigit.LUHN
            else lambda number: members.check_digit_holds(number.decode(), self._check)
        )

    def run(self, rows_max: int) -> re.Pattern[bytes]:
        """Return the expression for the longest runs of at most so many records."""
        for rows, pattern in self._runs:
            if rows <= rows_max:
                return pattern
        raise ValueError("a run has at least one row")

    def run_holds(self, run: bytes) -> bool:
        """Judge what the expression cannot: letters beyond ASCII, and check digits."""
        if not members.is_plain_text(run):
            return False
        if self._check is members.CheckDigit.NONE:
            return True
        return all(map(self._number_holds, self._numbers.findall(run)))

    def judge(self, line: _Line, byte_offset: int) -> bytes | _Verdict:
        """Return the record as it is stored, ready for COPY; or the column, code and message."""
        cells = line.cells
        if cells is None:
            return self._refused(line.column, line.code or RowCode.UNCLOSED_QUOTE)
        if not line.raw.isascii() or b"\0" in line.raw:
            refused = self._wrong_bytes(cells, line.raw, byte_offset)
            if refused is not None:
                return refused
        if len(cells) != len(self._judges):
            found, wanted = len(cells), len(self._judges)
            return self._refused(-1, RowCode.COLUMN_COUNT, found=found, wanted=wanted)
        if len(line.raw) > FIELD_BYTES_MAX:
            for index, cell in enumerate(cells):
                if len(cell) > FIELD_BYTES_MAX:
                    return self._refused(index, RowCode.FIELD_TOO_LONG)
        return self._values(cells)

    def _values(self, cells: list[bytes]) -> bytes | _Verdict:
        has_check = self._check is not members.CheckDigit.NONE
        stored = cells
        for index, cell in enumerate(cells):
            if (
                self._canonical[index](cell)
                and cell.isascii()
                and not (has_check and index == self._number_at)
            ):
                continue
            try:
                value = self._judges[index](cell.decode())
                if not value and self._layout.fields[index] in self._layout.required:
                    raise members.FieldRefused(members.Code.VALUE_MISSING)
            except members.FieldRefused as refused:
                column = self._layout.headers[index]
                return column, refused.code.value, members.MESSAGES[refused.code]
            if stored is cells:
                stored = list(cells)
            stored[index] = value.encode()
        return self._written(stored)

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

    def _wrong_bytes(self, cells: Sequence[bytes], raw: bytes, byte_offset: int) -> _Verdict | None:
        for index, cell in enumerate(cells):
            if b"\0" in cell:
                return self._refused(index, RowCode.NUL_BYTE)
            try:
                cell.decode()
            except UnicodeDecodeError:
                at = byte_offset + _first_wrong_byte(raw)
                return self._refused(index, RowCode.INVALID_UTF8, at=at)
        return None

    def _refused(self, column: int, code: RowCode, **facts: int) -> _Verdict:
        headers = self._layout.headers
        name = headers[column] if 0 <= column < len(headers) else ""
        return name, code.value, ROW_MESSAGES[code].format(**facts)


def _first_wrong_byte(raw: bytes) -> int:
    try:
        raw.decode()
    except UnicodeDecodeError as wrong:
        return wrong.start
    return 0


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
