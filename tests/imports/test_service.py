"""Opening, waiting, deciding, watching, listing and downloading, through a real server."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest

from tests.imports.conftest import House
from tests.imports.uploading import HEADER, SMALL, Importer, file_of, refused
from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline.api.imports.v1 import reject_code_pb2
from trunkline_server.imports import rules
from trunkline_server.rpc.caller import Role

RE = grpc.StatusCode.RESOURCE_EXHAUSTED
FP = grpc.StatusCode.FAILED_PRECONDITION
IA = grpc.StatusCode.INVALID_ARGUMENT


class Worker:
    """What the worker writes, written by hand."""

    def __init__(self, superuser: Any) -> None:
        self._superuser = superuser

    async def set(self, import_id: str, **columns: Any) -> None:
        """Through the states in between, as the table insists."""
        assignments = ", ".join(f"{name} = ${i}" for i, name in enumerate(columns, start=2))
        await self._superuser.execute(
            f"UPDATE imports SET {assignments} WHERE import_id = $1::text::uuid",
            import_id, *columns.values(),
        )  # fmt: skip

    async def run(self, import_id: str) -> None:
        await self.set(import_id, state="RUNNING", started_at=datetime.now(UTC), attempts=1)
        await self._superuser.execute(
            "UPDATE jobs SET state = 'RUNNING', lease_owner = 'test',"
            " lease_until = now() + interval '1 hour' WHERE subject_id = $1::text::uuid",
            import_id,
        )

    async def end(self, import_id: str, state: str = "SUCCEEDED", **columns: Any) -> None:
        await self.run(import_id)
        await self.set(
            import_id, state=state, ended_at=datetime.now(UTC),
            expires_at=datetime.now(UTC) + timedelta(days=7), **columns,
        )  # fmt: skip
        await self._superuser.execute(
            "UPDATE jobs SET state = $2, finished_at = now(), lease_owner = NULL,"
            " lease_until = NULL WHERE subject_id = $1::text::uuid AND state = 'RUNNING'",
            import_id, "DEAD" if state == "DEAD" else "SUCCEEDED",
        )  # fmt: skip

    async def reject(self, import_id: str, *rows: tuple[int, str, bytes]) -> None:
        await self._superuser.executemany(
            "INSERT INTO import_rejects (org_id, import_id, row_no, line_no, byte_offset,"
            " column_name, code, message, raw)"
            " SELECT org_id, import_id, $2::bigint, $2 + 1, $2 * 10, 'email', $3, 'It is wrong.',"
            " $4 FROM imports WHERE import_id = $1::text::uuid",
            [(import_id, row_no, code, raw) for row_no, code, raw in rows],
        )


@pytest.fixture
def worker(superuser: Any) -> Worker:
    return Worker(superuser)


async def job_states(superuser: Any, import_id: str) -> list[tuple[str, str]]:
    rows = await superuser.fetch(
        "SELECT kind, state FROM jobs WHERE subject_id = $1::text::uuid ORDER BY job_id", import_id
    )
    return [(row["kind"], row["state"]) for row in rows]


# ---- Opening ----


async def test_create_tells_where_to_begin(importer: Importer) -> None:
    reply = await importer.create(file_name="a.csv", mode=pb.IMPORT_MODE_SYNC)
    created = getattr(reply, "import")
    assert created.state == pb.IMPORT_STATE_CREATED
    assert created.actor_name == "org-1 ADMIN"
    assert reply.upload.import_id == created.import_id
    assert (reply.upload.persisted_bytes, reply.upload.epoch) == (0, 0)
    assert reply.upload.send_limit > 0 and reply.upload.chunk_bytes_max == 1 << 20
    left = reply.upload.expire_time.ToDatetime(UTC) - datetime.now(UTC)
    assert timedelta(hours=23) < left <= timedelta(hours=24)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"dialect": pb.Dialect(has_header=False)}, "spec.columns"),
        (
            {
                "dialect": pb.Dialect(has_header=False),
                "columns": [pb.ColumnMapping(column="2", field=pb.IMPORT_FIELD_MEMBER_NUMBER)],
            },
            "spec.columns",
        ),
        (
            {
                "columns": [
                    pb.ColumnMapping(column="A", field=pb.IMPORT_FIELD_EMAIL),
                    pb.ColumnMapping(column=" a ", ignored=True),
                ]
            },
            "spec.columns[1].column",
        ),
        (
            {
                "columns": [
                    pb.ColumnMapping(column="a", field=pb.IMPORT_FIELD_EMAIL),
                    pb.ColumnMapping(column="b", field=pb.IMPORT_FIELD_EMAIL),
                ]
            },
            "spec.columns",
        ),
        (
            {"columns": [pb.ColumnMapping(column="a", attribute="a" * 60)]},
            "spec.columns[0].attribute",
        ),
        ({"sync_max_terminations_ratio": 0.5}, "spec.sync_max_terminations_ratio"),
    ],
)
async def test_a_spec_that_contradicts_itself(
    importer: Importer, spec: dict[str, Any], field: str
) -> None:
    error = await refused(importer.create(**spec))
    assert (error.code, error.reason) == (IA, "IMPORT_SPEC_INVALID")
    assert [v.field for v in error.details["BadRequest"].field_violations] == [field]


async def test_a_parent_must_have_ended(importer: Importer, worker: Worker) -> None:
    parent = await importer.whole(SMALL)
    for parent_id in (parent.import_id, str(uuid4())):
        error = await refused(importer.create(parent_import_id=parent_id))
        assert (error.code, error.reason) == (FP, "IMPORT_PARENT_INVALID")
    await worker.end(parent.import_id, created=2, rejected=5)
    child = await importer.whole(SMALL + b"M-3,,\n", parent_import_id=parent.import_id)
    await worker.end(child.import_id, created=3, updated=1)
    totals = (await importer.look(parent.import_id)).net_totals
    assert list(totals.child_import_ids) == [child.import_id]
    assert (totals.created, totals.updated, totals.rejected_open) == (5, 1, 1)


async def test_a_users_uploads_are_limited(house: House, server: Any) -> None:
    importer = await house.importer(server, user_uploads_per_5_minutes=2)
    request_id = str(uuid4())
    await importer.create(request_id)
    await importer.create()
    error = await refused(importer.create())
    assert (error.code, error.reason) == (RE, "IMPORT_UPLOADS_LIMITED")
    assert 0 < error.details["RetryInfo"].retry_delay.seconds <= 300
    assert [v.subject for v in error.details["QuotaFailure"].violations] == ["user"]
    # Another user has uploads of his own, and a repeat is none.
    await Importer(server, importer.org, Role.REGISTRAR).create()
    await importer.create(request_id)


# ---- Waiting ----


async def test_over_the_start_quota_an_import_waits(house: House, server: Any) -> None:
    importer = await house.importer(server, import_starts_per_minute=2)
    done = [await importer.whole(SMALL + b"M-9,%d,\n" % i) for i in range(5)]
    now = datetime.now(UTC)
    found = [(await importer.look(one.import_id)).queue for one in done]
    assert [queue.position for queue in found] == [1, 2, 3, 4, 5]
    starts = [(q.earliest_start_time.ToDatetime(UTC) - now).total_seconds() for q in found]
    assert all(start <= 0 for start in starts[:2])
    assert all(50 < start <= 60 for start in starts[2:4])
    assert 110 < starts[4] <= 120
    assert [q.cause for q in found[2:]] == [pb.QUEUE_CAUSE_START_RATE] * 3


async def test_a_cancelled_import_gives_its_start_back(house: House, server: Any) -> None:
    importer = await house.importer(server, import_starts_per_minute=1)
    first = await importer.whole(SMALL)
    request = pb.CancelImportRequest(request_id=str(uuid4()), import_id=first.import_id)
    await importer.call("CancelImport", request)
    second = await importer.whole(SMALL)
    assert second.queue.earliest_start_time.ToDatetime(UTC) <= datetime.now(UTC)


async def test_causes_of_waiting(house: House, server: Any, worker: Worker, superuser: Any) -> None:
    importer = await house.importer(server, imports_running=1)
    first = await importer.whole(SMALL)
    second = await importer.whole(SMALL, allow_same_file=True)
    cause = (await importer.look(second.import_id)).queue.cause
    assert cause == pb.QUEUE_CAUSE_WORKERS_BUSY
    await worker.run(first.import_id)
    queue = (await importer.look(second.import_id)).queue
    assert (queue.cause, queue.position) == (pb.QUEUE_CAUSE_RUNNING_QUOTA, 1)
    await superuser.execute(
        "UPDATE jobs SET run_after = now() + interval '5 s' WHERE subject_id = $1::text::uuid",
        second.import_id,
    )
    cause = (await importer.look(second.import_id)).queue.cause
    assert cause == pb.QUEUE_CAUSE_RETRY_DELAY


async def test_a_full_waiting_list(house: House, server: Any) -> None:
    importer = await house.importer(server, imports_waiting=1, import_starts_per_minute=1)
    late = await importer.opened()
    await importer.whole(SMALL)
    error = await refused(importer.create())
    assert (error.code, error.reason) == (RE, "IMPORT_QUEUE_FULL")
    assert error.details["RetryInfo"].retry_delay.seconds >= 0
    assert error.details["QuotaFailure"].violations
    # An upload that was let in is not lost: Finish can be said again when there is room.
    data = file_of(3)
    await late.send(data)
    await late.finish(data)
    refusal = await late.refusal()
    assert (refusal.code, refusal.reason) == (RE, "IMPORT_QUEUE_FULL")
    assert refusal.refused is not None and refusal.refused.resumable


async def test_organisations_do_not_wait_for_each_other(house: House, server: Any) -> None:
    for _ in range(2):
        importer = await house.importer(server, import_starts_per_minute=1, imports_waiting=1)
        done = await importer.whole(SMALL)
        assert done.queue.position == 1
        assert done.queue.cause == pb.QUEUE_CAUSE_WORKERS_BUSY


# ---- Deciding ----


async def decide(importer: Importer, method: str, import_id: str, **given: Any) -> pb.Import:
    request_class = getattr(pb, f"{method}Request")
    request = request_class(request_id=str(uuid4()), import_id=import_id, **given)
    return getattr(await importer.call(method, request), "import")  # type: ignore[no-any-return]


async def test_cancel_before_a_worker_has_it(importer: Importer, superuser: Any) -> None:
    upload = await importer.opened()
    await upload.chunk(0, SMALL[:40])
    await upload.stored(40)
    found = await decide(importer, "CancelImport", upload.import_id)
    assert found.state == pb.IMPORT_STATE_CANCELLED
    assert found.problem.code == grpc.StatusCode.CANCELLED.value[0]
    await upload.chunk(40, SMALL[40:])
    assert (await upload.refusal()).reason == "IMPORT_STATE"
    queued = await importer.whole(SMALL)
    assert (
        await decide(importer, "CancelImport", queued.import_id)
    ).state == pb.IMPORT_STATE_CANCELLED
    assert await job_states(superuser, queued.import_id) == [("imports.run", "CANCELLED")]
    again = await decide(importer, "CancelImport", queued.import_id)
    assert again.state == pb.IMPORT_STATE_CANCELLED


async def test_cancel_asks_a_running_import(
    importer: Importer, worker: Worker, superuser: Any
) -> None:
    done = await importer.whole(SMALL)
    await worker.run(done.import_id)
    found = await decide(importer, "CancelImport", done.import_id)
    assert found.state == pb.IMPORT_STATE_RUNNING
    asked = "SELECT cancel_requested_at FROM jobs WHERE subject_id = $1::text::uuid"
    assert await superuser.fetchval(asked, done.import_id) is not None


@pytest.mark.parametrize("state", ["FAILED", "DEAD"])
async def test_retry_queues_once_more(
    importer: Importer, worker: Worker, superuser: Any, state: str
) -> None:
    done = await importer.whole(SMALL)
    error = await refused(decide(importer, "RetryImport", done.import_id))
    assert (error.code, error.reason) == (FP, "IMPORT_STATE")
    assert error.details["PreconditionFailure"].violations[0].subject == "QUEUED"
    await worker.end(done.import_id, state, rows_read=1, created=1)
    found = await decide(importer, "RetryImport", done.import_id)
    assert found.state == pb.IMPORT_STATE_QUEUED
    assert found.counters.created == 1
    assert not found.HasField("end_time") and not found.HasField("expire_time")
    assert (await job_states(superuser, done.import_id))[-1] == ("imports.run", "QUEUED")


async def test_retry_of_an_upload_that_never_ended(importer: Importer) -> None:
    upload = await importer.opened()
    await upload.chunk(0, b"given_name,email\nAda,\n")
    await upload.refusal()
    assert (await refused(decide(importer, "RetryImport", upload.import_id))).code is FP


async def planned(importer: Importer, worker: Worker, **columns: Any) -> str:
    done = await importer.whole(SMALL, mode=pb.IMPORT_MODE_SYNC)
    plan = json.dumps({"etag": "p1", "created": "2", "terminated": "7"})
    await worker.run(done.import_id)
    await worker.set(done.import_id, state="AWAITING_COMMIT", plan=plan, plan_etag="p1", **columns)
    return done.import_id


async def test_commit_takes_the_plan_that_was_looked_at(
    importer: Importer, worker: Worker, superuser: Any
) -> None:
    import_id = await planned(importer, worker)
    assert (await importer.look(import_id)).plan.terminated == 7
    error = await refused(decide(importer, "CommitImport", import_id, plan_etag="other"))
    assert (error.code, error.reason) == (FP, "IMPORT_PLAN_STALE")
    error = await refused(
        decide(importer, "CommitImport", import_id, plan_etag="p1", confirm_terminations=6)
    )
    assert error.reason == "IMPORT_SYNC_FUSE"
    found = await decide(importer, "CommitImport", import_id, plan_etag="p1")
    assert found.state == pb.IMPORT_STATE_QUEUED
    assert (await job_states(superuser, import_id))[-1] == ("imports.commit", "QUEUED")


async def test_a_blown_fuse_needs_the_exact_number(importer: Importer, worker: Worker) -> None:
    problem = json.dumps({"code": 9, "reason": "REASON_IMPORT_SYNC_FUSE"})
    import_id = await planned(importer, worker, problem=problem)
    error = await refused(decide(importer, "CommitImport", import_id, plan_etag="p1"))
    assert error.details["ErrorInfo"].metadata["terminations"] == "7"
    found = await decide(
        importer, "CommitImport", import_id, plan_etag="p1", confirm_terminations=7
    )
    assert found.state == pb.IMPORT_STATE_QUEUED


async def test_a_checked_file_can_be_committed(importer: Importer, worker: Worker) -> None:
    done = await importer.whole(SMALL, validate_only=True)
    plan = json.dumps({"etag": "p2", "created": "2"})
    await worker.end(done.import_id, plan=plan, plan_etag="p2")
    error = await refused(decide(importer, "UndoImport", done.import_id))
    assert error.reason == "IMPORT_NOT_UNDOABLE"
    found = await decide(importer, "CommitImport", done.import_id, plan_etag="p2")
    assert found.state == pb.IMPORT_STATE_QUEUED


async def test_undo_is_queued_for_an_administrator(
    house: House, importer: Importer, worker: Worker, superuser: Any
) -> None:
    done = await importer.whole(SMALL)
    assert (await refused(decide(importer, "UndoImport", done.import_id))).reason == "IMPORT_STATE"
    await worker.end(done.import_id)
    registrar = Importer(importer.running, importer.org, Role.REGISTRAR)
    error = await refused(decide(registrar, "UndoImport", done.import_id))
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    found = await decide(importer, "UndoImport", done.import_id)
    assert found.state == pb.IMPORT_STATE_UNDOING
    assert found.undo.actor_id and found.undo.HasField("request_time")
    assert (await job_states(superuser, done.import_id))[-1] == ("imports.undo", "QUEUED")
    audited = "SELECT count(*) FROM audit_log WHERE action = 'imports.UndoImport'"
    assert await superuser.fetchval(audited) == 1


async def test_the_table_refuses_what_the_machine_does_not_know(
    importer: Importer, worker: Worker
) -> None:
    done = await importer.whole(SMALL)
    with pytest.raises(Exception, match="does not go from QUEUED to UNDONE"):
        await worker.set(done.import_id, state="UNDONE")
    await worker.set(done.import_id, rows_read=5)
    with pytest.raises(Exception, match="only grow"):
        await worker.set(done.import_id, rows_read=4)


# ---- Watching and listing ----


async def test_a_watch_ends_with_the_import(importer: Importer, worker: Worker) -> None:
    done = await importer.whole(SMALL)
    call = importer.watch(done.import_id)
    states: list[int] = []

    async def read() -> None:
        while (change := await call.read()) is not grpc.aio.EOF:
            states.append(getattr(change, "import").state)

    reading = asyncio.create_task(read())
    async with asyncio.timeout(10):
        while not states:
            await asyncio.sleep(0.01)
        await worker.run(done.import_id)
        while states[-1] != pb.IMPORT_STATE_RUNNING:
            await asyncio.sleep(0.01)
        await worker.set(done.import_id, state="SUCCEEDED", ended_at=datetime.now(UTC), rows_read=2)
        await reading
    assert states[0] == pb.IMPORT_STATE_QUEUED
    assert states[-1] == pb.IMPORT_STATE_SUCCEEDED
    assert len(states) <= 4


async def test_a_watch_hears_of_decisions_at_once(importer: Importer) -> None:
    done = await importer.whole(SMALL)
    call = importer.watch(done.import_id)
    first = await call.read()
    assert getattr(first, "import").state == pb.IMPORT_STATE_QUEUED
    await asyncio.sleep(1.0)  # the watch looks seldom by now
    started = asyncio.get_running_loop().time()
    await decide(importer, "CancelImport", done.import_id)
    last = await call.read()
    assert getattr(last, "import").state == pb.IMPORT_STATE_CANCELLED
    assert asyncio.get_running_loop().time() - started < 0.5
    assert await call.read() is grpc.aio.EOF


async def test_a_drain_sends_watches_away(house: House) -> None:
    server = await house.server()
    importer = await house.importer(server)
    done = await importer.whole(SMALL)
    call = importer.watch(done.import_id)
    await call.read()
    stopping = asyncio.create_task(server.server.stop())
    change = await call.read()
    assert change.go_away
    assert await call.read() is grpc.aio.EOF
    assert await stopping


async def test_pages_of_imports(importer: Importer) -> None:
    ids = [await importer.new(file_name=f"{i}.csv") for i in range(5)]
    await importer.whole(SMALL)
    seen: list[str] = []
    request = pb.ListImportsRequest(page_size=2, states=[pb.IMPORT_STATE_CREATED])
    while True:
        page = await importer.call("ListImports", request)
        seen += [one.import_id for one in page.imports]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == ids[::-1]
    request.states.append(pb.IMPORT_STATE_QUEUED)
    assert (await refused(importer.call("ListImports", request))).reason == "PAGE_TOKEN_INVALID"


async def test_filters_of_lists(importer: Importer) -> None:
    import_id = await importer.new()
    registrar = Importer(importer.running, importer.org, Role.REGISTRAR)
    other = await registrar.new()
    mine = (await importer.look(import_id)).actor_id
    page = await importer.call("ListImports", pb.ListImportsRequest(actor_id=mine))
    assert [one.import_id for one in page.imports] == [import_id]
    request = pb.ListImportsRequest()
    request.from_time.CopyFrom((await importer.look(other)).create_time)
    page = await importer.call("ListImports", request)
    assert [one.import_id for one in page.imports] == [other]
    request = pb.ListImportsRequest(parent_import_id=import_id)
    assert not (await importer.call("ListImports", request)).imports


# ---- Rejects, undo results, template ----


async def download(importer: Importer, import_id: str, **given: Any) -> bytes:
    request = pb.DownloadRejectsRequest(import_id=import_id, **given)
    call = importer.stub.DownloadRejects(request, metadata=importer.metadata)
    return b"".join([part.data async for part in call])


BAD = (
    (2, "EMAIL_INVALID", b"M-2,Bob,=cmd|calc"),
    (5, "COLUMN_COUNT", b"M-5,Eve"),
    (6, "COLUMN_COUNT", b"M-6,Eve,a@b.c,more,and more"),
    (9, "UNCLOSED_QUOTE", b'M-9,"Zo\xc3\xab,z@example.org'),
    (11, "INVALID_UTF8", b"M-11,\xff,x@example.org"),
    (12, "EMAIL_INVALID", b'M-12,"Quoted, ""twice""",+4930123'),
)


