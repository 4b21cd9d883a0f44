"""Each kind of bad CSV from a client to the rejects, through the real server and worker.

The parser's own tests look at more variants of each; here it is the whole way that counts: what
the caller is told, and the exact row, line, byte, column and code of what was not imported.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from tests.imports import working as w
from tests.imports.conftest import House
from tests.imports.uploading import Importer
from tests.running import details
from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline.api.imports.v1.reject_code_pb2 import RejectCode

HEADER = b"member_number,given_name,family_name,date_of_birth\n"
GOOD = b"G-1,Ann,Good,1980-01-01\n"
LAST = b"Z-9,Zoe,Last,1980-01-01\n"


class Outcome:
    """What the caller sees at the end."""

    def __init__(self, found: pb.Import, rejects: list[pb.Reject], names: dict[str, str]) -> None:
        self.state = pb.ImportState.Name(found.state).removeprefix("IMPORT_STATE_")
        self.found = found
        self.rejects = [
            (r.row_no, r.line_no, r.byte_offset, r.column, _code(r), r.raw) for r in rejects
        ]
        self.names = names


def _code(reject: pb.Reject) -> str:
    return RejectCode.Name(reject.code).removeprefix("REJECT_CODE_")


class Way:
    """From a client to the members and back."""

    def __init__(self, importer: Importer, superuser: Any, cut: int) -> None:
        self._importer = importer
        self._superuser = superuser
        self._cut = cut

    async def bring(self, content: bytes, **spec: Any) -> Outcome:
        stub, metadata = self._importer.stub, self._importer.metadata
        given = pb.ImportSpec(allow_same_file=True, **spec)

        def frames() -> Iterator[pb.SubmitCsvRequest]:
            yield pb.SubmitCsvRequest(open=pb.SubmitCsvOpen(spec=given))
            for at in range(0, len(content), self._cut):
                yield pb.SubmitCsvRequest(data=content[at : at + self._cut])

        reply = await stub.SubmitCsv(frames(), metadata=metadata)
        import_id = getattr(reply, "import").import_id
        async with asyncio.timeout(30):
            async for change in stub.WatchImport(
                pb.WatchImportRequest(import_id=import_id), metadata=metadata
            ):
                found = getattr(change, "import")
        listed = await stub.ListRejects(
            pb.ListRejectsRequest(import_id=import_id, page_size=1_000), metadata=metadata
        )
        rows = await self._superuser.fetch("SELECT member_number, given_name FROM members")
        names = {row["member_number"]: row["given_name"] for row in rows}
        return Outcome(found, list(listed.rejects), names)

    async def refused(self, content: bytes) -> str:
        """The reason; nothing of it may be visible."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.bring(content)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value
        assert await self._superuser.fetchval("SELECT count(*) FROM members") == 0
        return str(details(caught.value)["reason"])


@asynccontextmanager
async def _way(
    house: House, superuser: Any, cut: int, *, batch_rows: int = 4, **quotas: Any
) -> AsyncIterator[Way]:
    server = await house.server()
    importer = await house.importer(server, **quotas)
    async with w.working(house.database_url, house.redis_url, batch_rows=batch_rows):
        yield Way(importer, superuser, cut)


@pytest.fixture(params=[1 << 16, 7], ids=["whole", "cut every 7 bytes"])
async def way(house: House, superuser: Any, request: pytest.FixtureRequest) -> AsyncIterator[Way]:
    async with _way(house, superuser, request.param) as opened:
        yield opened


