"""The parser against a plain model, cut anywhere; and each kind of bad CSV by itself."""

from __future__ import annotations

import csv
import io
import time
from datetime import date

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.imports import model
from trunkline_server.imports.csv import (
    Batch,
    Parser,
    Reject,
    RowRules,
    csv_line,
    neutralised,
    original_cells,
    rejects_header,
    rejects_line,
    template,
)
from trunkline_server.imports.rules import (
    FIELD_BYTES_MAX,
    LINE_BYTES_MAX,
    ROW_BYTES_MAX,
    Cursor,
    FileCode,
    FileRefused,
    Layout,
    Spec,
    read_layout,
)
from trunkline_server.members.rules import CheckDigit, NumberCase, NumberRules, OrgRules

HEADER = (
    b"member_number,given_name,family_name,email,phone,date_of_birth,plan,status,"
    b"effective_from,effective_to,shoe size,attributes.tier\n"
)
PLAIN = OrgRules()
STRICT = OrgRules(
    number=NumberRules(r"[A-Z]{1,2}\d{4,8}|\d{8}", CheckDigit.LUHN, NumberCase.UPPER, " -"),
    phone_region="DE",
    plans={"GOLD": None, "GOLD-2": date(2026, 1, 1), "Größe": None},
)


def layout_of(content: bytes, spec: Spec | None = None) -> Layout:
    layout = read_layout(content, spec or Spec(), is_whole=True)
    assert layout is not None
    return layout


def parse(
    content: bytes,
    org: OrgRules = PLAIN,
    cuts: tuple[int, ...] = (),
    batch_rows: int = 5000,
    layout: Layout | None = None,
) -> list[Batch]:
    layout = layout or layout_of(content)
    parser = Parser(layout, org, batch_rows=batch_rows, read_ahead_bytes=1)
    batches = []
    borders = sorted({min(max(cut, layout.first.byte_offset), len(content)) for cut in cuts})
    start = layout.first.byte_offset
    for border in (*borders, len(content)):
        batches += parser.feed(content[start:border])
        start = border
    return batches + parser.finish()


def stored(layout: Layout, batch: Batch) -> list[tuple[str, ...]]:
    text = io.StringIO(b"".join(batch.copy).decode(), newline="")
    kept = [i for i, name in enumerate(layout.fields) if name]
    rows = csv.reader(text, delimiter=layout.delimiter, quotechar=layout.quote, strict=True)
    return [tuple(row[i] for i in kept) for row in rows]


def accepted(layout: Layout, batches: list[Batch]) -> dict[int, tuple[str, ...]]:
    found = {}
    for batch in batches:
        values = stored(layout, batch)
        assert len(values) == batch.accepted
        for place, row in enumerate(values):
            found[batch.row_no(place)] = row
    return found


def rejects(batches: list[Batch]) -> list[Reject]:
    return [reject for batch in batches for reject in batch.rejects]


# ---- Against the model ----

CELLS = {
    "member_number": ["M1", "a-77", "AB1234", "79927398713", "00000018", "A 0018", "", " X1 ",
                      "Ａ１", "12²", "A\u0430", "1\u200b2", "E\u0301-1", "x" * 65, "-1",
        "MO12345678"],
    "given_name": ["Ann", " Ann", "Jörg", "J\u006f\u0308rg", "=1+1", "@x", "\tx", "O'Brien", "",
                   "x" * 101, "\u202eevil", "שרה", "한글", "李", "a\u0301", "😀", "x, y",
        'say "hi"', "\ue000"],
    "family_name": ["Smith", "two\nlines", "cr\rhere", "Müller ", "\x07", "z\u0301\u0323"],
    "email": ["a@b.example", "A.b@C.Example", "a..b@c.de", "nope", "@x.de", "a@b", "a@-b.de",
        "a@b-.de",
              "x" * 65 + "@a.de", "a@xn--bcher-kva.example", "a@" + "l" * 64 + ".de", "",
        "a|b@c.de"],
    "phone": ["+12125550123", "+1 212 555-0123", "030 123456", "12", "", "+999123456",
        "+44 (0)20 79460000",
              "+1212555012", "++1", "+49301234567890123"],
    "date_of_birth": ["1980-02-29", "2023-02-30", "02/03/2023", "1900-02-29", "1899-12-31",
        "2000-02-29",
                      "2100-01-01", "", " 1980-01-01", "1980-1-1", "２０２３-01-01", "1980-04-31"],
    "plan": ["GOLD", "gold", "GOLD-2", "Größe", "TIN", ""],
    "status": ["ACTIVE", "active", "PENDING", "GONE", "", "ACTIVE "],
    "effective_from": ["2026-01-01", "9999-12-31", "2400-02-29", "2300-02-29", "x", ""],
    "effective_to": ["2026-12-31", "2025-02-29", ""],
    "shoe size": ["44", "anything \u202e", " ", "\x01", "😀", "y" * 5000, ""],
    "attributes.tier": ["a", "=cmd", "\t=1", "x" * 501, "ß", "two\nlines", ""],
}  # fmt: skip
NAMES = list(CELLS)
STARTS = {name: cells[0] for name, cells in CELLS.items()}


