"""Rosters with known bad rows, and what becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import asyncpg

from tests.running import PAGE_SECRET, PEPPER, SIGNING_KEY
from trunkline_server.app import Worker
from trunkline_server.config import WorkerSettings

HEADER = "member_number,given_name,family_name,email,effective_from"
# Two kinds of bad rows, each at a place of its own in every so many rows.
BAD_EACH = 1_000
BAD_EMAIL, BAD_DATE = 17, 503

_QUOTAS = "UPDATE orgs SET quotas = $2 WHERE org_id = $1"
_NUMBERS = "SELECT member_number FROM members WHERE org_id = $1 AND deleted_at IS NULL"


def number(row: int) -> str:
    return f"M-{row:06}"


def is_bad(row: int) -> bool:
    return row % BAD_EACH in (BAD_EMAIL, BAD_DATE)


def line(row: int, family: str = "Lovelace", *, bad: bool = False) -> str:
    email = "nobody@" if bad and row % BAD_EACH == BAD_EMAIL else f"m{row}@example.org"
    begins = "2026-02-30" if bad and row % BAD_EACH == BAD_DATE else "2026-01-01"
    return f"{number(row)},Ada,{family},{email},{begins}"


def roster(path: Path, rows: int, family: str = "Lovelace", *, bad: bool = False) -> Path:
    lines = (line(row, family, bad=bad) for row in range(rows))
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return path


def corrected(rejects: bytes) -> bytes:
    """What a person does with the file of rejects."""
    return rejects.replace(b"2026-02-30", b"2026-02-28").replace(b"nobody@,", b"a@example.org,")


async def hurry(database_url: str, org_id: UUID) -> None:
    """Let the organisation start imports one right after the other."""
    connection = await asyncpg.connect(database_url)
    await connection.execute(_QUOTAS, org_id, json.dumps({"import_starts_per_minute": 6_000}))
    await connection.close()


async def numbers(database_url: str, org_id: UUID) -> list[str]:
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch(_NUMBERS, org_id)
    await connection.close()
    return sorted(row["member_number"] for row in rows)


@contextlib.asynccontextmanager
async def working(database_url: str, redis_url: str) -> AsyncIterator[Worker]:
    """The worker as it is deployed, in this process."""
    settings = WorkerSettings.model_validate(
        {
            "environment": "dev",
            "database_url": database_url,
            "redis_url": redis_url,
            "key_pepper": PEPPER,
            "page_secret": PAGE_SECRET,
            "token_key": SIGNING_KEY,
            "poll_s": 0.1,
        }
    )
    worker = await Worker.start(settings)
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.runner.stop()
        await running
