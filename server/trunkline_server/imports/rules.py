"""What a CSV file must look like: its first line, its columns, and the codes for what is wrong.

How a row's values are judged is the members' business (members/rules.py); nothing is repeated
here. Nothing here reads a file: callers pass the bytes.
"""

from __future__ import annotations

import csv
import enum
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from trunkline_server.members import rules as members

ROW_BYTES_MAX = 64 << 10
FIELD_BYTES_MAX = 16 << 10
LINE_BYTES_MAX = 1 << 20
COLUMNS_MAX = 200
ROWS_MAX = 10_000_000
MARK = "\ufeff".encode()

DELIMITERS = (",", ";", "\t", "|")
QUOTES = ('"', "'")

FIELDS = (
    "member_number",
    "given_name",
    "family_name",
    "email",
    "phone",
    "date_of_birth",
    "plan",
    "status",
    "effective_from",
    "effective_to",
)
ATTRIBUTE_PREFIX = "attributes."
IGNORED = ""

ALIASES: Mapping[str, str] = {
    "member_no": "member_number",
    "membership_number": "member_number",
    "number": "member_number",
    "first_name": "given_name",
    "forename": "given_name",
    "last_name": "family_name",
    "surname": "family_name",
    "mail": "email",
    "e_mail": "email",
    "email_address": "email",
    "telephone": "phone",
    "phone_number": "phone",
    "mobile": "phone",
    "dob": "date_of_birth",
    "birth_date": "date_of_birth",
    "birthdate": "date_of_birth",
    "start_date": "effective_from",
    "valid_from": "effective_from",
    "end_date": "effective_to",
    "valid_to": "effective_to",
    "expires": "effective_to",
}


class RowCode(enum.StrEnum):
    """Why a record was refused as a record. Values are refused with members.rules.Code."""

    INVALID_UTF8 = "INVALID_UTF8"
    NUL_BYTE = "NUL_BYTE"
    UNCLOSED_QUOTE = "UNCLOSED_QUOTE"
    TEXT_AFTER_QUOTE = "TEXT_AFTER_QUOTE"
    BARE_QUOTE = "BARE_QUOTE"
    VALUE_CHARACTERS = "VALUE_CHARACTERS"
    COLUMN_COUNT = "COLUMN_COUNT"
    FIELD_TOO_LONG = "FIELD_TOO_LONG"
    ROW_TOO_LONG = "ROW_TOO_LONG"


ROW_MESSAGES: Mapping[RowCode, str] = {
    RowCode.INVALID_UTF8: "The row is not UTF-8: the first wrong byte is byte {at} of the file.",
    RowCode.NUL_BYTE: "There is a NUL byte in the row.",
    RowCode.UNCLOSED_QUOTE: "A quoted field does not end as it should. Reading went on with the "
    "next line.",
    RowCode.TEXT_AFTER_QUOTE: "There is text between a closing quote and the next delimiter.",
    RowCode.BARE_QUOTE: "There is a quote inside a field that does not begin with one.",
    RowCode.VALUE_CHARACTERS: "There is a carriage return inside an unquoted field.",
    RowCode.COLUMN_COUNT: "The row has {found} columns and the header {wanted}.",
    RowCode.FIELD_TOO_LONG: f"A field is longer than {FIELD_BYTES_MAX} bytes.",
    RowCode.ROW_TOO_LONG: f"The row is longer than {ROW_BYTES_MAX} bytes.",
}


class FileCode(enum.StrEnum):
    """Why a file was refused as a whole."""

    EMPTY = "EMPTY"
    ZIP = "ZIP"
    XLSX = "XLSX"
    XLS = "XLS"
    GZIP = "GZIP"
    PDF = "PDF"
    UTF16 = "UTF16"
    NOT_UTF8 = "NOT_UTF8"
    NUL_BYTE = "NUL_BYTE"
    BARE_CR = "BARE_CR"
    HEADER_TOO_LONG = "HEADER_TOO_LONG"
    HEADER_MALFORMED = "HEADER_MALFORMED"
    TOO_MANY_COLUMNS = "TOO_MANY_COLUMNS"
    DUPLICATE_COLUMN = "DUPLICATE_COLUMN"
    MISSING_COLUMN = "MISSING_COLUMN"
    UNKNOWN_FIELD = "UNKNOWN_FIELD"
    TOO_MANY_ATTRIBUTES = "TOO_MANY_ATTRIBUTES"
    DELIMITER = "DELIMITER"
    LINE_ENDLESS = "LINE_ENDLESS"
    TOO_MANY_ROWS = "TOO_MANY_ROWS"


