"""Workers that die anywhere: the members end as a plain model of the file says, every row once.

The model is a dictionary. The oracle compares the table, the counters, the rejects and the changes
with it; the controls take the fence and the batches' key away and see it go red.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
import pytest

from tests.daemons import POLL_S
from tests.imports import working as w
from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline_server import failpoints
from trunkline_server.jobs import Lease

HEADER = b"member_number,given_name,date_of_birth\n"
BATCH_ROWS = 20
ROWS = 300
Row = tuple[str, str, str]


def rows(seed: int, count: int = ROWS) -> list[Row]:
    """Some are wrong, and numbers come again, near and far."""
    rng = random.Random(seed)
    return [
        (
            f"M{rng.randrange(count):05}",
            f"G{n}",
            "2023-02-30" if rng.random() < 0.05 else "1980-01-01",
        )
        for n in range(count)
    ]


def content(of: Sequence[Row]) -> bytes:
    return HEADER + b"".join(",".join(row).encode() + b"\n" for row in of)


async def check(
    connection: asyncpg.Connection, org: UUID, import_id: UUID, of: Sequence[Row]
) -> None:
    """The oracle."""
    last: dict[str, tuple[int, str]] = {}
    bad, superseded = [], []
    for row_no, (number, given, born) in enumerate(of, 1):
        if born == "2023-02-30":
            bad.append(row_no)
            continue
        if number in last:
            superseded.append(last[number][0])
        last[number] = (row_no, given)
    found = await connection.fetch(
        "SELECT member_number, row_no, given_name FROM members WHERE org_id = $1", org
    )
    assert {r["member_number"]: (r["row_no"], r["given_name"]) for r in found} == last
    assert len(found) == len(last)
    refused = await w.rejects(connection, import_id)
    assert [r[0] for r in refused if r[4] != "SUPERSEDED"] == bad
    assert [r[0] for r in refused if r[4] == "SUPERSEDED"] == sorted(superseded)
    row = await w.row(connection, import_id)
    assert row["state"] == "SUCCEEDED", row["problem"]
    assert row["rows_read"] == len(of)
    assert (row["created"], row["updated"], row["unchanged"]) == (len(last), 0, 0)
    assert (row["rejected"], row["superseded"]) == (len(bad), len(superseded))
    seqs = await connection.fetch("SELECT seq, import_id FROM member_changes ORDER BY seq")
    assert [s["seq"] for s in seqs] == list(range(1, len(seqs) + 1))
    batches = await connection.fetch("SELECT * FROM import_batches ORDER BY batch_no")
    assert sum(b["end_row"] - b["start_row"] for b in batches) == len(of)
    live = await connection.fetchval(
        "SELECT count(*) FROM jobs WHERE state IN ('QUEUED', 'RUNNING')"
    )
    assert live == 0


@asynccontextmanager
async def worker(
    urls: tuple[str, str], failpoint: str = ""
) -> AsyncIterator[asyncio.subprocess.Process]:
    given = {"DATABASE_URL": urls[0], "REDIS_URL": urls[1], failpoints.VARIABLE: failpoint}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.imports.worker_process", str(BATCH_ROWS),
        env={**os.environ, **given}, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"ready\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
def urls(database_url: str, redis_url: str) -> tuple[str, str]:
    return database_url, redis_url


@pytest.mark.parametrize(
    ("failpoint", "spec"),
    [
        ("run.begun", pb.ImportSpec()),
        ("batch.before:2", pb.ImportSpec()),
        ("batch.staged:4", pb.ImportSpec()),
        ("batch.merged:3", pb.ImportSpec()),
        ("batch.before_commit:5", pb.ImportSpec()),
        ("batch.committed:6", pb.ImportSpec()),
        ("run.landed", pb.ImportSpec()),
        ("locate.committed:2", pb.ImportSpec()),
        ("run.before_end", pb.ImportSpec()),
        ("run.finished", pb.ImportSpec()),
        ("batch.before_commit:5", pb.ImportSpec(commit=pb.COMMIT_MODE_ATOMIC)),
        ("publish.checked", pb.ImportSpec(commit=pb.COMMIT_MODE_ATOMIC)),
        ("publish.written", pb.ImportSpec(commit=pb.COMMIT_MODE_ATOMIC)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_death_at_each_point_changes_nothing(
    connection: asyncpg.Connection, urls: tuple[str, str], failpoint: str, spec: pb.ImportSpec
) -> None:
    org, of = await w.make_org(connection), rows(4)
    import_id = await w.put(connection, org, content(of), spec)
    async with worker(urls, failpoint) as first:
        async with asyncio.timeout(60):
            assert await first.wait() == failpoints.EXIT_CODE
    async with w.working(*urls, batch_rows=7):  # another size: the first one's stays
        await w.ended(connection, import_id)
        await _settled(connection)
    await check(connection, org, import_id, of)


async def _settled(connection: asyncpg.Connection) -> None:
    """The job ends with the import's last transaction, or a moment after."""
    async with asyncio.timeout(20):
        while await connection.fetchval(
            "SELECT count(*) FROM jobs WHERE state IN ('QUEUED', 'RUNNING')"
        ):
            await asyncio.sleep(POLL_S)