async def test_rejects_come_as_a_file_to_correct(importer: Importer, worker: Worker) -> None:
    done = await importer.whole(SMALL)
    await worker.reject(done.import_id, *BAD)
    text = (await download(importer, done.import_id)).decode()
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    assert rows[0] == ["member_number", "given_name", "email", "reject_code", "reject_message"]
    assert rows[1:] == [
        ["M-2", "Bob", "=cmd|calc", "EMAIL_INVALID", "It is wrong."],
        ["M-5", "Eve", "", "COLUMN_COUNT", "It is wrong."],
        ["M-6", "Eve", "a@b.c,more,and more", "COLUMN_COUNT", "It is wrong."],
        ['M-9,"Zoë,z@example.org', "", "", "UNCLOSED_QUOTE", "It is wrong."],
        ["M-11", "\ufffd", "x@example.org", "INVALID_UTF8", "It is wrong."],
        ["M-12", 'Quoted, "twice"', "+4930123", "EMAIL_INVALID", "It is wrong."],
    ]
    neutral = (await download(importer, done.import_id, neutralise_formulas=True)).decode()
    cells = [row[2] for row in csv.reader(io.StringIO(neutral, newline=""))]
    assert cells[1] == "'=cmd|calc" and cells[-1] == "'+4930123"
    only = await download(
        importer, done.import_id, codes=[reject_code_pb2.REJECT_CODE_UNCLOSED_QUOTE]
    )
    assert only.count(b"\n") == 2
    # The file goes back in as it is: the two columns are ignored.
    layout = rules.read_layout(text.encode(), rules.Spec(), is_whole=True)
    assert layout is not None and layout.ignored == ("reject_code", "reject_message")