FILE_MESSAGES: Mapping[FileCode, str] = {
    FileCode.EMPTY: "The file is empty.",
    FileCode.ZIP: "The file is a ZIP archive. Unpack it and send the CSV file.",
    FileCode.XLSX: "The file is an Excel workbook (xlsx). Save it as CSV UTF-8.",
    FileCode.XLS: "The file is an old Excel workbook (xls). Save it as CSV UTF-8.",
    FileCode.GZIP: "The file is compressed with gzip. Unpack it and send the CSV file.",
    FileCode.PDF: "The file is a PDF. Send a CSV file.",
    FileCode.UTF16: "The file is encoded in UTF-16. Save it as UTF-8.",
    FileCode.NOT_UTF8: "The header line is not UTF-8. Save the file as UTF-8.",
    FileCode.NUL_BYTE: "The header line holds a NUL byte. Send a text file.",
    FileCode.BARE_CR: "The lines end in bare carriage returns (CR). End them in LF or CRLF.",
    FileCode.HEADER_TOO_LONG: f"The header line is longer than {ROW_BYTES_MAX} bytes.",
    FileCode.HEADER_MALFORMED: "The header line's quotes do not match.",
    FileCode.TOO_MANY_COLUMNS: f"There are more than {COLUMNS_MAX} columns.",
    FileCode.DUPLICATE_COLUMN: "Two columns are the same.",
    FileCode.MISSING_COLUMN: "A required column is missing.",
    FileCode.UNKNOWN_FIELD: "The mapping names a field that members do not have.",
    FileCode.TOO_MANY_ATTRIBUTES: f"There are more than {members.ATTRIBUTES_MAX} attributes.",
    FileCode.DELIMITER: "The delimiter or quote is not one that is supported.",
    FileCode.LINE_ENDLESS: f"A line is longer than {LINE_BYTES_MAX} bytes.",
    FileCode.TOO_MANY_ROWS: "The file has more rows than the organisation may import at once.",
}


class FileRefused(ValueError):
    """The file cannot be imported. subject names the column or character it turns on."""

    def __init__(self, code: FileCode, subject: str = "") -> None:
        super().__init__(f"{FILE_MESSAGES[code]} ({subject})" if subject else FILE_MESSAGES[code])
        self.code = code
        self.subject = subject


@dataclass(frozen=True, slots=True)
class Cursor:
    """A record boundary: bytes before it, data rows before it, and the line that follows it."""

    byte_offset: int = 0
    row_no: int = 0
    line_no: int = 1


@dataclass(frozen=True, slots=True)
class Spec:
    """What the sender said about the file. Columns map a header to a field; "" ignores it.

    Without a header, positions names the field of each column in order.
    """

    delimiter: str = ""
    quote: str = '"'
    has_header: bool = True
    columns: Mapping[str, str] = field(default_factory=dict)
    positions: tuple[str, ...] = ()
    required: frozenset[str] = frozenset({"member_number"})