async def one_bad(way: Way, bad: bytes, column: str, code: str, header: bytes = HEADER) -> Outcome:
    """A bad row between good ones: it alone is refused, and named exactly."""
    content = header + GOOD + bad + b"\n" + LAST
    outcome = await way.bring(content)
    assert outcome.state == "SUCCEEDED"
    assert outcome.rejects == [(2, 3, len(header + GOOD), column, code, bad)]
    assert outcome.names == {"G-1": "Ann", "Z-9": "Zoe"}
    return outcome


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "IMPORT_FILE_EMPTY", id="01 empty"),
        pytest.param(HEADER.decode().encode("utf-16"), "IMPORT_NOT_CSV", id="04 UTF-16"),
        pytest.param(b"member_number,n\xe9\n", "IMPORT_HEADER_INVALID", id="05 header not UTF-8"),
        pytest.param(b"member_number\rA\rB\r", "IMPORT_DIALECT_UNKNOWN", id="08 bare CR"),
        pytest.param(b"x" * (1 << 20), "IMPORT_LINE_ENDLESS", id="14 endless line"),
        pytest.param(b"member_number,email,email\n", "IMPORT_HEADER_INVALID", id="16 duplicate"),
        pytest.param(b"given_name\nAnn\n", "IMPORT_HEADER_INVALID", id="17 column missing"),
        pytest.param(b"PK\x03\x04" + b"x" * 99, "IMPORT_NOT_CSV", id="19 zip"),
        pytest.param(b"PK\x03\x04 xl/workbook.xml", "IMPORT_NOT_CSV", id="19 xlsx"),
        pytest.param(b"\x1f\x8b\x08\x00" + b"x" * 99, "IMPORT_NOT_CSV", id="19 gzip"),
    ],
)
async def test_files_that_are_none(
    house: House, superuser: Any, content: bytes, reason: str
) -> None:
    async with _way(house, superuser, 1 << 16) as way:
        assert await way.refused(content) == reason


async def test_02_header_only(way: Way) -> None:
    outcome = await way.bring(HEADER)
    assert (outcome.state, outcome.found.counters.rows_read) == ("SUCCEEDED", 0)


async def test_03_byte_order_mark(way: Way) -> None:
    content = b"\xef\xbb\xbf" + HEADER + GOOD
    assert (await way.bring(content)).names == {"G-1": "Ann"}


async def test_05_invalid_utf8(way: Way) -> None:
    bad = b"B-1,J\xe9r,Bad,"
    await one_bad(way, bad, "given_name", "INVALID_UTF8")


async def test_06_07_characters_and_line_ends_split_across_chunks(way: Way) -> None:
    content = (HEADER + "B-1,Jörg,Größe,\nB-2,李,王,\n".encode()).replace(b"\n", b"\r\n")
    assert (await way.bring(content)).names == {"B-1": "Jörg", "B-2": "李"}


async def test_09_nul(way: Way) -> None:
    await one_bad(way, b"B-1,A\0nn,Bad,", "given_name", "NUL_BYTE")


async def test_10_unclosed_quote_costs_one_line(way: Way) -> None:
    await one_bad(way, b'B-1,"Ann,Bad,', "given_name", "UNCLOSED_QUOTE")


async def test_11_text_after_a_closing_quote(way: Way) -> None:
    await one_bad(way, b'B-1,"Ann"x,Bad,', "given_name", "TEXT_AFTER_QUOTE")


async def test_12_numbers_are_right_after_a_quoted_newline(way: Way) -> None:
    first = b'G-1,Ann,"Go\nod",1980-01-01\n'
    content = HEADER + first + GOOD.replace(b"G-1", b"G-2") + b"B-1,Ann,Bad,never\n" + LAST
    outcome = await way.bring(content)
    at = content.index(b"B-1")
    assert [r[:5] for r in outcome.rejects] == [(3, 5, at, "date_of_birth", "DATE_INVALID")]
    assert set(outcome.names) == {"G-1", "G-2", "Z-9"}


async def test_13_field_over_the_limit(house: House, superuser: Any) -> None:
    async with _way(house, superuser, 1 << 16) as way:
        bad = b"B-1," + b"x" * (17 << 10) + b",Bad,"
        await one_bad(way, bad, "given_name", "FIELD_TOO_LONG")


async def test_14_an_endless_line_further_down_ends_it(house: House, superuser: Any) -> None:
    async with _way(house, superuser, 1 << 16) as way:
        outcome = await way.bring(HEADER + GOOD * 4 + b"x" * (1 << 21))
        assert outcome.state == "FAILED"
        assert outcome.found.problem.reason == 311


async def test_15_wrong_column_count(way: Way) -> None:
    await one_bad(way, b"B-1,Ann,Bad", "", "COLUMN_COUNT")