async def test_a_large_download_comes_in_parts(importer: Importer, worker: Worker) -> None:
    done = await importer.whole(SMALL)
    rows = [(i, "EMAIL_INVALID", b"M-%d,%s,x" % (i, b"n" * 300)) for i in range(1, 3_001)]
    await worker.reject(done.import_id, *rows)
    request = pb.DownloadRejectsRequest(import_id=done.import_id)
    call = importer.stub.DownloadRejects(request, metadata=importer.metadata)
    parts = [part async for part in call]
    assert len(parts) > 4
    assert max(len(part.data) for part in parts) < 1 << 19
    assert parts[-1].rows_sent == 3_000
    whole = b"".join(part.data for part in parts)
    assert len(list(csv.reader(io.StringIO(whole.decode(), newline="")))) == 3_001


async def test_pages_of_rejects(importer: Importer, worker: Worker) -> None:
    done = await importer.whole(SMALL)
    await worker.reject(done.import_id, *BAD)
    request = pb.ListRejectsRequest(import_id=done.import_id, page_size=4)
    first = await importer.call("ListRejects", request)
    request.page_token = first.next_page_token
    second = await importer.call("ListRejects", request)
    assert [r.row_no for r in (*first.rejects, *second.rejects)] == [2, 5, 6, 9, 11, 12]
    assert not second.next_page_token
    one = first.rejects[0]
    assert (one.line_no, one.byte_offset, one.column) == (3, 20, "email")
    assert one.code == reject_code_pb2.REJECT_CODE_EMAIL_INVALID
    assert one.raw == BAD[0][2]
    request = pb.ListRejectsRequest(
        import_id=done.import_id, codes=[reject_code_pb2.REJECT_CODE_COLUMN_COUNT]
    )
    page = await importer.call("ListRejects", request)
    assert [r.row_no for r in page.rejects] == [5, 6]


