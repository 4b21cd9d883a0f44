"""`make demo`: everything started, a tour through the real client, everything stopped."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from pathlib import Path

import click

from trunkline_server.local.dev import House
from trunkline_server.local.tour import STOPS, Tour


def run() -> int:
    started = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="trunkline-demo-"))
    try:
        with House(directory) as house:
            ready_s = time.monotonic() - started
            click.echo(f"Everything runs after {ready_s:.1f} s: two servers, a worker, PostgreSQL")
            click.echo(f"and Valkey, at {house.address}. A tour through the real client:")
            asyncio.run(_take(Tour(house.address, house.credentials)))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    click.echo(f"\nThe tour is over, everything is stopped. {time.monotonic() - started:.1f} s.")
    click.echo("`make dev` starts it again and leaves it running.")
    return 0


async def _take(tour: Tour) -> None:
    for title, stop in STOPS:
        tour.title(title)
        await stop(tour)