async def _killed_often(
    connection: asyncpg.Connection, urls: tuple[str, str], seed: int, kills: int
) -> None:
    rng = random.Random(seed)
    org, of = await w.make_org(connection), rows(seed, 6_000)
    import_id = await w.put(connection, org, content(of), max_attempts=1000)
    for _ in range(kills):
        async with worker(urls) as process:
            await asyncio.sleep(rng.uniform(0.0, 0.25))
            process.send_signal(signal.SIGKILL)
        # Its lease runs out by itself in a second; nobody has to wait for that here.
        await connection.execute(
            "UPDATE jobs SET lease_until = now() - interval '1 s' WHERE state = 'RUNNING'"
        )
        if (await w.row(connection, import_id))["state"] in w.ENDED:
            import_id = await _once_more(connection, org, of)
    async with w.working(*urls, batch_rows=BATCH_ROWS):
        await w.ended(connection, import_id)
        await _settled(connection)
    await check(connection, org, import_id, of)


async def _once_more(connection: asyncpg.Connection, org: UUID, of: Sequence[Row]) -> UUID:
    """The kills go on with a fresh start."""
    await connection.execute(
        "TRUNCATE members, member_history, member_changes, member_change_seqs, import_batches,"
        " import_rejects, import_unlocated, import_seen, import_chunks, imports, jobs CASCADE"
    )
    return await w.put(connection, org, content(of), max_attempts=1000)


async def test_killed_again_and_again(
    connection: asyncpg.Connection, urls: tuple[str, str]
) -> None:
    await _killed_often(connection, urls, seed=6, kills=6)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(4))
async def test_two_hundred_kills(
    connection: asyncpg.Connection, urls: tuple[str, str], seed: int
) -> None:
    await _killed_often(connection, urls, seed, kills=50)


# ---- Controls: the oracle must be able to go red ----


async def _frozen_then_woken(connection: asyncpg.Connection, urls: tuple[str, str]) -> UUID:
    """A worker stands still with a batch before it, is taken over, and goes on too late."""
    org, of = await w.make_org(connection), rows(8)
    import_id = await w.put(connection, org, content(of))
    reached, go_on = asyncio.Event(), asyncio.Event()
    fence = Lease.fence

    async with w.working(*urls, batch_rows=BATCH_ROWS, lanes=1) as slow:
        del slow

        # In one process: its first fence of a batch waits, while its job is handed to another.
        async def late(self: Lease, tx: object) -> None:
            if not reached.is_set() and self.epoch == 1 and self.saved:
                reached.set()
                await go_on.wait()
            await fence(self, tx)  # type: ignore[arg-type]

        Lease.fence = late  # type: ignore[method-assign]
        try:
            await reached.wait()
            await connection.execute(
                "UPDATE jobs SET lease_until = now() - interval '1 s' WHERE state = 'RUNNING'"
            )
            await w.ended(connection, import_id)
            go_on.set()
            await asyncio.sleep(0.3)
        finally:
            Lease.fence = fence  # type: ignore[method-assign]
    await check(connection, org, import_id, of)
    return import_id


async def test_a_late_batch_is_refused(
    connection: asyncpg.Connection, urls: tuple[str, str]
) -> None:
    await _frozen_then_woken(connection, urls)


async def test_without_the_batches_key_and_the_fence_the_oracle_goes_red(
    connection: asyncpg.Connection, urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch's key is the second guard: both have to go before anything is done twice."""

    async def no_fence(self: Lease, tx: object) -> None:
        self.touch()

    monkeypatch.setattr(Lease, "fence", no_fence)
    monkeypatch.setattr(Lease, "checkpoint", lambda self, tx, saved: no_fence(self, tx))
    await connection.execute("ALTER TABLE import_batches DROP CONSTRAINT import_batches_pkey")
    org, of = await w.make_org(connection), rows(9)
    import_id = await w.put(connection, org, content(of))
    async with worker(urls, "batch.committed:6") as first:
        await first.wait()
    # What a worker without a checkpoint in its transaction would find: nothing done.
    await connection.execute("DELETE FROM import_batches")
    async with w.working(*urls, batch_rows=BATCH_ROWS):
        await w.ended(connection, import_id)
        await _settled(connection)
    with pytest.raises(AssertionError):
        await check(connection, org, import_id, of)