async def test_18_other_delimiters_are_detected(way: Way) -> None:
    for delimiter in (b";", b"\t"):
        content = (HEADER + GOOD).replace(b",", delimiter)
        outcome = await way.bring(content)
        assert outcome.found.dialect.delimiter.encode() == delimiter
        assert outcome.names == {"G-1": "Ann"}


async def test_20_over_the_row_cap(house: House, superuser: Any) -> None:
    async with _way(house, superuser, 1 << 16, import_rows=5) as way:
        outcome = await way.bring(HEADER + b"".join(b"M-%d,,,\n" % n for n in range(6)))
        assert (outcome.state, outcome.found.problem.reason) == ("FAILED", 304)
        assert outcome.found.problem.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]


async def test_21_the_later_row_wins_and_the_earlier_is_listed(way: Way) -> None:
    near, far = b"B-1,Near,Bad,\n", b"B-1,Far,Bad,\n"
    rest = b"".join(b"M-%d,Ann,Ex,\n" % n for n in range(9))
    content = HEADER + b"B-1,First,Bad,\n" + near + rest + far
    outcome = await way.bring(content)
    assert outcome.names["B-1"] == "Far"
    assert outcome.rejects == [
        (1, 2, len(HEADER), "member_number", "SUPERSEDED", b"B-1,First,Bad,"),
        (2, 3, content.index(near), "member_number", "SUPERSEDED", near[:-1]),
    ]
    counters = outcome.found.counters
    assert (counters.created, counters.superseded, counters.rejected) == (10, 2, 0)


async def test_22_formulas_are_stored_raw(way: Way) -> None:
    rows = b"".join(
        b"F-%d,%sx,Ex,\n" % (n, mark) for n, mark in enumerate((b"=", b"+", b"-", b"@"))
    )
    assert (await way.bring(HEADER + rows)).names == {
        "F-0": "=x", "F-1": "+x", "F-2": "-x", "F-3": "@x"
    }  # fmt: skip


async def test_23_digits_are_never_silently_another_number(way: Way) -> None:
    content = HEADER + "B-\uff11,Wide,Ex,\nB-²,Raised,Ex,\n".encode()
    outcome = await way.bring(content)
    assert outcome.names == {"B-1": "Wide"}
    assert [(r[0], r[3], r[4]) for r in outcome.rejects] == [
        (2, "member_number", "NUMBER_CHARACTERS")
    ]


@pytest.mark.parametrize("number", ["А-1", "B\u200b-1", "B\u00ad-1", "B\u202e-1"])
async def test_24_look_alikes(house: House, superuser: Any, number: str) -> None:
    async with _way(house, superuser, 7) as way:
        bad = f"{number},Ann,Bad,".encode()
        await one_bad(way, bad, "member_number", "NUMBER_CHARACTERS")


async def test_25_two_spellings_are_one_key(way: Way) -> None:
    content = HEADER + "Bä-1,Composed,Ex,\nBa\u0308-1,Decomposed,Ex,\n".encode()
    outcome = await way.bring(content)
    assert outcome.names == {"Bä-1": "Decomposed"}
    assert [(r[0], r[4]) for r in outcome.rejects] == [(1, "SUPERSEDED")]


async def test_26_leading_zeros_are_kept(way: Way) -> None:
    assert (await way.bring(HEADER + b"0042,Ann,Ex,\n")).names == {"0042": "Ann"}


@pytest.mark.parametrize("day", [b"2023-02-30", b"02/03/2023"])
async def test_27_dates(house: House, superuser: Any, day: bytes) -> None:
    async with _way(house, superuser, 7) as way:
        await one_bad(way, b"B-1,Ann,Bad," + day, "date_of_birth", "DATE_INVALID")


async def test_28_a_megabyte_of_quotes(house: House, superuser: Any) -> None:
    async with _way(house, superuser, 1 << 16, batch_rows=2_000) as way:
        quotes = (b'"' * 63 + b"\n") * (1 << 14)
        begun = time.monotonic()
        outcome = await way.bring(HEADER + GOOD + quotes + LAST)
        assert time.monotonic() - begun < 20
        assert outcome.names == {"G-1": "Ann", "Z-9": "Zoe"}
        counters = outcome.found.counters
        assert counters.rejected + 2 == counters.rows_read
