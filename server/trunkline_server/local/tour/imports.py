"""A roster of 100,000 rows goes up, is interrupted, goes on, is accounted for, is taken back."""

from __future__ import annotations

import csv
import random
import tempfile
import time
from pathlib import Path

import click

from trunkline import AsyncClient
from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline_server.local.tour.guide import Tour

ROWS = 100_000
BAD_SHARE = 0.02
_HEADER = (
    "member_number", "given_name", "family_name", "email", "date_of_birth", "plan", "status",
    "effective_from",
)  # fmt: skip


class _PowerCut(Exception):
    """What interrupts the upload, half-way."""


async def visit(tour: Tour) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "june.csv"
        bad = _write_roster(path)
        size = path.stat().st_size
        tour.say(f"june.csv has {ROWS:,} rows, {bad:,} of them bad; {size >> 20} MiB.")
        async with tour.client("ADMIN") as admin, tour.client("AGENT") as agent:
            finished = await _upload(tour, admin, path, _Bar(size))
            tour.expect(finished.counters.rejected == bad, "not every bad row was rejected")
            await _show_rejects(tour, admin, finished.import_id)
            await _validate_one(tour, agent)
            await _undo(tour, admin, finished.import_id)


def _write_roster(path: Path) -> int:
    dice = random.Random(1)
    bad = 0
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(_HEADER)
        for number in range(1, ROWS + 1):
            is_bad = dice.random() < BAD_SHARE
            bad += is_bad
            rows.writerow(
                (
                    f"JN-{number:07d}", "Jo", f"Member{number}", f"jo{number}@example.com",
                    "1990-02-30" if is_bad else "1990-02-28", "gold", "ACTIVE", "2026-01-01",
                )
            )  # fmt: skip
    return bad


async def _upload(tour: Tour, admin: AsyncClient, path: Path, bar: _Bar) -> pb.Import:
    def until_half(progress: object) -> None:
        bar.show(progress.bytes_stored)  # type: ignore[attr-defined]
        if bar.share >= 0.4:
            raise _PowerCut

    started = time.monotonic()
    try:
        await admin.imports.upload(path, on_progress=until_half)
    except _PowerCut:
        bar.end()
        tour.say(f"The upload is cut off at {bar.share:.0%}. The same call again goes on:")
    else:
        tour.say("The upload was too quick to be cut off.")
    job = await admin.imports.upload(path, on_progress=lambda p: bar.show(p.bytes_stored))
    bar.end()
    finished = await job.wait(allow_rejects=True)
    seconds = time.monotonic() - started
    counters = finished.counters
    tour.say(
        f"Done after {seconds:.1f} s, {counters.rows_read / seconds:,.0f} rows/s:"
        f" {counters.created:,} created, {counters.rejected:,} rejected."
    )
    tour.expect(counters.rows_read == ROWS, "rows are missing, or were read twice")
    return finished


async def _show_rejects(tour: Tour, admin: AsyncClient, import_id: str) -> None:
    shown = 0
    async for reject in admin.imports.rejects(import_id, page_size=3):
        tour.say(f"  row {reject.row_no:,}, column {reject.column}: {reject.message}")
        shown += 1
        if shown == 3:
            return


async def _validate_one(tour: Tour, agent: AsyncClient) -> None:
    found = await agent.members.validate("JN-0001204")
    tour.say(f"JN-0001204 is known from {found.provenance.summary}.")
    tour.expect(found.provenance.row_no == 1204, "the provenance names another row")


async def _undo(tour: Tour, admin: AsyncClient, import_id: str) -> None:
    started = time.monotonic()
    await admin.imports.undo(import_id)
    undone = await (await admin.imports.job(import_id)).refresh()
    async for undone in admin.imports.watch(import_id):
        if undone.state == pb.IMPORT_STATE_UNDONE:
            break
    tour.expect(undone.state == pb.IMPORT_STATE_UNDONE, "the import was not undone")
    seconds = time.monotonic() - started
    tour.say(f"The whole import is taken back in {seconds:.1f} s.")


class _Bar:
    def __init__(self, total: int) -> None:
        self._total = total
        self.share = 0.0

    def show(self, stored: int) -> None:
        self.share = stored / self._total
        filled = int(self.share * 40)
        click.echo(f"\r  [{'#' * filled}{'.' * (40 - filled)}] {self.share:4.0%}", nl=False)

    def end(self) -> None:
        click.echo()