async def test_pages_of_undo_results(importer: Importer, superuser: Any) -> None:
    done = await importer.whole(SMALL)
    members = sorted(uuid4() for _ in range(3))
    await superuser.executemany(
        "INSERT INTO import_undo (org_id, import_id, row_no, member_id, member_number, outcome)"
        " VALUES ($1, $2, $3, $4, $5, $6)",
        [
            (importer.org.org_id, UUID(done.import_id), row_no, member, f"M-{row_no}", outcome)
            for row_no, member, outcome in zip(
                (0, 1, 1), members, ("REVERSED", "REVERSED", "KEPT_BECAUSE_EDITED"), strict=True
            )
        ],
    )
    request = pb.ListUndoResultsRequest(import_id=done.import_id, page_size=2)
    first = await importer.call("ListUndoResults", request)
    request.page_token = first.next_page_token
    second = await importer.call("ListUndoResults", request)
    found = [r.member_id for r in (*first.results, *second.results)]
    assert found == [str(member) for member in members]
    request = pb.ListUndoResultsRequest(
        import_id=done.import_id, outcomes=[pb.UNDO_OUTCOME_KEPT_BECAUSE_EDITED]
    )
    kept = await importer.call("ListUndoResults", request)
    assert [r.member_number for r in kept.results] == ["M-1"]