def written(cells: list[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue().removesuffix("\r\n").encode()


good_rows = st.just(written(list(STARTS.values())))
mixed_rows = st.fixed_dictionaries(
    {name: st.sampled_from(cells) for name, cells in CELLS.items()}
).map(lambda row: written(list(row.values())))
# One cell away from good, so that each rule is met by itself.
near_rows = st.sampled_from(NAMES).flatmap(
    lambda name: st.one_of(st.sampled_from(CELLS[name]), st.text(max_size=8)).map(
        lambda cell: written([cell if other == name else STARTS[other] for other in NAMES])
    )
)
broken_rows = st.one_of(
    st.binary(max_size=30),
    st.text('",\n\rab ', max_size=20).map(str.encode),
    st.tuples(
        near_rows, st.integers(0, 60), st.sampled_from([b'"', b"\0", b"\xff", b"\r", b","])
    ).map(lambda drawn: drawn[0][: drawn[1]] + drawn[2] + drawn[0][drawn[1] :]),
)
files = st.tuples(
    st.lists(st.one_of(good_rows, near_rows, mixed_rows, broken_rows), max_size=14),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
).map(
    lambda drawn: (
        HEADER.replace(b"\n", drawn[1]) + drawn[1].join(drawn[0]) + (drawn[1] if drawn[2] else b"")
    )
)
orgs = st.sampled_from([PLAIN, STRICT])


@settings(max_examples=400, deadline=None)
@example(HEADER + b"\0\r", PLAIN, [], 1)
@example(HEADER + b'M1,"Ann"\r', PLAIN, [], 1)
@given(files, orgs, st.lists(st.integers(0, 2000), max_size=8), st.integers(1, 6))
def test_any_cut_agrees_with_the_plain_model(
    content: bytes, org: OrgRules, cuts: list[int], batch_rows: int
) -> None:
    layout = layout_of(content)
    wanted = model.read(content, layout, org)
    batches = parse(content, org, tuple(cuts), batch_rows)

    kept = [i for i, name in enumerate(layout.fields) if name]
    assert accepted(layout, batches) == {
        row.row_no: tuple(row.values[i] for i in kept) for row in wanted if not row.code
    }
    assert [
        (r.row_no, r.line_no, r.byte_offset, r.code, r.column, r.raw) for r in rejects(batches)
    ] == [(w.row_no, w.line_no, w.byte_offset, w.code, w.column, w.raw) for w in wanted if w.code]
    by_row = {row.row_no: row for row in wanted}
    for batch in batches:
        for place in range(batch.accepted):
            found = batch.locate(batch.row_no(place))
            row = by_row[found.row_no]
            assert (found.line_no, found.byte_offset, found.raw) == (
                row.line_no,
                row.byte_offset,
                row.raw,
            )
    assert not batches or batches[-1].end.byte_offset == len(content)


@settings(max_examples=150, deadline=None)
@given(files, st.lists(st.integers(0, 2000), max_size=8), st.integers(1, 4))
def test_batches_do_not_depend_on_the_cuts(
    content: bytes, cuts: list[int], batch_rows: int
) -> None:
    whole = parse(content, batch_rows=batch_rows)
    cut = parse(content, cuts=tuple(cuts), batch_rows=batch_rows)
    assert [(b.start, b.end, b"".join(b.copy), b.gaps, b.rejects) for b in cut] == [
        (b.start, b.end, b"".join(b.copy), b.gaps, b.rejects) for b in whole
    ]


@settings(max_examples=150, deadline=None)
@given(files, st.integers(1, 4))
def test_a_parser_can_start_at_any_batch_border(content: bytes, batch_rows: int) -> None:
    layout = layout_of(content)
    batches = parse(content, batch_rows=batch_rows)
    for index, batch in enumerate(batches):
        again = Parser(layout, PLAIN, batch.start, batch_rows=batch_rows)
        rest = again.feed(content[batch.start.byte_offset :]) + again.finish()
        assert [(b.start, b.rejects) for b in rest] == [
            (b.start, b.rejects) for b in batches[index:]
        ]


@settings(max_examples=600, deadline=None)
@given(st.one_of(near_rows, mixed_rows), orgs)
def test_what_the_expression_swallows_the_judge_stores_unchanged(row: bytes, org: OrgRules) -> None:
    layout = layout_of(HEADER)
    rules = RowRules(layout, org)
    matched = rules.run(1)[1](row + b"\n", 0, len(row) + 1)
    if matched is None or matched.end() <= len(row) or not rules.run_holds(matched.group()):
        return
    judged = rules.judge(row, row.split(b","), None, 0, 0)
    assert isinstance(judged, bytes)
    kept = [i for i, name in enumerate(layout.fields) if name]
    was, now = row.split(b","), judged.removesuffix(b"\n").split(b",")
    assert [was[i] for i in kept] == [now[i] for i in kept]


def test_good_rows_take_the_fast_way() -> None:
    row = written(list(STARTS.values())) + b"\n"
    jörg = row.replace(b"Ann", "Jörg".encode())
    (batch,) = parse(HEADER + row * 3 + jörg * 2)
    assert batch.copy == [row * 3 + jörg * 2]


# ---- Bad input, one by one ----

SMALL = b"member_number,given_name,family_name\n"


def refusal(content: bytes, spec: Spec | None = None) -> FileRefused:
    with pytest.raises(FileRefused) as refused:
        read_layout(content, spec or Spec(), is_whole=True)
    return refused.value


def only(content: bytes, org: OrgRules = PLAIN) -> tuple[Reject, dict[int, tuple[str, ...]]]:
    batches = parse(content, org)
    (reject,) = rejects(batches)
    return reject, accepted(layout_of(content), batches)


def place(reject: Reject) -> tuple[int, int, int, str, str]:
    return (reject.row_no, reject.line_no, reject.byte_offset, reject.column, reject.code)


def test_01_empty_file() -> None:
    assert refusal(b"").code is FileCode.EMPTY
    assert refusal(b"\xef\xbb\xbf\r\n\n").code is FileCode.EMPTY


def test_02_header_only() -> None:
    assert parse(SMALL) == []
    assert parse(SMALL.rstrip()) == []


def test_03_byte_order_mark() -> None:
    content = b"\xef\xbb\xbf" + SMALL + b"1,Ann,Smith\n,x,y\n"
    reject, rows = only(content)
    assert rows == {1: ("1", "Ann", "Smith")}
    assert place(reject) == (2, 3, 3 + len(SMALL) + 12, "member_number", "NUMBER_MISSING")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_04_utf16(encoding: str) -> None:
    assert refusal(SMALL.decode().encode(encoding)).code is FileCode.UTF16


def test_05_invalid_utf8() -> None:
    reject, rows = only(SMALL + b"1,Ann,Smith\n2,B\xf6b,Miller\n3,Cy,Jones\n")
    offset = len(SMALL) + 12
    assert place(reject) == (2, 3, offset, "given_name", "INVALID_UTF8")
    assert f"byte {offset + 3} " in reject.message
    assert list(rows) == [1, 3]
    assert refusal(b"member_number,n\xf6\n").code is FileCode.NOT_UTF8


def test_06_and_07_character_and_line_end_split_across_chunks() -> None:
    content = SMALL.replace(b"\n", b"\r\n") + "1,Jörg,Müller\r\n2,Léa,Dubois\r\n".encode()
    layout = layout_of(content)
    for cut in range(len(content)):
        batches = parse(content, cuts=(cut,))
        assert accepted(layout, batches) == {1: ("1", "Jörg", "Müller"), 2: ("2", "Léa", "Dubois")}


def test_08_bare_carriage_returns() -> None:
    assert refusal(b"member_number,given_name\r1,Ann\r2,Bob\r").code is FileCode.BARE_CR
    reject, rows = only(SMALL + b"1,Ann,Smith\n2,B\rob,Miller\n")
    assert place(reject) == (2, 3, len(SMALL) + 12, "given_name", "VALUE_CHARACTERS")
    assert list(rows) == [1]


def test_09_nul() -> None:
    reject, rows = only(SMALL + b"1,A\0nn,Smith\n2,Bob,Miller\n")
    assert place(reject) == (1, 2, len(SMALL), "given_name", "NUL_BYTE")
    assert list(rows) == [2]


def test_10_unclosed_quote_costs_one_line() -> None:
    many = b"".join(b"%d,Ann,Smith\n" % n for n in range(2, 9_001))
    reject, rows = only(SMALL + b'1,"Ann,Smith\n' + many)
    assert place(reject) == (1, 2, len(SMALL), "given_name", "UNCLOSED_QUOTE")
    assert reject.raw == b'1,"Ann,Smith'
    assert list(rows) == list(range(2, 9_001))


def test_10_unclosed_quote_that_meets_another() -> None:
    reject, rows = only(SMALL + b'1,"Ann,Smith\n2,Bob,Miller\n3,"Cy",Jones\n4,Di,"Roe"\n')
    assert place(reject) == (1, 2, len(SMALL), "given_name", "UNCLOSED_QUOTE")
    assert list(rows) == [2, 3, 4]
    assert rows[3] == ("3", "Cy", "Jones")


def test_11_text_after_a_closing_quote() -> None:
    reject, rows = only(SMALL + b'1,"Ann"x,Smith\n2,Bob,Miller\n')
    assert place(reject) == (1, 2, len(SMALL), "given_name", "TEXT_AFTER_QUOTE")
    reject, rows = only(SMALL + b'1,A"nn,Smith\n2,Bob,Miller\n')
    assert place(reject) == (1, 2, len(SMALL), "given_name", "BARE_QUOTE")
    assert list(rows) == [2]


def test_12_quoted_newline() -> None:
    content = SMALL + b'1,"An\nn",Smith\n2,Bob\n3,Cy,Jones\n'
    reject, rows = only(content)
    assert rows == {1: ("1", "An\nn", "Smith"), 3: ("3", "Cy", "Jones")}
    assert place(reject) == (2, 4, len(SMALL) + 15, "", "COLUMN_COUNT")


def test_13_long_field() -> None:
    just = b"x" * FIELD_BYTES_MAX
    content = b"member_number,note\n1," + just + b"\n2," + just + b"x\n3,ok\n"
    reject, rows = only(content)
    assert place(reject) == (2, 3, 19 + 3 + len(just), "note", "FIELD_TOO_LONG")
    assert list(rows) == [1, 3]


def test_13_long_row() -> None:
    cells = b",".join([b"y" * 16_000] * 5)
    content = b"member_number,a,b,c,d,e\n1," + cells + b"\n2,,,,,\n"
    reject, rows = only(content)
    assert place(reject) == (1, 2, 24, "", "ROW_TOO_LONG")
    assert len(reject.raw) == ROW_BYTES_MAX
    assert list(rows) == [2]


def test_14_endless_line() -> None:
    layout = layout_of(SMALL)
    parser = Parser(layout, PLAIN)
    with pytest.raises(FileRefused) as refused:
        for fed in range(64):
            parser.feed(b"x" * (64 << 10))
            assert (fed - 1) * (64 << 10) <= LINE_BYTES_MAX
    assert refused.value.code is FileCode.LINE_ENDLESS
    assert refusal(b"member_number," + b"x" * (1 << 17)).code is FileCode.HEADER_TOO_LONG


def test_15_wrong_column_count() -> None:
    batches = parse(SMALL + b"1,Ann\n2,Bob,Miller,x\n3,Cy,Jones\n")
    assert [place(r)[:2] + place(r)[3:] for r in rejects(batches)] == [
        (1, 2, "", "COLUMN_COUNT"),
        (2, 3, "", "COLUMN_COUNT"),
    ]
    assert "4 columns and the header 3" in rejects(batches)[1].message


def test_16_duplicate_header() -> None:
    refused = refusal(b"member_number,Given Name,given_name\n")
    assert (refused.code, refused.subject) == (FileCode.DUPLICATE_COLUMN, "given_name")
    refused = refusal(b"member_number,first_name,given_name\n")
    assert (refused.code, refused.subject) == (FileCode.DUPLICATE_COLUMN, "given_name")


def test_17_required_column_missing() -> None:
    refused = refusal(b"given_name,family_name\n")
    assert (refused.code, refused.subject) == (FileCode.MISSING_COLUMN, "member_number")
    spec = Spec(required=frozenset({"email"}))
    assert refusal(SMALL, spec).subject == "email"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_18_delimiter_detected(delimiter: str) -> None:
    content = (SMALL + b"1,Ann,Smith\n2,,\n").replace(b",", delimiter.encode())
    layout = layout_of(content)
    assert layout.delimiter == delimiter
    assert accepted(layout, parse(content)) == {1: ("1", "Ann", "Smith"), 2: ("2", "", "")}


@pytest.mark.parametrize(
    ("start", "code"),
    [
        (b"PK\x03\x04rest", FileCode.ZIP),
        (b"PK\x03\x04......[Content_Types].xml", FileCode.XLSX),
        (b"\x1f\x8b\x08rest", FileCode.GZIP),
        (b"\xd0\xcf\x11\xe0rest", FileCode.XLS),
        (b"%PDF-1.7", FileCode.PDF),
    ],
)
def test_19_other_formats(start: bytes, code: FileCode) -> None:
    assert refusal(start).code is code


def test_20_too_many_rows() -> None:
    layout = layout_of(SMALL)
    for rows, org in ((b"1,a,b\n" * 4, PLAIN), (b",a,b\n" * 4, PLAIN)):
        parser = Parser(layout, org, rows_max=3)
        parser.feed(rows)
        with pytest.raises(FileRefused) as refused:
            parser.finish()
        assert refused.value.code is FileCode.TOO_MANY_ROWS


def test_21_repeated_members_keep_their_row_numbers() -> None:
    content = SMALL + b"1,Ann,A\n,x,x\n1,Bea,B\n2,Cy,C\n,x,x\n,x,x\n1,Di,D\n"
    rows = accepted(layout_of(content), parse(content))
    assert {n: row[1] for n, row in rows.items()} == {1: "Ann", 3: "Bea", 4: "Cy", 7: "Di"}


@pytest.mark.parametrize("mark", ["=", "+", "-", "@", "\t", "\r"])
def test_22_formulas_are_stored_raw_and_neutralised_on_export(mark: str) -> None:
    cell = mark + "cmd|' /C calc'!A0"
    content = SMALL + written(["1", cell, "Smith"]) + b"\n"
    assert accepted(layout_of(content), parse(content)) == {1: ("1", cell, "Smith")}
    assert neutralised(cell) == "'" + cell
    assert next(csv.reader([csv_line(["1", cell])])) == ["1", "'" + cell]
    assert neutralised("+12125550123") == "+12125550123"


def test_23_digits_are_never_silently_another_number() -> None:
    content = SMALL + "０１２,a,b\n12²,a,b\n①2,a,b\n٣,a,b\n1½,a,b\n".encode()
    batches = parse(content)
    assert accepted(layout_of(content), batches) == {1: ("012", "a", "b")}
    assert {r.code for r in rejects(batches)} == {"NUMBER_CHARACTERS"}
    assert [r.row_no for r in rejects(batches)] == [2, 3, 4, 5]


@pytest.mark.parametrize(
    "number", ["\u0410BC1", "A\u200b1", "A\u00ad1", "\u202e1A", "A\u20111", "\u2163", "A\u0131"]
)
def test_24_look_alikes(number: str) -> None:
    reject, rows = only(SMALL + number.encode() + b",Ann,Smith\n2,Bob,Miller\n")
    assert place(reject) == (1, 2, len(SMALL), "member_number", "NUMBER_CHARACTERS")
    assert list(rows) == [2]


def test_25_composed_and_decomposed_are_one_key() -> None:
    content = SMALL + "É-1,a,b\nE\u0301-1,a,b\n".encode()
    rows = accepted(layout_of(content), parse(content))
    assert rows[1][0] == rows[2][0] == "É-1"


def test_26_leading_zeros() -> None:
    content = SMALL + b"0001,a,b\n1,a,b\n"
    assert [row[0] for row in accepted(layout_of(content), parse(content)).values()] == [
        "0001",
        "1",
    ]


@pytest.mark.parametrize("day", ["2023-02-30", "02/03/2023", "2023-2-3", "20230203", "2023-13-01"])
def test_27_dates(day: str) -> None:
    header = b"member_number,date_of_birth\n"
    reject, _ = only(header + b"1," + day.encode() + b"\n2,2024-02-29\n")
    assert place(reject) == (1, 2, len(header), "date_of_birth", "DATE_INVALID")


def _seconds(content: bytes) -> float:
    layout = layout_of(SMALL)
    best = 9e9
    for _ in range(3):
        parser = Parser(layout, PLAIN)
        start = time.process_time()
        parser.feed(content)
        parser.finish()
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.parametrize(
    "unit",
    [
        b'"' * 1000 + b"\n",
        b'"' * 999 + b"\n",
        b'1,"' + b"x" * 200 + b"\n",
        b'1,"' + b"x" * 200 + b'\n""""\n',
        b"1,\xff,Smith\n",
        b"1,a\x07,Smith\n",
        b"1," + b"a." * 400 + b",Smith\n",
        b"\n",
        b'1,"a\n',
    ],
)
def test_28_time_is_linear(unit: bytes) -> None:
    size = 500_000
    once = _seconds(SMALL + unit * (size // len(unit)))
    twice = _seconds(SMALL + unit * (2 * size // len(unit)))
    assert twice <= 3.5 * once + 0.01


def test_28_a_megabyte_of_quotes_in_one_line() -> None:
    half = _seconds(b'"' * (LINE_BYTES_MAX // 2) + b"\n")
    assert _seconds(b'"' * LINE_BYTES_MAX + b"\n") <= 3.5 * half + 0.01
    (reject,) = rejects(parse(SMALL + b'"' * LINE_BYTES_MAX + b"\n1,a,b\n"))
    assert place(reject) == (1, 2, len(SMALL), "", "ROW_TOO_LONG")


def test_a_bad_utf8_row_does_not_cost_its_neighbours_twice() -> None:
    content = SMALL + b"1,Ann,Smith\n2,\xff,Smith\n" * 2000
    batches = parse(content)
    assert len(rejects(batches)) == 2000
    assert sum(batch.accepted for batch in batches) == 2000


def test_check_digits_are_judged_in_runs_and_alone() -> None:
    content = SMALL + b'00000018,a,b\n00000019,a,b\n00000026,"a",b\n00000027,"a",b\n'
    batches = parse(content, STRICT)
    assert list(accepted(layout_of(content), batches)) == [1, 3]
    assert [(r.row_no, r.code) for r in rejects(batches)] == [
        (2, "CHECK_DIGIT"),
        (4, "CHECK_DIGIT"),
    ]


# ---- Rejects as CSV, template ----


def test_rejects_keep_every_original_column() -> None:
    layout = layout_of(SMALL)
    assert (
        rejects_header(layout)
        == "member_number,given_name,family_name,reject_code,reject_message\r\n"
    )
    line = rejects_line(layout, b'x,"a ""b"", c",=1', "NUMBER_FORMAT", "Wrong.")
    assert next(csv.reader([line])) == ["x", 'a "b", c', "'=1", "NUMBER_FORMAT", "Wrong."]


@given(st.binary(max_size=60))
def test_original_cells_are_as_many_as_headers(raw: bytes) -> None:
    assert len(original_cells(layout_of(SMALL), raw)) == 3


def test_original_cells_of_odd_rows() -> None:
    layout = layout_of(SMALL)
    assert original_cells(layout, b"1,a") == ["1", "a", ""]
    assert original_cells(layout, b"1,a,b,c") == ["1", "a", "b,c"]
    assert original_cells(layout, b'1,"a,b') == ["1", '"a', "b"]


def test_the_template_can_be_imported() -> None:
    content = template().encode()
    batches = parse(content)
    assert rejects(batches) == []
    assert [batch.rows for batch in batches] == [1]


def test_the_cursor_counts_bytes_rows_and_lines() -> None:
    content = SMALL + b'1,"a\nb",c\n\n2,x,y\n'
    (batch,) = parse(content)
    assert batch.start == Cursor(len(SMALL), 0, 2)
    assert batch.end == Cursor(len(content), 2, 6)
