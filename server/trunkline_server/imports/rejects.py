"""Rejected rows as a CSV file in the dialect they came in, with why they were rejected."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

from trunkline_server.imports.rules import Layout

REASON_COLUMNS = ("reject_code", "reject_message")
PART_BYTES = 256 << 10
# What a spreadsheet takes for the beginning of a formula.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


class RejectedRow(NamedTuple):
    raw: bytes
    code: str
    message: str


class RejectsFile:
    """Every row has the file's columns. One that cannot be split stands whole in the first."""

    def __init__(self, layout: Layout, *, neutralise: bool) -> None:
        self._layout = layout
        self._neutralise = neutralise

    def header(self) -> bytes:
        return self._written([[*self._layout.headers, *REASON_COLUMNS]])

    def parts(self, rejects: Sequence[RejectedRow]) -> list[bytes]:
        """In messages of a bounded size; rows are whole in each."""
        parts: list[bytes] = []
        rows: list[list[str]] = []
        size = 0
        for reject in rejects:
            rows.append(self._row(reject))
            size += len(reject.raw)
            if size >= PART_BYTES:
                parts.append(self._written(rows))
                rows, size = [], 0
        return [*parts, self._written(rows)] if rows else parts

    def _row(self, reject: RejectedRow) -> list[str]:
        cells = [*self._cells(reject.raw), reject.code, reject.message]
        return [neutral(cell) for cell in cells] if self._neutralise else cells

    def _cells(self, raw: bytes) -> list[str]:
        text = raw.decode(errors="replace").replace("\0", "\ufffd")
        width = len(self._layout.headers)
        try:
            reader = csv.reader(
                io.StringIO(text, newline=""),
                delimiter=self._layout.delimiter,
                quotechar=self._layout.quote,
                strict=True,
            )
            records = list(reader)
        except csv.Error:
            records = []
        if len(records) != 1:
            return [text, *[""] * (width - 1)]
        cells = records[0]
        if len(cells) > width:
            surplus = self._layout.delimiter.join(cells[width - 1 :])
            return [*cells[: width - 1], surplus]
        return [*cells, *[""] * (width - len(cells))]

    def _written(self, rows: list[list[str]]) -> bytes:
        out = io.StringIO(newline="")
        writer = csv.writer(
            out,
            delimiter=self._layout.delimiter,
            quotechar=self._layout.quote,
            lineterminator=self._layout.eol.decode(),
        )
        writer.writerows(rows)
        return out.getvalue().encode()


def neutral(cell: str) -> str:
    return "'" + cell if cell.startswith(FORMULA_STARTS) else cell