async def test_the_template_is_a_file_that_can_be_imported(importer: Importer) -> None:
    template = await importer.call("GetImportTemplate", pb.GetImportTemplateRequest())
    assert [c.column for c in template.columns] == list(rules.FIELDS)
    assert [c.column for c in template.columns if c.required] == ["member_number"]
    assert all(c.description and c.max_length for c in template.columns)
    done = await importer.whole(template.csv)
    assert [c.field for c in done.columns] == [c.field for c in template.columns]
    aliases = b",".join(c.aliases[0].encode() if c.aliases else c.column.encode()
                        for c in template.columns)  # fmt: skip
    again = await importer.whole(aliases + b"\n")
    assert [c.field for c in again.columns] == [c.field for c in template.columns]


async def test_columns_are_told_as_they_were_understood(importer: Importer) -> None:
    done = await importer.whole(
        b"Nr;Note;E-Mail;attributes.club\n1;2;3;4\n",
        columns=[
            pb.ColumnMapping(column="nr", field=pb.IMPORT_FIELD_MEMBER_NUMBER),
            pb.ColumnMapping(column="note", ignored=True),
        ],
    )
    assert done.dialect.delimiter == ";"
    assert [(c.column, c.position) for c in done.columns][-1] == ("attributes.club", 4)
    assert [c.field for c in done.columns][::2] == [
        pb.IMPORT_FIELD_MEMBER_NUMBER,
        pb.IMPORT_FIELD_EMAIL,
    ]
    assert done.columns[1].ignored and done.columns[3].attribute == "club"


async def test_a_file_without_a_header(importer: Importer) -> None:
    done = await importer.whole(
        SMALL.removeprefix(HEADER),
        dialect=pb.Dialect(has_header=False),
        columns=[
            pb.ColumnMapping(column="1", field=pb.IMPORT_FIELD_MEMBER_NUMBER),
            pb.ColumnMapping(column="2", field=pb.IMPORT_FIELD_GIVEN_NAME),
            pb.ColumnMapping(column="3", ignored=True),
        ],
    )
    assert not done.dialect.has_header
    assert [c.ignored for c in done.columns] == [False, False, True]
