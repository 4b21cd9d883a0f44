"""The client, a whole server and a worker: from a file to members and back."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Cli, cli  # noqa: F401
from tests.client import rosters
from tests.client.stage import Thread
from tests.daemons import Daemon, environment
from tests.running import Org, Running, make_org, running
from trunkline import AlreadyExists, AsyncClient, Client, ImportFailed
from trunkline._async.watches import AsyncWatch
from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline.api.members.v1.members_service_pb2 import WatchMembersRequest, WatchMembersResponse
from trunkline.types import ChangeCause, MemberChange, Progress, name_of
from trunkline_server.app import Worker
from trunkline_server.rpc.caller import Role

Changes = AsyncWatch[WatchMembersRequest, WatchMembersResponse, MemberChange]

ROWS = 20_000
BAD = sum(rosters.is_bad(row) for row in range(ROWS))
EVERYBODY = [rosters.number(row) for row in range(ROWS)]
# Small, so that a file takes many grants and can be interrupted between any two.
WINDOW_BYTES = 64 << 10
KILLS = 10
WITHIN_S = 60.0


@pytest.fixture
def real(thread: Thread, database_url: str, redis_url: str) -> Iterator[Running]:
    given = {"upload_window_bytes": WINDOW_BYTES}
    with thread.within(lambda: running(database_url, redis_url, **given)) as server:
        yield server


@pytest.fixture
def acme(thread: Thread, real: Running) -> Org:
    org = thread.run(real.org("acme"))
    thread.run(rosters.hurry(real.database_url, org.org_id))
    return org


@pytest.fixture
def worker(thread: Thread, real: Running, redis_url: str) -> Iterator[Worker]:
    with thread.within(lambda: rosters.working(real.database_url, redis_url)) as found:
        yield found


@pytest.fixture
async def admin(real: Running, acme: Org) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(real.address, api_key=acme.keys[Role.ADMIN]) as client:
        yield client


@pytest.fixture
async def system(real: Running, acme: Org) -> AsyncIterator[AsyncClient]:
    """The role of other programs: they follow the members."""
    async with AsyncClient(real.address, api_key=acme.keys[Role.SYSTEM]) as client:
        yield client


async def located(watch: Changes, reading: asyncio.Task[None]) -> None:
    """The server says where a watch is before anything happens."""
    async with asyncio.timeout(WITHIN_S):
        while not watch.checkpoint:
            assert not reading.done(), reading.result()
            await asyncio.sleep(0.01)


async def all_numbers(client: AsyncClient) -> list[str]:
    return [member.member_number async for member in client.members.list(page_size=1000)]


# ---- a file becomes members ----


async def test_bad_rows_are_told_corrected_and_imported(
    admin: AsyncClient, worker: Worker, tmp_path: Path
) -> None:
    file = rosters.roster(tmp_path / "june.csv", ROWS, bad=True)
    job = await admin.imports.upload(file)
    seen: list[Progress] = []
    with pytest.raises(ImportFailed, match=f"rejected {BAD} rows"):
        await job.wait(on_progress=seen.append)
    assert seen[-1].state == "SUCCEEDED"
    assert (seen[-1].rows_read, seen[-1].rows_rejected) == (ROWS, BAD)
    rejects = [reject async for reject in admin.imports.rejects(job.import_id, page_size=7)]
    assert [reject.row_no for reject in rejects] == [
        row + 1 for row in range(ROWS) if rosters.is_bad(row)
    ]
    assert Counter(reject.column for reject in rejects) == {
        "email": BAD // 2,
        "effective_from": BAD // 2,
    }
    assert len(await all_numbers(admin)) == ROWS - BAD

    parts = [part async for part in admin.imports.download_rejects(job.import_id)]
    again = tmp_path / "june-rejects.csv"
    again.write_bytes(rosters.corrected(b"".join(parts)))
    child = await admin.imports.upload(again, parent_import_id=job.import_id)
    assert (await child.wait()).counters.created == BAD
    totals = (await job.refresh()).net_totals
    assert list(totals.child_import_ids) == [child.import_id]
    assert (totals.created, totals.rejected_open) == (ROWS, 0)
    assert await all_numbers(admin) == EVERYBODY
    exported = b"".join([part async for part in admin.members.export()])
    assert exported.count(b"\n") == ROWS + 1


async def test_a_dry_run_changes_nothing_until_it_is_committed(
    admin: AsyncClient, worker: Worker, tmp_path: Path
) -> None:
    file = rosters.roster(tmp_path / "plan.csv", 300, bad=True)
    job = await admin.imports.upload(file, dry_run=True)
    planned = await job.wait(allow_rejects=True)
    assert planned.state == pb.IMPORT_STATE_SUCCEEDED  # at checking
    assert (planned.plan.created, planned.plan.rejected) == (299, 1)
    assert await all_numbers(admin) == []
    await job.commit()
    done = await job.wait(allow_rejects=True)
    assert done.state == pb.IMPORT_STATE_SUCCEEDED
    assert await all_numbers(admin) == [rosters.number(r) for r in range(300) if r != 17]


async def test_a_cancelled_import_makes_no_members(
    admin: AsyncClient, thread: Thread, real: Running, redis_url: str, tmp_path: Path
) -> None:
    job = await admin.imports.upload(rosters.roster(tmp_path / "june.csv", 300))
    await job.cancel()
    with thread.within(lambda: rosters.working(real.database_url, redis_url)):
        with pytest.raises(ImportFailed, match="CANCELLED"):
            await job.wait()
        # What was cancelled does not stand in the way of the same file.
        after = await admin.imports.upload(tmp_path / "june.csv")
        assert (await after.wait()).counters.created == 300
    with pytest.raises(AlreadyExists):
        await admin.imports.upload(tmp_path / "june.csv")


async def test_undone_except_for_what_was_edited_since(
    admin: AsyncClient, worker: Worker, tmp_path: Path
) -> None:
    first = await admin.imports.upload(rosters.roster(tmp_path / "june.csv", 50))
    await first.wait()
    wrong = await admin.imports.upload(rosters.roster(tmp_path / "july.csv", 60, "Babbage"))
    counters = (await wrong.wait()).counters
    assert (counters.created, counters.updated) == (10, 50)
    edited = await admin.members.get(rosters.number(3))
    edited.family_name = "Byron"
    await admin.members.update(edited, ["family_name"])

    await admin.imports.undo(wrong.import_id)
    states = [found async for found in admin.imports.watch(wrong.import_id)]
    assert states[-1].state == pb.IMPORT_STATE_UNDONE
    assert (states[-1].undo.reversed, states[-1].undo.kept_because_edited) == (59, 1)
    kept = admin.imports.undo_results(wrong.import_id, outcomes=["KEPT_BECAUSE_EDITED"])
    assert [result.member_number async for result in kept] == [rosters.number(3)]
    families = Counter([member.family_name async for member in admin.members.list(page_size=9)])
    assert families == {"Lovelace": 49, "Byron": 1}


async def test_a_watch_tells_of_every_member_once(
    admin: AsyncClient, system: AsyncClient, worker: Worker, tmp_path: Path
) -> None:
    watch = system.members.watch()
    begun = asyncio.Event()
    told: list[str] = []

    async def read() -> None:
        async for change in watch:
            assert name_of(ChangeCause, change.cause) in ("CREATED", "IMPORTED")
            told.append(change.member.member_number)
            begun.set()
            if len(told) == 1_201:
                return

    reading = asyncio.create_task(read())
    async with asyncio.timeout(WITHIN_S):
        await located(watch, reading)
        await admin.members.create("FIRST")
        await begun.wait()
        job = await admin.imports.upload(rosters.roster(tmp_path / "june.csv", 1_200))
        await job.wait()
        await reading
    assert told == ["FIRST", *(rosters.number(row) for row in range(1_200))]


def test_the_blocking_client(real: Running, acme: Org, worker: Worker, tmp_path: Path) -> None:
    with Client(real.address, api_key=acme.keys[Role.ADMIN]) as client:
        file = rosters.roster(tmp_path / "june.csv", 1_000, bad=True)
        job = client.imports.upload(file)
        with pytest.raises(ImportFailed, match="rejected 2 rows"):
            job.wait()
        again = rosters.corrected(b"".join(client.imports.download_rejects(job.import_id)))
        client.imports.upload(again, parent_import_id=job.import_id).wait()
        assert job.refresh().net_totals.rejected_open == 0
        assert [member.member_number for member in client.members.list(page_size=400)] == [
            rosters.number(row) for row in range(1_000)
        ]
        with client.imports.rows() as batch:
            batch.add({"member_number": rosters.number(1), "family_name": "Hopper"})
            batch.add({"member_number": "NEW", "family_name": "Hopper"})
        assert batch.job is not None
        assert (batch.job.state.counters.updated, batch.job.state.counters.created) == (1, 1)
        client.imports.undo(batch.job.import_id)
        *_, last = client.imports.watch(batch.job.import_id)
        assert last.undo.reversed == 2
        assert client.members.get(rosters.number(1)).family_name == "Lovelace"


# ---- what breaks on the way ----


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], WITHIN_S)
    return process.stdout.readline().strip() if readable else ""


def test_ten_kills_and_every_member_once(
    real: Running, acme: Org, worker: Worker, thread: Thread, tmp_path: Path
) -> None:
    file = rosters.roster(tmp_path / "june.csv", ROWS)
    size = file.stat().st_size
    command = [sys.executable, "-m", "tests.client.held_upload", real.address]
    command += [acme.keys[Role.ADMIN], str(file)]
    stored: list[int] = []
    for kill in range(1, KILLS + 1):
        stop_at = size * kill // (KILLS + 1)
        with subprocess.Popen(
            [*command, str(stop_at)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as process:
            stored.append(int(line_of(process)))
            process.send_signal(signal.SIGKILL)
    assert stored == sorted(stored)
    assert stored[-1] < size
    done = subprocess.run(
        [*command, str(size + 1)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    with Client(real.address, api_key=acme.keys[Role.ADMIN]) as client:
        job = client.imports.job(done.stdout.strip())
        assert job.wait().counters.created == ROWS
        assert [found.import_id for found in client.imports.list()] == [job.import_id]
        assert [m.member_number for m in client.members.list(page_size=1000)] == EVERYBODY
    assert thread.run(rosters.numbers(real.database_url, acme.org_id)) == EVERYBODY
    assert sorted(tmp_path.iterdir()) == [file]


async def test_a_server_killed_in_the_middle_of_an_upload(
    database_url: str, redis_url: str, unused_tcp_port: int, tmp_path: Path
) -> None:
    org = await make_org(database_url, "acme")
    file = rosters.roster(tmp_path / "june.csv", ROWS)
    variables = environment(
        database_url, redis_url, TRUNKLINE_UPLOAD_WINDOW_BYTES=str(WINDOW_BYTES)
    )
    words = ("serve", "--processes", "1", "--port", str(unused_tcp_port))
    first = Daemon(tmp_path / "first.log", variables, *words)
    killed = asyncio.Event()
    stored: list[int] = []

    def kill_half_way(progress: Progress) -> None:
        stored.append(progress.bytes_stored)
        if progress.bytes_stored >= file.stat().st_size // 2 and not killed.is_set():
            for pid in (first.process.pid, *first.children()):
                os.kill(pid, signal.SIGKILL)
            killed.set()

    told: list[str] = []

    async def follow(watch: Changes) -> None:
        async for change in watch:
            told.append(change.member.member_number)
            if change.member.member_number == EVERYBODY[-1]:
                return

    address = f"127.0.0.1:{unused_tcp_port}"
    with first:
        async with (
            AsyncClient(address, api_key=org.keys[Role.ADMIN]) as client,
            AsyncClient(address, api_key=org.keys[Role.SYSTEM]) as system,
        ):
            watch = system.members.watch()
            following = asyncio.create_task(follow(watch))
            await located(watch, following)
            uploading = asyncio.create_task(client.imports.upload(file, on_progress=kill_half_way))
            await killed.wait()
            at_kill = stored[-1]
            assert at_kill < file.stat().st_size
            second = await asyncio.to_thread(Daemon, tmp_path / "second.log", variables, *words)
            with second:
                async with asyncio.timeout(WITHIN_S):
                    job = await uploading
                async with rosters.working(database_url, redis_url):
                    assert (await job.wait()).counters.created == ROWS
                assert await all_numbers(client) == EVERYBODY
                async with asyncio.timeout(WITHIN_S):
                    await following
    assert told == EVERYBODY  # the watch was open when the server was killed
    assert stored == sorted(stored)
    assert stored[-1] == file.stat().st_size


# ---- the command ----


@pytest.fixture
def here(cli: Cli, real: Running, acme: Org, worker: Worker) -> Cli:  # noqa: F811
    cli.environment["TRUNKLINE_ADDRESS"] = real.address
    cli.environment["TRUNKLINE_API_KEY"] = acme.keys[Role.ADMIN]
    return cli


def test_the_command_from_a_plan_to_corrected_rejects(here: Cli, tmp_path: Path) -> None:
    file = rosters.roster(tmp_path / "june.csv", 1_000, bad=True)
    planned = here("import", str(file), "--dry-run", "--allow-rejects", "-o", "json")
    assert planned.returncode == 0, planned.stderr
    plan = json.loads(planned.stdout)
    assert (plan["state"], plan["plan"]["created"]) == ("IMPORT_STATE_SUCCEEDED", "998")
    assert here("members", "list", "-o", "csv").stdout.count("\n") == 1  # the heading

    failed = here("import", str(file))
    assert failed.returncode == 7
    assert failed.stdout == ""
    assert failed.stderr.count("\n") == 1
    import_id = failed.stderr.partition("imports rejects ")[2].split()[0]
    shown = here("imports", "rejects", import_id)
    assert "EMAIL_INVALID" in shown.stdout
    assert "DATE_INVALID" in shown.stdout
    rejects = tmp_path / "rejects.csv"
    assert here("imports", "rejects", import_id, "--csv", str(rejects)).returncode == 0
    rejects.write_bytes(rosters.corrected(rejects.read_bytes()))
    done = here("import", str(rejects), "--parent", import_id, "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counters"]["created"] == "2"
    found = json.loads(here("imports", "get", import_id, "-o", "json").stdout)
    assert found["net_totals"]["created"] == "1000"
    assert here("members", "validate", rosters.number(17)).returncode == 0

    again = here("import", str(file))
    assert again.returncode == 5
    assert "[IMPORT_SAME_FILE" in again.stderr
    assert here("imports", "undo", import_id).returncode == 0
    followed = here("imports", "watch", import_id, "-o", "json")
    assert followed.returncode == 0, followed.stderr
    assert json.loads(followed.stdout.splitlines()[-1])["state"] == "IMPORT_STATE_UNDONE"
    assert here("members", "list", "-o", "csv").stdout.count("\n") == 3