@dataclass(frozen=True, slots=True)
class Layout:
    """The file's dialect and columns, as found. fields[i] is what column i holds, "" if ignored."""

    delimiter: str
    quote: str
    eol: bytes
    headers: tuple[str, ...]
    fields: tuple[str, ...]
    required: frozenset[str]
    first: Cursor

    @property
    def ignored(self) -> tuple[str, ...]:
        pairs = zip(self.headers, self.fields, strict=True)
        return tuple(header for header, name in pairs if name == IGNORED)

    def staging_columns(self) -> list[tuple[str, str]]:
        """Return (column, SQL type) in the file's order, for a table that COPY fills as it is."""
        return [(staging_name(i, name), _sql_type(name)) for i, name in enumerate(self.fields)]

    def attribute_columns(self) -> dict[str, str]:
        """Return each attribute key with its staging column."""
        return {
            name.removeprefix(ATTRIBUTE_PREFIX): staging_name(i, name)
            for i, name in enumerate(self.fields)
            if name.startswith(ATTRIBUTE_PREFIX)
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "delimiter": self.delimiter,
            "quote": self.quote,
            "eol": self.eol.decode(),
            "headers": list(self.headers),
            "fields": list(self.fields),
            "required": sorted(self.required),
            "first": [self.first.byte_offset, self.first.row_no, self.first.line_no],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Layout:
        return cls(
            delimiter=stored["delimiter"],
            quote=stored["quote"],
            eol=stored["eol"].encode(),
            headers=tuple(stored["headers"]),
            fields=tuple(stored["fields"]),
            required=frozenset(stored["required"]),
            first=Cursor(*stored["first"]),
        )


def staging_name(index: int, field_name: str) -> str:
    if field_name in FIELDS:
        return field_name
    return f"attribute_{index}" if field_name else f"ignored_{index}"


def _sql_type(field_name: str) -> str:
    return "date" if field_name in ("date_of_birth", "effective_from", "effective_to") else "text"


# ---- One value ----

Judge = Callable[[str], str]


def judge_of(field_name: str, org: members.OrgRules) -> Judge:
    """Return the rule that turns a column's text into what is stored, as text."""
    match field_name:
        case "member_number":
            return lambda raw: members.member_number(raw, org.number)
        case "given_name" | "family_name":
            return members.name
        case "email":
            return members.email
        case "phone":
            return lambda raw: members.phone(raw, org.phone_region)
        case "date_of_birth":
            return lambda raw: _iso(members.date_of_birth(raw))
        case "effective_from" | "effective_to":
            return lambda raw: _iso(members.effective_date(raw))
        case "plan":
            return lambda raw: members.plan(raw, org)
        case "status":
            return lambda raw: members.status(raw) or ""
        case "":
            return lambda raw: ""
        case _:
            return members.attribute_value


def _iso(day: date | None) -> str:
    return "" if day is None else day.isoformat()


# ---- The first line ----

_SIGNATURES: tuple[tuple[bytes, FileCode], ...] = (
    (b"\x1f\x8b", FileCode.GZIP),
    (b"\xd0\xcf\x11\xe0", FileCode.XLS),
    (b"%PDF-", FileCode.PDF),
    (b"\xff\xfe", FileCode.UTF16),
    (b"\xfe\xff", FileCode.UTF16),
)


def read_layout(head: bytes, spec: Spec, *, is_whole: bool) -> Layout | None:
    """Judge the file's beginning. None: the header line is not there yet, come with more.

    head must start at the file's first byte; more than ROW_BYTES_MAX of it is never needed.
    """
    if len(head) < 8 and not is_whole:
        return None
    _refuse_other_formats(head)
    start = len(MARK) if head.startswith(MARK) else 0
    line_no = 1
    while blank := re.compile(rb"\r?\n").match(head, start):
        start, line_no = blank.end(), line_no + 1
    if start == len(head) and is_whole:
        raise FileRefused(FileCode.EMPTY)
    _check_spec(spec)
    found = _header_record(head, start, spec, is_whole)
    if found is None:
        return None
    return _layout(found, spec, start, line_no)


@dataclass(frozen=True, slots=True)
class _Header:
    delimiter: str
    cells: tuple[str, ...]
    raw: bytes
    eol: bytes


def _refuse_other_formats(head: bytes) -> None:
    if head.startswith(b"PK\x03\x04"):
        is_workbook = b"xl/" in head or b"[Content_Types].xml" in head
        raise FileRefused(FileCode.XLSX if is_workbook else FileCode.ZIP)
    for signature, code in _SIGNATURES:
        if head.startswith(signature):
            raise FileRefused(code)
    if _looks_like_utf16(head[:64]):
        raise FileRefused(FileCode.UTF16)


def _looks_like_utf16(start: bytes) -> bool:
    """Latin text in UTF-16 has a zero in every other byte."""
    even, odd = start[::2], start[1::2]
    return len(start) >= 4 and (
        (not any(even) and all(odd)) or (not any(odd) and all(even) and len(odd) > 1)
    )


def _check_spec(spec: Spec) -> None:
    if spec.delimiter and spec.delimiter not in DELIMITERS:
        raise FileRefused(FileCode.DELIMITER, spec.delimiter)
    if spec.quote not in QUOTES:
        raise FileRefused(FileCode.DELIMITER, spec.quote)
    for name in (*spec.columns.values(), *spec.positions, *spec.required):
        if name and name not in FIELDS and not _is_attribute(name):
            raise FileRefused(FileCode.UNKNOWN_FIELD, name)


def _is_attribute(name: str) -> bool:
    if not name.startswith(ATTRIBUTE_PREFIX):
        return False
    try:
        members.attribute_key(name.removeprefix(ATTRIBUTE_PREFIX))
    except members.FieldRefused:
        return False
    return True


def _header_record(head: bytes, start: int, spec: Spec, is_whole: bool) -> _Header | None:
    candidates = (spec.delimiter,) if spec.delimiter else DELIMITERS
    read = [_read_header(head, start, delimiter, spec.quote, is_whole) for delimiter in candidates]
    whole = [header for header in read if header is not None]
    if not whole:
        _refuse_unread(head, start, is_whole)
        return None
    # The delimiter under which most columns have a known name, then that which gives most.
    return max(whole, key=lambda header: (_known_count(header, spec), len(header.cells)))


def _known_count(header: _Header, spec: Spec) -> int:
    if not spec.has_header:
        return int(len(header.cells) == len(spec.positions))
    return sum(field_of(cell, spec) != IGNORED for cell in header.cells)


def _refuse_unread(head: bytes, start: int, is_whole: bool) -> None:
    window = head[start : start + ROW_BYTES_MAX]
    line_end = window.find(b"\n")
    first_line = window if line_end < 0 else window[:line_end]
    if b"\r" in first_line.removesuffix(b"\r") or (is_whole and first_line.endswith(b"\r")):
        raise FileRefused(FileCode.BARE_CR)
    if len(head) - start > ROW_BYTES_MAX:
        code = FileCode.HEADER_TOO_LONG if line_end < 0 else FileCode.HEADER_MALFORMED
        raise FileRefused(code)
    if is_whole:
        raise FileRefused(FileCode.HEADER_MALFORMED)


def _read_header(
    head: bytes, start: int, delimiter: str, quote: str, is_whole: bool
) -> _Header | None:
    end = start + ROW_BYTES_MAX + 2
    is_last = is_whole and len(head) <= end
    matched = record_pattern(delimiter, quote, is_last=is_last).match(head, start, end)
    if matched is None:
        return None
    record, eol = matched.group("record"), matched.group("eol")
    if b"\0" in record:
        raise FileRefused(FileCode.NUL_BYTE)
    try:
        text = record.decode()
    except UnicodeDecodeError:
        raise FileRefused(FileCode.NOT_UTF8) from None
    reader = csv.reader([text], delimiter=delimiter, quotechar=quote, strict=True)
    cells = tuple(cell.strip() for cell in _one_record(reader))
    return _Header(delimiter, cells, matched.group(), eol)


def _one_record(reader: Iterator[list[str]]) -> list[str]:
    try:
        return next(reader)
    except csv.Error:
        raise FileRefused(FileCode.HEADER_MALFORMED) from None


def _layout(header: _Header, spec: Spec, start: int, line_no: int) -> Layout:
    headers = header.cells if spec.has_header else spec.positions
    if len(headers) > COLUMNS_MAX:
        raise FileRefused(FileCode.TOO_MANY_COLUMNS, str(len(headers)))
    if spec.has_header:
        fields = tuple(field_of(cell, spec) for cell in headers)
        _check_mapped_headers(headers, spec)
    else:
        fields = spec.positions
    _check_fields(headers, fields, spec)
    first = Cursor(start, 0, line_no)
    if spec.has_header:
        first = Cursor(start + len(header.raw), 0, line_no + header.raw.count(b"\n"))
    eol = b"\r\n" if header.eol == b"\r\n" else b"\n"
    required = spec.required | {"member_number"}
    return Layout(header.delimiter, spec.quote, eol, headers, fields, required, first)


def field_of(header: str, spec: Spec) -> str:
    """Return the field a header names: by the sender's mapping, by name, by alias, else ignored."""
    wanted = header.strip().casefold()
    for given, name in spec.columns.items():
        if given.strip().casefold() == wanted:
            return name
    key = header_key(header)
    if key in FIELDS or _is_attribute(key):
        return key
    return ALIASES.get(key, IGNORED)


def header_key(header: str) -> str:
    return re.sub(r"[\s_\-]+", "_", header.strip().casefold())


def _check_mapped_headers(headers: tuple[str, ...], spec: Spec) -> None:
    present = {header.strip().casefold() for header in headers}
    for given in spec.columns:
        if given.strip().casefold() not in present:
            raise FileRefused(FileCode.MISSING_COLUMN, given)


def _check_fields(headers: tuple[str, ...], fields: tuple[str, ...], spec: Spec) -> None:
    for names in ([header_key(h) for h in headers], fields):
        seen: set[str] = set()
        for name, header in zip(names, headers, strict=True):
            if name and name in seen:
                raise FileRefused(FileCode.DUPLICATE_COLUMN, header)
            seen.add(name)
    for name in sorted(spec.required | {"member_number"}):
        if name not in fields:
            raise FileRefused(FileCode.MISSING_COLUMN, name)
    if sum(name.startswith(ATTRIBUTE_PREFIX) for name in fields) > members.ATTRIBUTES_MAX:
        raise FileRefused(FileCode.TOO_MANY_ATTRIBUTES)


def record_pattern(delimiter: str, quote: str, *, is_last: bool = False) -> re.Pattern[bytes]:
    """A well-formed record with its line end. Only the file's last record may lack one."""
    q, d = re.escape(quote), re.escape(delimiter)
    cell = f"(?:{q}[^{q}]*+(?:{q}{q}[^{q}]*+)*+{q}|[^{q}{d}\\r\\n]*+)"
    end = r"\r?\n|\r?\Z" if is_last else r"\r?\n"
    return re.compile(f"(?P<record>{cell}(?:{d}{cell})*+)(?P<eol>{end})".encode())
