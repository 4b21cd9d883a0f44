"""Grants: budgets, windows and the database's latency; what a caller is told when it must wait."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.imports.conftest import House
from tests.imports.uploading import file_of
from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline_server.imports.flow import (
    BACKLOG_LIFE_S,
    COMMIT_MEMORY_S,
    Backlog,
    Flow,
    FlowLimits,
    Grant,
    grant,
    window,
)

LIMITS = FlowLimits(
    stream_window_bytes=1_000,
    stream_window_bytes_min=100,
    process_window_bytes=4_000,
    org_budget_bytes=10_000,
    global_budget_bytes=50_000,
    commit_slow_s=0.25,
)
EMPTY = Backlog(0, 0, False, False)
NONE = pb.PAUSE_REASON_UNSPECIFIED


def granted(backlog: Backlog = EMPTY, **given: Any) -> Grant:
    asked: dict[str, Any] = {
        "persisted": 5_000,
        "size_max": 1 << 30,
        "streams": 1,
        "commit_s": 0.0,
        "oldest_of_org": False,
        "oldest_of_all": False,
    }
    return grant(LIMITS, backlog, **{**asked, **given})


def test_a_window_ahead_of_what_is_stored() -> None:
    assert granted() == (6_000, NONE)
    assert granted(persisted=0) == (1_000, NONE)


def test_never_past_the_files_end() -> None:
    assert granted(size_max=5_200) == (5_200, NONE)


def test_many_streams_share_the_process() -> None:
    assert window(LIMITS, 4, 0.0) == 1_000
    assert window(LIMITS, 8, 0.0) == 500
    assert window(LIMITS, 1_000, 0.0) == 100


def test_a_slow_database_shrinks_the_window_and_says_so() -> None:
    assert granted(commit_s=0.25) == (6_000, NONE)
    assert granted(commit_s=0.5) == (5_500, pb.PAUSE_REASON_DATABASE_SLOW)
    assert granted(commit_s=60) == (5_100, pb.PAUSE_REASON_DATABASE_SLOW)


def test_budgets() -> None:
    assert granted(Backlog(0, 9_700, True, True)) == (5_300, NONE)
    assert granted(Backlog(0, 10_000, True, True)) == (5_000, pb.PAUSE_REASON_ORG_BUDGET)
    assert granted(Backlog(50_000, 0, True, True)) == (5_000, pb.PAUSE_REASON_GLOBAL_BUDGET)
    assert granted(Backlog(60_000, 20_000, True, True)) == (5_000, pb.PAUSE_REASON_ORG_BUDGET)


def test_where_only_uploads_fill_a_budget_the_oldest_goes_on() -> None:
    full = Backlog(50_000, 10_000, False, False)
    assert granted(full).send_limit == 5_000
    assert granted(full, oldest_of_org=True).send_limit == 5_000
    assert granted(full, oldest_of_org=True, oldest_of_all=True) == (6_000, NONE)
    # A worker will make room: then even the oldest waits.
    draining = Backlog(50_000, 10_000, True, True)
    assert granted(draining, oldest_of_org=True, oldest_of_all=True).send_limit == 5_000


@given(
    backlog=st.builds(
        Backlog,
        st.integers(0, 100_000),
        st.integers(0, 100_000),
        st.booleans(),
        st.booleans(),
    ),
    persisted=st.integers(0, 20_000),
    streams=st.integers(1, 200),
    commit_s=st.floats(0, 100),
    oldest=st.booleans(),
)
def test_no_grant_is_below_what_is_stored_or_past_the_window(
    backlog: Backlog, persisted: int, streams: int, commit_s: float, oldest: bool
) -> None:
    given = granted(
        backlog,
        persisted=persisted,
        streams=streams,
        commit_s=commit_s,
        oldest_of_org=oldest,
        oldest_of_all=oldest,
    )
    assert persisted <= given.send_limit <= persisted + LIMITS.stream_window_bytes
    if given.send_limit == persisted:
        assert given.pause != NONE


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Stored:
    """The database's answer about what is stored and not processed."""

    def __init__(self) -> None:
        self.backlog = EMPTY
        self.asked = 0

    async def __call__(self, org_id: UUID) -> Backlog:
        self.asked += 1
        return self.backlog


