"""The parser alone: rows a CPU-second against the bare csv reader on the same bytes.

The bare reader only splits; the parser also judges each value, names every bad row exactly and
leaves the good ones ready for COPY. Both run alternately, each over the file in 1 MiB reads.
"""

from __future__ import annotations

import csv
import itertools
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trunkline_server.imports.csv import Parser, Reject
from trunkline_server.imports.rules import FIELDS, Spec, read_layout
from trunkline_server.members.rules import OrgRules

READ_BYTES = 1 << 20

_GIVEN = [
    "Ann",
    "Bob",
    "Carla",
    "Dmitri",
    "Eva",
    "Farid",
    "Grace",
    "Hugo",
    "Ines",
    "Jörg",
    "Kim",
    "Lea",
    "Maria",
    "Nils",
    "Olga",
    "Paul",
]
_FAMILY = [
    "Smith",
    "Miller",
    "Okafor",
    "Garcia",
    "Novak",
    "Rossi",
    "Tanaka",
    "Silva",
    "Dubois",
    "Kowalski",
    "Larsen",
]


@dataclass(frozen=True, slots=True)
class ParseRate:
    """Rows a CPU-second, and what the parser needed. All medians of alternating rounds."""

    bad_share: float
    rows: int
    row_bytes: float
    bare_csv_rows_per_cpu_s: float
    parser_rows_per_cpu_s: float
    to_bare_csv: float
    to_bare_csv_min: float
    to_bare_csv_max: float
    rejects_exact: bool
    peak_growth_bytes: int


def parse_rates(
    rows: int = 1_000_000,
    bad_shares: tuple[float, ...] = (0.0, 0.02, 0.20),
    rounds: int = 5,
) -> list[ParseRate]:
    """Measure each share of bad rows."""
    return [_parse_rate(rows, share, rounds) for share in bad_shares]


def _parse_rate(rows: int, bad_share: float, rounds: int) -> ParseRate:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "roster.csv"
        planted = write_roster(path, rows, bad_share)
        found = parse(path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pairs = [(_cpu_s(bare_csv, path), _cpu_s(parse, path)) for _ in range(rounds)]
        growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        row_bytes = path.stat().st_size / rows
    ratios = [bare / ours for bare, ours in pairs]
    return ParseRate(
        bad_share=bad_share,
        rows=rows,
        row_bytes=row_bytes,
        bare_csv_rows_per_cpu_s=rows / statistics.median(bare for bare, _ in pairs),
        parser_rows_per_cpu_s=rows / statistics.median(ours for _, ours in pairs),
        to_bare_csv=statistics.median(ratios),
        to_bare_csv_min=min(ratios),
        to_bare_csv_max=max(ratios),
        rejects_exact=found == planted,
        peak_growth_bytes=growth * 1024,
    )


def _cpu_s(work: Callable[[Path], object], path: Path) -> float:
    start = time.process_time()
    work(path)
    return time.process_time() - start


def bare_csv(path: Path) -> int:
    with path.open(newline="", encoding="utf-8") as file:
        return sum(1 for _ in csv.reader(file))


def parse(path: Path) -> int:
    """Return a digest of every reject's row number and code; holding them would count as growth."""
    with path.open("rb") as file:
        head = file.read(READ_BYTES)
        layout = read_layout(head, Spec(), is_whole=False)
        assert layout is not None
        parser = Parser(layout, OrgRules())
        chunk, digest = head[layout.first.byte_offset :], 0
        while chunk:
            for batch in parser.feed(chunk):
                digest = _digest(batch.rejects, digest)
            chunk = file.read(READ_BYTES)
        for batch in parser.finish():
            digest = _digest(batch.rejects, digest)
    return digest


def _digest(rejects: list[Reject], digest: int) -> int:
    for reject in rejects:
        digest = hash((digest, reject.row_no, reject.code))
    return digest


def write_roster(path: Path, rows: int, bad_share: float) -> int:
    """Write a roster and return the digest of every bad row's number and code."""
    rng = random.Random(20)
    planted = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(",".join(FIELDS) + "\n")
        for row_no, row in enumerate(itertools.islice(_rows(rng), rows), 1):
            if rng.random() < bad_share:
                planted = hash((planted, row_no, _spoil(rng, row)))
            file.write(",".join(row) + "\n")
    return planted


def _rows(rng: random.Random) -> Iterator[list[str]]:
    for number in itertools.count():
        given, family = rng.choice(_GIVEN), rng.choice(_FAMILY)
        yield [
            f"M{number:08}",
            given,
            family,
            f"member.{number}@example.com",
            f"+1212{number % 10_000_000:07}",
            f"19{rng.randrange(30, 100)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}",
            f"GOLD-{number % 50}",
            "ACTIVE",
            f"20{rng.randrange(10, 26)}-{rng.randrange(1, 13):02}-01",
            "2027-12-31",
        ]


def _spoil(rng: random.Random, row: list[str]) -> str:
    match rng.randrange(6):
        case 0:
            row[5] = "2023-02-30"
            return "DATE_INVALID"
        case 1:
            row[3] = "nobody"
            return "EMAIL_INVALID"
        case 2:
            row[0] = "А0123"
            return "NUMBER_CHARACTERS"
        case 3:
            row[4] = "12"
            return "PHONE_INVALID"
        case 4:
            row.append("extra")
            return "COLUMN_COUNT"
        case _:
            # Not an unclosed quote: the bare reader would swallow the file and then give up.
            row[1] = '"Ann"x'
            return "TEXT_AFTER_QUOTE"
