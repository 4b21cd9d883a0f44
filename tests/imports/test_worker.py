"""An import from its stored bytes to its members: modes, repeats, limits, ends."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tests.imports import working as w
from trunkline.api.imports.v1 import imports_service_pb2 as pb

HEADER = b"member_number,given_name,family_name,status,effective_from,effective_to\n"


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


def line(number: str, given: str = "Ann", family: str = "Ex", rest: str = "ACTIVE,,") -> bytes:
    return f"{number},{given},{family},{rest}\n".encode()


def counts(row: dict[str, Any]) -> dict[str, int]:
    names = ("created", "updated", "unchanged", "rejected", "superseded", "terminated")
    return {name: row[name] for name in names if row[name]}


async def names(connection: asyncpg.Connection) -> dict[str, str]:
    rows = await connection.fetch("SELECT member_number, given_name FROM members")
    return {row["member_number"]: row["given_name"] for row in rows}


async def test_rows_become_members(
    connection: asyncpg.Connection, database_url: str, redis_url: str
) -> None:
    org = await w.make_org(connection)
    content = HEADER + b"".join(line(f"M{n:04}", f"G{n}") for n in range(95))
    async with w.working(database_url, redis_url):
        import_id = await w.put(connection, org, content, pb.ImportSpec(file_name="a.csv"))
        row = await w.ended(connection, import_id)
    assert row["state"] == "SUCCEEDED", row
    assert counts(row) == {"created": 95}
    assert (row["rows_read"], row["bytes_processed"]) == (95, len(content))
    assert await names(connection) == {f"M{n:04}": f"G{n}" for n in range(95)}
    told = await connection.fetch("SELECT * FROM member_changes ORDER BY seq")
    assert {(t["cause"], t["import_id"], t["file_name"], t["actor_name"]) for t in told} == {
        ("IMPORTED", import_id, "a.csv", "Rita Registrar")
    }
    assert [t["seq"] for t in told] == list(range(1, 11))
    placed = await connection.fetch("SELECT member_number, row_no FROM members")
    assert all(int(p["member_number"][1:]) + 1 == p["row_no"] for p in placed)


async def run(
    connection: asyncpg.Connection,
    urls: tuple[str, str],
    org: UUID,
    content: bytes,
    spec: pb.ImportSpec | None = None,
    **given: int,
) -> dict[str, Any]:
    async with w.working(*urls, **given):  # type: ignore[arg-type]
        import_id = await w.put(connection, org, content, spec)
        return await w.ended(connection, import_id)


@pytest.fixture
def urls(database_url: str, redis_url: str) -> tuple[str, str]:
    return database_url, redis_url


async def test_again_nothing_changes(connection: asyncpg.Connection, urls: tuple[str, str]) -> None:
    org = await w.make_org(connection)
    content = HEADER + b"".join(line(f"M{n:04}") for n in range(95))
    await run(connection, urls, org, content)
    before = await connection.fetch("SELECT * FROM members ORDER BY member_number")
    row = await run(connection, urls, org, content)
    assert counts(row) == {"unchanged": 95}
    assert await connection.fetch("SELECT * FROM members ORDER BY member_number") == before
    assert await connection.fetchval("SELECT count(*) FROM member_history") == 0


async def test_what_differs_is_changed_and_kept_as_it_was(
    connection: asyncpg.Connection, urls: tuple[str, str]
) -> None:
    org = await w.make_org(connection)
    await run(connection, urls, org, HEADER + line("A", "Ann") + line("B", "Bob"))
    row = await run(connection, urls, org, HEADER + line("A", "Ann") + line("B", "Rob") + line("C"))
    assert counts(row) == {"created": 1, "updated": 1, "unchanged": 1}
    assert await names(connection) == {"A": "Ann", "B": "Rob", "C": "Ann"}
    image = await connection.fetchrow("SELECT * FROM member_history")
    assert image is not None
    assert (image["given_name"], image["version"]) == ("Bob", 1)


async def test_columns_that_the_file_lacks_stay(
    connection: asyncpg.Connection, urls: tuple[str, str]
) -> None:
    org = await w.make_org(connection)
    first = b"member_number,given_name,status,email,attributes.shoe,attributes.hat\n"
    await run(connection, urls, org, first + b"A,Ann,SUSPENDED,a@example.com,43,L\n")
    second = b"member_number,given_name,status,attributes.hat,attributes.bag\n"
    row = await run(connection, urls, org, second + b"A,Eva,,,red\nB,Bob,,,\n")
    assert counts(row) == {"created": 1, "updated": 1}
    found = await connection.fetch(
        "SELECT given_name, status, email, attributes::text FROM members ORDER BY member_number"
    )
    assert [tuple(f) for f in found] == [
        ("Eva", "SUSPENDED", "a@example.com", '{"bag": "red", "shoe": "43"}'),
        ("Bob", "ACTIVE", "", "{}"),
    ]


async def test_create_mode_refuses_what_is_there(
    connection: asyncpg.Connection, urls: tuple[str, str]
) -> None:
    org = await w.make_org(connection)
    await run(connection, urls, org, HEADER + line("B", "Bob"))
    content = HEADER + line("A") + line("B", "Rob") + line("C")
    row = await run(connection, urls, org, content, pb.ImportSpec(mode=pb.IMPORT_MODE_CREATE))
    assert counts(row) == {"created": 2, "rejected": 1}
    assert await w.rejects(connection, row["import_id"]) == [
        (2, 3, content.index(b"B,Rob"), "member_number", "MEMBER_EXISTS", line("B", "Rob")[:-1])
    ]


async def test_deleted_members_and_inverted_dates_are_refused(
    connection: asyncpg.Connection, urls: tuple[str, str]
) -> None:
    org = await w.make_org(connection)
    rest = "ACTIVE,2025-01-01,"
    await run(connection, urls, org, HEADER + line("A") + line("B", rest=rest) + line("C"))
    await connection.execute(
        "UPDATE members SET deleted_at = now(), purge_at = now() WHERE member_number = 'A'"
    )
    inverted = line("D", rest="ACTIVE,2025-02-01,2025-01-01")
    content = HEADER + line("A", "Eva") + inverted + line("C", "Eva")
    row = await run(connection, urls, org, content)
    assert counts(row) == {"updated": 1, "rejected": 2}
    found = await w.rejects(connection, row["import_id"])
    assert [f[0:5] for f in found] == [
        (1, 2, len(HEADER), "member_number", "MEMBER_DELETED"),
        (2, 3, content.index(inverted), "effective_to", "DATES_INVERTED"),
    ]
    row = await run(connection, urls, org, b"member_number,effective_to\nB,2024-12-31\n")
    assert counts(row) == {"rejected": 1}


@pytest.mark.parametrize("lanes", [1, 2, 4])
@pytest.mark.parametrize("batch_rows", [1, 3, 50])
async def test_the_later_row_wins_whatever_the_borders(
    connection: asyncpg.Connection, urls: tuple[str, str], lanes: int, batch_rows: int
) -> None:
    org = await w.make_org(connection)
    await run(connection, urls, org, HEADER + line("A", "Old") + line("B", "Old") + line("Z"))
    rows = [("A", "Old"), ("C", "1"), ("B", "1"), ("A", "2"), ("Z", "Ann"), ("C", "2"),
            ("Z", "Ann"), ("D", "1"), ("B", "3"), ("C", "3")]  # fmt: skip
    content = HEADER + b"".join(line(number, given) for number, given in rows)
    row = await run(connection, urls, org, content, lanes=lanes, batch_rows=batch_rows)
    assert row["state"] == "SUCCEEDED"
    assert await names(connection) == {"A": "2", "B": "3", "C": "3", "D": "1", "Z": "Ann"}
    assert counts(row) == {"created": 2, "updated": 2, "unchanged": 1, "superseded": 5}
    found = await w.rejects(connection, row["import_id"])
    assert [(f[0], f[1], f[4]) for f in found] == [
        (n, n + 1, "SUPERSEDED") for n in (1, 2, 3, 5, 6)
    ]
    for row_no, _, offset, column, _, raw in found:
        assert (column, raw) == ("member_number", line(*rows[row_no - 1])[:-1])
        assert content[offset:].startswith(raw)


async def test_too_many_rejects_end_it(
    connection: asyncpg.Connection, urls: tuple[str, str]
) -> None:
    org = await w.make_org(connection)
    content = HEADER + line("A") + line("") + line("") + line("B")
    row = await run(connection, urls, org, content, pb.ImportSpec(max_rejects=1))
    assert (row["state"], row["rejected"]) == ("FAILED", 2)
    assert "REASON_IMPORT_TOO_MANY_REJECTS" in str(row["problem"])
    row = await run(connection, urls, org, content, pb.ImportSpec(max_rejects=2))
    assert row["state"] == "SUCCEEDED"
    row = await run(connection, urls, org, content, pb.ImportSpec(max_reject_ratio=0.4))
    assert (row["state"], row["rejected"]) == ("FAILED", 2)
    row = await run(connection, urls, org, content, pb.ImportSpec(max_reject_ratio=0.5))
    assert row["state"] == "SUCCEEDED"


async def test_quotas_of_members_and_rows(
    connection: asyncpg.Connection, urls: tuple[str, str]
) -> None:
    org = await w.make_org(connection, members=3, import_rows=6)
    content = HEADER + b"".join(line(name) for name in "ABCDE")
    row = await run(connection, urls, org, content, batch_rows=2)
    assert counts(row) == {"created": 3, "rejected": 2}
    found = await w.rejects(connection, row["import_id"])
    assert [(f[0], f[4]) for f in found] == [
        (4, "MEMBER_QUOTA_REACHED"), (5, "MEMBER_QUOTA_REACHED"),
    ]  # fmt: skip
    row = await run(connection, urls, org, content + line("F") + line("G"), batch_rows=2)
    assert row["state"] == "FAILED"
    assert "REASON_IMPORT_TOO_MANY_ROWS" in str(row["problem"])


async def test_a_header_alone_is_no_rows(
    connection: asyncpg.Connection, urls: tuple[str, str]
) -> None:
    org = await w.make_org(connection)
    row = await run(connection, urls, org, HEADER)
    assert (row["state"], row["rows_read"]) == ("SUCCEEDED", 0)


async def test_cancelled_while_it_runs(
    connection: asyncpg.Connection, urls: tuple[str, str]
) -> None:
    org = await w.make_org(connection)
    content = HEADER + b"".join(line(f"M{n:05}") for n in range(20_000))
    import_id = await w.put(connection, org, content)
    async with w.working(*urls, batch_rows=10):
        while (await w.row(connection, import_id))["created"] == 0:
            pass
        await connection.execute("UPDATE jobs SET cancel_requested_at = now()")
        row = await w.ended(connection, import_id)
    assert row["state"] == "CANCELLED"
    created = await connection.fetchval("SELECT count(*) FROM members")
    assert 0 < row["created"] == created < 20_000


async def test_atomic_shows_all_or_nothing(
    connection: asyncpg.Connection, urls: tuple[str, str]
) -> None:
    org = await w.make_org(connection)
    await run(connection, urls, org, HEADER + line("A", "Old") + line("B", "Bob"))
    content = HEADER + line("A", "1") + b"".join(line(f"M{n:03}") for n in range(50))
    content += line("A", "2") + line("B", "Bob")
    spec = pb.ImportSpec(commit=pb.COMMIT_MODE_ATOMIC)
    row = await run(connection, urls, org, content, spec)
    assert row["state"] == "SUCCEEDED", row["problem"]
    assert counts(row) == {"created": 50, "updated": 1, "unchanged": 1, "superseded": 1}
    assert (await names(connection))["A"] == "2"
    changes = await connection.fetchval(
        "SELECT count(*) FROM member_changes WHERE import_id = $1", row["import_id"]
    )
    assert changes == 1


async def test_a_plan_is_applied_as_it_was_made_or_not_at_all(
    connection: asyncpg.Connection, urls: tuple[str, str]
) -> None:
    org = await w.make_org(connection)
    await run(connection, urls, org, HEADER + line("A", "Old") + line("B", "Bob"))
    content = HEADER + line("A", "New") + line("B", "Bob") + line("C") + line("")
    row = await run(connection, urls, org, content, pb.ImportSpec(validate_only=True))
    assert (row["state"], row["applied_at"]) == ("SUCCEEDED", None)
    planned = json.loads(str(row["plan"]))
    assert {k: v for k, v in planned.items() if k not in ("etag", "plan_time")} == {
        "created": "1", "updated": "1", "unchanged": "1", "rejected": "1", "members_before": "2"
    }  # fmt: skip
    assert await names(connection) == {"A": "Old", "B": "Bob"}
    async with w.working(*urls):
        await w.queue_again(connection, org, row["import_id"], w.JOB_COMMIT)
        row = await w.ended(connection, row["import_id"])
    assert (row["state"], row["applied_at"] is None) == ("SUCCEEDED", False)
    assert counts(row) == {"created": 1, "updated": 1, "unchanged": 1, "rejected": 1}
    assert await names(connection) == {"A": "New", "B": "Bob", "C": "Ann"}


@pytest.mark.parametrize(
    "meddle",
    [
        "UPDATE members SET version = version + 1, given_name = 'Eve' WHERE member_number = 'A'",
        "UPDATE members SET version = version + 1, given_name = 'Eve' WHERE member_number = 'B'",
        "UPDATE members SET member_number = 'C' WHERE member_number = 'Z'",
        "DELETE FROM members WHERE member_number = 'A'",
    ],
)
async def test_a_plan_that_the_members_left_behind_is_stale(
    connection: asyncpg.Connection, urls: tuple[str, str], meddle: str
) -> None:
    org = await w.make_org(connection)
    await run(connection, urls, org, HEADER + line("A", "Old") + line("B", "Bob") + line("Z"))
    content = HEADER + line("A", "New") + line("B", "Bob") + line("C")
    row = await run(connection, urls, org, content, pb.ImportSpec(validate_only=True))
    await connection.execute(meddle)
    before = await connection.fetch("SELECT * FROM members ORDER BY member_number")
    async with w.working(*urls):
        await w.queue_again(connection, org, row["import_id"], w.JOB_COMMIT)
        row = await w.ended(connection, row["import_id"])
    assert row["state"] == "FAILED"
    assert "REASON_IMPORT_PLAN_STALE" in str(row["problem"])
    assert await connection.fetch("SELECT * FROM members ORDER BY member_number") == before


async def statuses(connection: asyncpg.Connection) -> dict[str, str]:
    rows = await connection.fetch("SELECT member_number, status FROM members")
    return {row["member_number"]: row["status"] for row in rows}


@pytest.mark.parametrize("commit", [pb.COMMIT_MODE_PER_BATCH, pb.COMMIT_MODE_ATOMIC])
async def test_sync_terminates_whom_the_file_does_not_name(
    connection: asyncpg.Connection, urls: tuple[str, str], commit: pb.CommitMode.ValueType
) -> None:
    org = await w.make_org(connection)
    everyone = [f"M{n:03}" for n in range(100)]
    await run(connection, urls, org, HEADER + b"".join(line(n) for n in everyone))
    # M003 is named by a row that is refused, which is no reason to terminate it.
    kept = [line(n) for n in everyone[5:]] + [line("M003", rest="WRONG,,"), line("N")]
    spec = pb.ImportSpec(mode=pb.IMPORT_MODE_SYNC, commit=commit)
    row = await run(connection, urls, org, HEADER + b"".join(kept), spec)
    assert row["state"] == "SUCCEEDED", row["problem"]
    assert counts(row) == {"created": 1, "unchanged": 95, "rejected": 1, "terminated": 4}
    found = await statuses(connection)
    assert {n for n, s in found.items() if s == "TERMINATED"} == {"M000", "M001", "M002", "M004"}
    causes = await connection.fetch("SELECT DISTINCT cause FROM member_changes")
    assert {c["cause"] for c in causes} == {"IMPORTED", "SYNC_TERMINATED"}


@pytest.mark.parametrize("commit", [pb.COMMIT_MODE_PER_BATCH, pb.COMMIT_MODE_ATOMIC])
async def test_the_fuse_waits_for_somebody_to_look(
    connection: asyncpg.Connection, urls: tuple[str, str], commit: pb.CommitMode.ValueType
) -> None:
    org = await w.make_org(connection)
    everyone = [f"M{n:03}" for n in range(100)]
    await run(connection, urls, org, HEADER + b"".join(line(n) for n in everyone))
    spec = pb.ImportSpec(mode=pb.IMPORT_MODE_SYNC, commit=commit)
    content = HEADER + b"".join(line(n) for n in everyone[6:])
    row = await run(connection, urls, org, content, spec)
    assert row["state"] == "AWAITING_COMMIT", row["problem"]
    planned = json.loads(str(row["plan"]))
    assert (planned["terminated"], planned["members_before"]) == ("6", "100")
    assert "REASON_IMPORT_SYNC_FUSE" in str(row["problem"])
    assert set((await statuses(connection)).values()) == {"ACTIVE"}
    async with w.working(*urls):
        await w.queue_again(connection, org, row["import_id"], w.JOB_COMMIT)
        async with asyncio.timeout(30):
            while (row := await w.row(connection, row["import_id"]))["state"] != "SUCCEEDED":
                await asyncio.sleep(0.02)
    assert row["terminated"] == 6
    assert sorted((await statuses(connection)).values()).count("TERMINATED") == 6


@pytest.mark.parametrize("seed", range(12))
async def test_lanes_batches_and_repeats_agree_with_the_model(
    connection: asyncpg.Connection, urls: tuple[str, str], seed: int
) -> None:
    """Members that are there, files mostly the same, mostly new, sorted or not, with repeats."""
    rng = random.Random(seed)
    org = await w.make_org(connection)
    there = {f"M{n:04}": "Old" for n in range(150)}
    await run(connection, urls, org, HEADER + b"".join(line(n, g) for n, g in there.items()))
    numbers = rng.choices([f"M{n:04}" for n in range(rng.choice((150, 400)))], k=rng.choice((0, 9)))
    numbers += list(there) if rng.random() < 0.7 else [f"M{n:04}" for n in range(100, 260)]
    numbers = sorted(numbers) if rng.random() < 0.6 else rng.sample(numbers, len(numbers))
    changes = rng.choice((0.0, 0.02, 0.5))
    rows = [(n, f"G{i}" if rng.random() < changes else "Old") for i, n in enumerate(numbers)]
    content = HEADER + b"".join(line(*row) for row in rows)
    row = await run(
        connection, urls, org, content, lanes=rng.choice((1, 2, 3)), batch_rows=rng.choice((3, 20))
    )
    assert row["state"] == "SUCCEEDED", row["problem"]
    last = {number: row_no for row_no, (number, _) in enumerate(rows, 1)}
    assert await names(connection) == there | {n: rows[i - 1][1] for n, i in last.items()}
    found = await w.rejects(connection, row["import_id"])
    assert [f[0] for f in found] == [
        i for i, (number, _) in enumerate(rows, 1) if last[number] != i
    ]
    told = counts(row)
    assert told.get("superseded", 0) == len(found)
    assert told.get("created", 0) == len(last.keys() - there.keys())
    assert sum(told.values()) == len(rows)