async def test_what_was_stored_since_the_last_look_counts() -> None:
    clock, database, org_id = Clock(), Stored(), uuid4()
    flow = Flow(database, limits=LIMITS, clock=clock)
    other, stream = flow.enter(uuid4()), flow.enter(org_id)
    database.backlog = Backlog(9_500, 9_500, True, True)
    assert (await flow.grant(stream, 0, 1 << 30)).send_limit == 500
    flow.committed(stream, 400, 0.01)
    flow.committed(other, 5_000, 0.01)
    assert (await flow.grant(stream, 400, 1 << 30)).send_limit == 500
    assert database.asked == 1
    assert flow.unprocessed_bytes == 14_900
    clock.now += BACKLOG_LIFE_S + 0.01
    database.backlog = Backlog(0, 0, False, False)
    assert (await flow.grant(stream, 400, 1 << 30)).send_limit == 1_400
    assert (flow.stored_bytes, flow.granted_bytes) == (5_400, 1_400)


async def test_a_slow_commit_is_forgotten_when_nobody_commits() -> None:
    clock = Clock()
    flow = Flow(Stored(), limits=LIMITS, clock=clock)
    stream = flow.enter(uuid4())
    for _ in range(50):
        flow.committed(stream, 1, 2.0)
    assert flow.commit_s == pytest.approx(2.0, rel=0.01)
    clock.now += COMMIT_MEMORY_S + 0.01
    assert flow.commit_s == 0.0
    flow.committed(stream, 1, 0.1)
    assert flow.commit_s < 0.1


async def test_the_oldest_is_the_one_that_came_first_and_is_still_there() -> None:
    database = Stored()
    database.backlog = Backlog(50_000, 10_000, False, False)
    flow = Flow(database, limits=LIMITS)
    org_id = uuid4()
    first, second = flow.enter(org_id), flow.enter(org_id)
    assert (await flow.grant(second, 0, 1 << 30)).send_limit == 0
    assert (await flow.grant(first, 0, 1 << 30)).send_limit > 0
    flow.leave(first)
    assert (await flow.grant(second, 0, 1 << 30)).send_limit > 0
    assert flow.streams == 1


# ---- Through a real server ----


async def test_a_full_budget_pauses_until_a_worker_makes_room(house: House, superuser: Any) -> None:
    server = await house.server(upload_org_budget_bytes=100_000, upload_window_bytes=60_000)
    importer = await house.importer(server)
    data = file_of(2_000)[:60_000]
    waiting = await importer.whole(data)
    upload = await importer.opened()
    assert upload.send_limit <= 40_000
    await upload.chunk(0, file_of(3_000)[: upload.send_limit])
    pause = await upload.until("pause")
    assert pause.reason == pb.PAUSE_REASON_ORG_BUDGET
    assert pause.expected_duration.ToMilliseconds() > 0
    before = upload.send_limit
    await superuser.execute(
        "UPDATE imports SET bytes_processed = persisted_bytes WHERE import_id = $1::text::uuid",
        waiting.import_id,
    )
    async with asyncio.timeout(10):
        while upload.send_limit == before:
            await upload.read()
    upload.cancel()


async def test_uploads_alone_cannot_block_each_other_for_ever(house: House) -> None:
    """Both files are larger than the budget: one after the other they go through."""
    server = await house.server(upload_org_budget_bytes=50_000, upload_window_bytes=20_000)
    importer = await house.importer(server)
    files = [file_of(4_000), file_of(4_100)]

    async def send(data: bytes) -> None:
        upload = await importer.opened()
        await upload.send(data, size=10_000)
        await upload.finish(data)
        await upload.until("done")
        upload.cancel()

    async def drain() -> None:
        """A worker, as far as budgets see it."""
        while True:
            await asyncio.sleep(0.05)
            await house.superuser.execute(
                "UPDATE imports SET bytes_processed = persisted_bytes WHERE state = 'QUEUED'"
            )

    worker = asyncio.create_task(drain())
    async with asyncio.timeout(60):
        await asyncio.gather(*map(send, files))
    worker.cancel()
