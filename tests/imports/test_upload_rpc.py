"""Uploads through a real channel into a real database: what is stored, and what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
import zlib
from typing import Any
from uuid import uuid4

import grpc
import pytest

from tests.imports.conftest import House
from tests.imports.uploading import HEADER, SMALL, Importer, Refusal, file_of, refused
from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline_server.rpc.caller import Role

IA = grpc.StatusCode.INVALID_ARGUMENT
FP = grpc.StatusCode.FAILED_PRECONDITION
NF = grpc.StatusCode.NOT_FOUND
ABORTED = grpc.StatusCode.ABORTED

_STORED = """
SELECT coalesce(string_agg(data, ''::bytea ORDER BY byte_offset), ''::bytea)
FROM import_chunks WHERE import_id = $1::text::uuid
"""
_JOBS = "SELECT count(*) FROM jobs WHERE subject_id = $1::text::uuid AND kind = 'imports.run'"
_EXPIRE = """
UPDATE imports SET expires_at = now() - interval '1 second' WHERE import_id = $1::text::uuid
"""


async def stored(superuser: Any, import_id: str) -> bytes:
    return bytes(await superuser.fetchval(_STORED, import_id))


# ---- The ordinary course ----


async def test_a_file_is_stored_whole_and_queued(importer: Importer, superuser: Any) -> None:
    done = await importer.whole(SMALL, file_name="june.csv")
    assert done.state == pb.IMPORT_STATE_QUEUED
    assert done.counters.bytes_received == len(SMALL)
    assert [column.column for column in done.columns] == ["member_number", "given_name", "email"]
    assert done.dialect == pb.Dialect(delimiter=",", quote='"', has_header=True)
    assert done.queue.position == 1
    assert done.spec.file_name == "june.csv"
    assert done.HasField("upload_end_time") and not done.HasField("expire_time")
    assert await stored(superuser, done.import_id) == SMALL
    assert await superuser.fetchval(_JOBS, done.import_id) == 1


async def test_an_acknowledgement_means_committed(importer: Importer, superuser: Any) -> None:
    data = file_of(20_000)
    upload = await importer.opened()
    await upload.chunk(0, data[:300_000])
    await upload.stored(300_000)
    assert await stored(superuser, upload.import_id) == data[:300_000]
    found = await importer.call("GetUpload", pb.GetUploadRequest(import_id=upload.import_id))
    assert found.upload.persisted_bytes == 300_000
    assert found.upload.prefix_crc32 == zlib.crc32(data[:300_000])
    upload.cancel()


async def test_the_digests_of_pieces_and_of_the_file_are_kept(
    importer: Importer, superuser: Any
) -> None:
    data = file_of(60_000)
    done = await importer.whole(data)
    row = await superuser.fetchrow(
        "SELECT sha256, crc32, total_bytes FROM imports WHERE import_id = $1::text::uuid",
        done.import_id,
    )
    assert row["sha256"] == hashlib.sha256(data).digest()
    assert (row["crc32"], row["total_bytes"]) == (zlib.crc32(data), len(data))
    pieces = await superuser.fetch(
        "SELECT byte_offset, prefix_crc32 FROM import_chunks WHERE import_id = $1::text::uuid",
        done.import_id,
    )
    assert all(zlib.crc32(data[: p["byte_offset"]]) == p["prefix_crc32"] for p in pieces)


async def test_tiny_chunks_are_stored_together(importer: Importer, superuser: Any) -> None:
    upload = await importer.opened()
    for at in range(len(SMALL)):
        await upload.chunk(at, SMALL[at : at + 1])
    await upload.finish(SMALL)
    await upload.until("done")
    assert await stored(superuser, upload.import_id) == SMALL
    rows = await superuser.fetchval(
        "SELECT count(*) FROM import_chunks WHERE import_id = $1::text::uuid", upload.import_id
    )
    assert rows < len(SMALL)
    upload.cancel()


async def test_a_header_only_file_is_taken(importer: Importer) -> None:
    done = await importer.whole(HEADER.rstrip())
    assert done.state == pb.IMPORT_STATE_QUEUED


async def test_finish_again_is_answered_again(importer: Importer, superuser: Any) -> None:
    upload = await importer.opened()
    await upload.send(SMALL)
    await upload.finish(SMALL)
    await upload.until("done")
    await upload.finish(SMALL)
    await upload.until("done")
    await upload.half_close()
    await upload.ended()
    again = await importer.upload(upload.import_id).open(SMALL)
    await again.finish(SMALL)
    done = await again.until("done")
    assert getattr(done, "import").state == pb.IMPORT_STATE_QUEUED
    assert await superuser.fetchval(_JOBS, upload.import_id) == 1
    again.cancel()


# ---- Interruptions ----


async def test_a_cancelled_stream_resumes_where_it_was_stored(
    importer: Importer, superuser: Any
) -> None:
    data = file_of(30_000)
    upload = await importer.opened()
    await upload.send(data[:400_000])
    await upload.stored(400_000)
    upload.cancel()
    again = await importer.upload(upload.import_id).open(data, offset=0)
    assert again.persisted == 400_000
    await again.send(data, start=again.persisted)
    await again.finish(data)
    await again.until("done")
    assert await stored(superuser, upload.import_id) == data
    again.cancel()


async def test_half_close_without_finish_is_an_interruption(
    importer: Importer, superuser: Any
) -> None:
    upload = await importer.opened()
    await upload.chunk(0, SMALL[:40])
    await upload.half_close()
    await upload.ended()
    assert upload.persisted == 40
    assert (await importer.look(upload.import_id)).state == pb.IMPORT_STATE_UPLOADING
    assert await superuser.fetchval(_JOBS, upload.import_id) == 0


async def test_another_process_resumes_and_knows_the_digest(
    house: House, server: Any, superuser: Any
) -> None:
    data = file_of(30_000)
    first = await house.importer(server)
    upload = await first.opened(total_bytes=len(data), sha256=hashlib.sha256(data).digest())
    await upload.send(data[:500_000])
    await upload.stored(500_000)
    other = Importer(await house.server(), first.org)
    resumed = await other.upload(upload.import_id).open(data[:500_000])
    await resumed.send(data, start=500_000)
    await resumed.finish(data)
    await resumed.until("done")
    assert await stored(superuser, upload.import_id) == data
    assert (await upload.refusal()).code is ABORTED
    resumed.cancel()


async def test_two_writers_the_older_is_aborted(importer: Importer) -> None:
    older = await importer.opened()
    await older.chunk(0, SMALL[:30])
    await older.stored(30)
    newer = await importer.upload(older.import_id).open(SMALL[:30])
    assert newer.epoch == older.epoch + 1
    refusal = await older.refusal()
    assert (refusal.code, refusal.reason) == (ABORTED, "IMPORT_UPLOAD_TAKEN_OVER")
    assert refusal.refused is not None and refusal.refused.resumable
    await newer.send(SMALL, start=30)
    await newer.finish(SMALL)
    await newer.until("done")
    newer.cancel()


async def test_an_older_writer_that_hears_nothing_writes_nothing(
    importer: Importer, superuser: Any
) -> None:
    """The fence is in the statement: a newer epoch in the table is enough."""
    older = await importer.opened()
    await superuser.execute(
        "UPDATE imports SET upload_epoch = upload_epoch + 1 WHERE import_id = $1::text::uuid",
        older.import_id,
    )
    await older.chunk(0, SMALL)
    refusal = await older.refusal()
    assert (refusal.code, refusal.reason) == (ABORTED, "IMPORT_UPLOAD_TAKEN_OVER")
    assert await stored(superuser, older.import_id) == b""


async def test_a_stall_is_aborted_and_resumable(house: House, server: Any) -> None:
    importer = await house.importer(server, upload_stall_timeout="0.300s")
    upload = await importer.opened()
    await upload.chunk(0, SMALL[:30])
    refusal = await upload.refusal()
    assert (refusal.code, refusal.reason) == (ABORTED, "IMPORT_UPLOAD_STALLED")
    assert refusal.refused is not None
    assert refusal.refused.resumable and refusal.refused.persisted_bytes == 30
    again = await importer.upload(upload.import_id).open(SMALL[:30])
    await again.send(SMALL, start=30)
    await again.finish(SMALL)
    await again.until("done")
    again.cancel()


async def test_a_drain_says_go_away_and_the_upload_goes_on_elsewhere(
    house: House, superuser: Any
) -> None:
    data = file_of(20_000)
    leaving = await house.server()
    importer = await house.importer(leaving)
    upload = await importer.opened()
    await upload.send(data[:200_000])
    await upload.stored(200_000)
    stopping = asyncio.create_task(leaving.server.stop())
    go_away = await upload.until("go_away")
    assert go_away.reason == pb.GO_AWAY_REASON_DRAIN
    assert go_away.persisted_bytes == 200_000
    await upload.half_close()
    await upload.ended()
    assert await stopping
    other = Importer(await house.server(), importer.org)
    again = await other.upload(upload.import_id).open(data[:200_000])
    await again.send(data, start=200_000)
    await again.finish(data)
    await again.until("done")
    assert await stored(superuser, upload.import_id) == data
    again.cancel()


# ---- Bad input, by its number in the catalogue ----


async def test_70_no_open_first(importer: Importer) -> None:
    upload = await importer.upload(str(uuid4())).start()
    await upload.chunk(0, SMALL)
    assert (await upload.refusal()).code is IA


async def test_71_a_second_open(importer: Importer, superuser: Any) -> None:
    upload = await importer.opened()
    await upload.chunk(0, SMALL[:20])
    frame = pb.UploadOpen(import_id=upload.import_id, offset=0, prefix_crc32=0)
    await upload.write(pb.UploadImportRequest(open=frame))
    assert (await upload.refusal()).code is IA
    assert await stored(superuser, upload.import_id) == SMALL[:20]


async def test_72_no_messages(importer: Importer) -> None:
    upload = await importer.upload(str(uuid4())).start()
    await upload.half_close()
    with pytest.raises(Refusal) as refusal:
        await upload.ended()
    assert refusal.value.code is IA


async def test_73_stored_bytes_again(importer: Importer, superuser: Any) -> None:
    data = file_of(10_000)
    upload = await importer.opened()
    await upload.chunk(0, data[:100_000])
    await upload.chunk(50_000, data[50_000:150_000])
    await upload.chunk(0, data[:10])
    await upload.stored(150_000)
    assert await stored(superuser, upload.import_id) == data[:150_000]
    await upload.chunk(100_000, b"x" * 100_000)
    refusal = await upload.refusal()
    assert (refusal.code, refusal.reason) == (FP, "IMPORT_CONTENT_DIFFERS")
    assert await stored(superuser, upload.import_id) == data[:150_000]


async def test_74_a_gap(importer: Importer) -> None:
    upload = await importer.opened()
    await upload.chunk(0, SMALL[:30])
    await upload.chunk(40, SMALL[40:])
    refusal = await upload.refusal()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.OUT_OF_RANGE, "IMPORT_OFFSET_GAP")
    assert refusal.details["ErrorInfo"].metadata["expected_offset"] == "30"
    assert refusal.refused is not None and refusal.refused.persisted_bytes == 30


async def test_74_an_open_behind_what_is_stored(importer: Importer) -> None:
    import_id = await importer.new()
    upload = await importer.upload(import_id).start()
    frame = pb.UploadOpen(import_id=import_id, offset=10, prefix_crc32=0)
    await upload.write(pb.UploadImportRequest(open=frame))
    refusal = await upload.refusal()
    assert refusal.code is grpc.StatusCode.OUT_OF_RANGE
    assert refusal.details["ErrorInfo"].metadata["expected_offset"] == "0"


async def test_75_data_after_finish(importer: Importer, superuser: Any) -> None:
    upload = await importer.opened()
    await upload.send(SMALL)
    await upload.finish(SMALL)
    await upload.until("done")
    await upload.chunk(len(SMALL), b"M-3,Eve,\n")
    refusal = await upload.refusal()
    assert (refusal.code, refusal.reason) == (FP, "IMPORT_UPLOAD_FINISHED")
    assert refusal.refused is not None and not refusal.refused.resumable
    assert await stored(superuser, upload.import_id) == SMALL


async def test_78_after_a_cancel_the_last_commit_stays(importer: Importer, superuser: Any) -> None:
    upload = await importer.opened()
    await upload.chunk(0, SMALL[:50])
    await upload.stored(50)
    upload.cancel()
    assert await stored(superuser, upload.import_id) == SMALL[:50]
    assert (await importer.look(upload.import_id)).counters.bytes_received == 50


async def test_79_a_chunk_with_the_wrong_digest(importer: Importer, superuser: Any) -> None:
    upload = await importer.opened()
    await upload.chunk(0, SMALL[:50])
    await upload.chunk(50, SMALL[50:], crc32=1)
    refusal = await upload.refusal()
    assert (refusal.code, refusal.reason) == (FP, "IMPORT_DIGEST_MISMATCH")
    assert refusal.refused is not None and refusal.refused.resumable
    assert await stored(superuser, upload.import_id) == SMALL[:50]


async def test_79_a_file_with_the_wrong_digest(importer: Importer, superuser: Any) -> None:
    upload = await importer.opened()
    await upload.send(SMALL)
    await upload.finish(SMALL.replace(b"Ada", b"Adb"))
    refusal = await upload.refusal()
    assert (refusal.code, refusal.reason) == (FP, "IMPORT_DIGEST_MISMATCH")
    assert refusal.refused is not None and not refusal.refused.resumable
    found = await importer.look(upload.import_id)
    assert found.state == pb.IMPORT_STATE_FAILED
    assert found.problem.code == FP.value[0]
    assert await superuser.fetchval(_JOBS, upload.import_id) == 0


async def test_79_a_file_that_is_not_the_promised_one(importer: Importer, superuser: Any) -> None:
    upload = await importer.opened(sha256=hashlib.sha256(b"another").digest())
    await upload.send(SMALL)
    await upload.finish(SMALL)
    assert (await upload.refusal()).reason == "IMPORT_DIGEST_MISMATCH"
    assert await superuser.fetchval(_JOBS, upload.import_id) == 0


async def test_79_another_file_at_open(importer: Importer) -> None:
    upload = await importer.opened()
    await upload.chunk(0, SMALL[:50])
    await upload.stored(50)
    other = await importer.upload(upload.import_id).start()
    frame = pb.UploadOpen(import_id=upload.import_id, offset=40, prefix_crc32=zlib.crc32(b"x" * 40))
    await other.write(pb.UploadImportRequest(open=frame))
    refusal = await other.refusal()
    assert (refusal.code, refusal.reason) == (FP, "IMPORT_CONTENT_DIFFERS")
    # The good stream was not fenced by the one with another file.
    await upload.chunk(50, SMALL[50:])
    await upload.stored(len(SMALL))
    upload.cancel()


async def test_80_an_empty_chunk(importer: Importer, superuser: Any) -> None:
    upload = await importer.opened()
    await upload.chunk(0, SMALL[:20])
    await upload.chunk(20, b"")
    refusal = await upload.refusal()
    assert refusal.code is IA
    assert refusal.refused is not None and refusal.refused.persisted_bytes == 20
    assert await stored(superuser, upload.import_id) == SMALL[:20]


async def test_81_a_foreign_import(house: House, server: Any) -> None:
    ours, theirs = await house.importer(server), await house.importer(server)
    import_id = await theirs.new()
    answers = []
    for unknown in (import_id, str(uuid4())):
        upload = await ours.upload(unknown).start()
        frame = pb.UploadOpen(import_id=unknown, offset=0, prefix_crc32=0)
        await upload.write(pb.UploadImportRequest(open=frame))
        refusal = await upload.refusal()
        answers.append((refusal.code, refusal.reason, str(refusal)))
    assert answers[0] == answers[1]
    assert answers[0][:2] == (NF, "IMPORT_NOT_FOUND")
    for method, request in (
        ("GetImport", pb.GetImportRequest(import_id=import_id)),
        ("GetUpload", pb.GetUploadRequest(import_id=import_id)),
        ("CancelImport", pb.CancelImportRequest(import_id=import_id)),
        ("RetryImport", pb.RetryImportRequest(import_id=import_id)),
        ("CommitImport", pb.CommitImportRequest(import_id=import_id, plan_etag="x")),
        ("UndoImport", pb.UndoImportRequest(import_id=import_id)),
        ("ListRejects", pb.ListRejectsRequest(import_id=import_id)),
        ("ListUndoResults", pb.ListUndoResultsRequest(import_id=import_id)),
    ):
        assert (await refused(ours.call(method, request))).code is NF, method


async def test_82_an_expired_upload(importer: Importer, superuser: Any) -> None:
    upload = await importer.opened()
    await superuser.execute(_EXPIRE, upload.import_id)
    await upload.chunk(0, SMALL)
    refusal = await upload.refusal()
    assert (refusal.code, refusal.reason) == (NF, "IMPORT_UPLOAD_EXPIRED")
    again = await importer.upload(upload.import_id).start()
    frame = pb.UploadOpen(import_id=upload.import_id, offset=0, prefix_crc32=0)
    await again.write(pb.UploadImportRequest(open=frame))
    assert (await again.refusal()).reason == "IMPORT_UPLOAD_EXPIRED"


async def test_83_a_request_id_with_another_payload(importer: Importer) -> None:
    request_id = str(uuid4())
    first = await importer.create(request_id, file_name="a.csv")
    again = await importer.create(request_id, file_name="a.csv")
    assert again == first
    error = await refused(importer.create(request_id, file_name="b.csv"))
    assert error.code is grpc.StatusCode.ALREADY_EXISTS
    assert error.reason == "REQUEST_ID_REUSED"


async def test_84_bytes_past_the_grant(house: House, superuser: Any) -> None:
    importer = await house.importer(await house.server(upload_window_bytes=1000))
    upload = await importer.opened()
    assert upload.send_limit == 1000
    data = file_of(100)
    await upload.chunk(0, data[:1001])
    refusal = await upload.refusal()
    assert (refusal.code, refusal.reason) == (FP, "IMPORT_SEND_LIMIT_PASSED")
    assert refusal.refused is not None and refusal.refused.resumable
    assert await stored(superuser, upload.import_id) == b""
    again = await importer.upload(upload.import_id).open()
    await again.send(data, size=1000)
    assert again.events.count("ack") >= len(data) // 1000
    again.cancel()


async def test_a_stream_past_its_age_says_go_away(house: House, superuser: Any) -> None:
    """Resuming is ordinary: a file takes as many streams as it takes."""
    importer = await house.importer(await house.server(upload_stream_age_s=0.2))
    data = file_of(2_000)
    import_id = await importer.new()
    streams = at = 0
    while at < len(data):
        upload = await importer.upload(import_id).open(data[:at])
        streams += 1
        await upload.chunk(at, data[at : at + 20_000])
        go_away = await upload.until("go_away")
        assert go_away.reason == pb.GO_AWAY_REASON_AGE
        at = go_away.persisted_bytes
        await upload.half_close()
        await upload.ended()
    assert streams > 2
    assert await stored(superuser, import_id) == data


async def test_the_status_arrives_however_fast_the_caller_sends(importer: Importer) -> None:
    """Refused in-band, drained, then ended: no status is lost to a caller that still sends."""
    for _ in range(20):
        upload = await importer.opened()
        await upload.chunk(10, b"x" * 100)
        for _ in range(3):
            try:
                await upload.chunk(10, b"x" * 200_000)
            except Exception:
                break
        refusal = await upload.refusal()
        assert refusal.reason == "IMPORT_OFFSET_GAP"
        assert refusal.refused is not None


# ---- What the file itself is refused for ----


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "IMPORT_FILE_EMPTY"),
        (b"given_name,email\nAda,\n", "IMPORT_HEADER_INVALID"),
        (b"member_number,email,E-Mail\n", "IMPORT_HEADER_INVALID"),
        (b"member_number,email,email\n", "IMPORT_HEADER_INVALID"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x00", "IMPORT_NOT_CSV"),
        (b"PK\x03\x04 xl/workbook.xml and more", "IMPORT_NOT_CSV"),
        ("member_number\n1\n".encode("utf-16"), "IMPORT_NOT_CSV"),
        (b"member_number,n\xe9\n1,2\n", "IMPORT_HEADER_INVALID"),
        (b"a" * 70_000, "IMPORT_LINE_ENDLESS"),
        (b"member_number," + b",".join(b"c%d" % i for i in range(300)) + b"\n",
         "IMPORT_TOO_MANY_COLUMNS"),
    ],
)  # fmt: skip
async def test_a_file_that_cannot_be_imported(
    importer: Importer, superuser: Any, data: bytes, reason: str
) -> None:
    upload = await importer.opened()
    try:
        if data:
            await upload.chunk(0, data)
        await upload.finish(data)
    except Exception:  # the server may have said so already
        pass
    refusal = await upload.refusal()
    assert refusal.reason == reason
    assert refusal.refused is not None and not refusal.refused.resumable
    found = await importer.look(upload.import_id)
    assert found.state == pb.IMPORT_STATE_FAILED
    assert found.HasField("problem") and found.HasField("end_time")
    assert await superuser.fetchval(_JOBS, upload.import_id) == 0


async def test_a_bad_header_is_told_before_the_rest_is_sent(importer: Importer) -> None:
    upload = await importer.opened()
    await upload.chunk(0, b"given_name,email\nAda,ada@example.org\n")
    refusal = await upload.refusal()
    assert refusal.reason == "IMPORT_HEADER_INVALID"


async def test_a_header_cut_anywhere_is_understood(importer: Importer) -> None:
    data = '"member_number","naïve, quoted",email\r\n1,2,3\r\n'.encode()
    for cut in range(1, 45, 4):
        upload = await importer.opened(allow_same_file=True)
        await upload.chunk(0, data[:cut])
        await upload.stored(cut)
        upload.cancel()
        again = await importer.upload(upload.import_id).open(data[:cut])
        await again.send(data, start=cut)
        await again.finish(data)
        done = getattr(await again.until("done"), "import")
        assert [c.column for c in done.columns] == ["member_number", "naïve, quoted", "email"]
        again.cancel()


async def test_a_file_larger_than_the_quota(house: House, server: Any) -> None:
    importer = await house.importer(server, import_file_bytes=1000)
    error = await refused(importer.create(total_bytes=1001))
    assert (error.code, error.reason) == (FP, "IMPORT_FILE_TOO_LARGE")
    upload = await importer.opened()
    assert upload.send_limit == 1001
    await upload.chunk(0, SMALL + b"x" * 1000)
    assert (await upload.refusal()).reason == "IMPORT_FILE_TOO_LARGE"


async def test_fewer_bytes_than_promised(importer: Importer) -> None:
    upload = await importer.opened(total_bytes=len(SMALL) + 1)
    await upload.send(SMALL)
    await upload.finish(SMALL)
    refusal = await upload.refusal()
    assert (refusal.code, refusal.reason) == (FP, "IMPORT_SIZE_MISMATCH")
    assert refusal.refused is not None and refusal.refused.resumable


async def test_more_bytes_than_promised(importer: Importer) -> None:
    upload = await importer.opened(total_bytes=len(SMALL) - 1)
    assert upload.send_limit == len(SMALL) - 1
    await upload.chunk(0, SMALL)
    assert (await upload.refusal()).reason in {"IMPORT_SEND_LIMIT_PASSED", "IMPORT_SIZE_MISMATCH"}


# ---- The same file twice ----


async def test_the_same_file_twice_names_the_first(importer: Importer) -> None:
    first = await importer.whole(SMALL)
    upload = await importer.opened()
    await upload.send(SMALL)
    await upload.finish(SMALL)
    refusal = await upload.refusal()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ALREADY_EXISTS, "IMPORT_SAME_FILE")
    assert refusal.details["ErrorInfo"].metadata["import_id"] == first.import_id
    early = await refused(
        importer.create(total_bytes=len(SMALL), sha256=hashlib.sha256(SMALL).digest())
    )
    assert early.details["ErrorInfo"].metadata["import_id"] == first.import_id
    assert (await importer.whole(SMALL, allow_same_file=True)).state == pb.IMPORT_STATE_QUEUED
    assert (await importer.whole(SMALL, validate_only=True)).state == pb.IMPORT_STATE_QUEUED


async def test_the_same_file_at_the_same_moment_is_taken_once(importer: Importer) -> None:
    uploads = [await importer.opened() for _ in range(5)]
    for upload in uploads:
        await upload.send(SMALL)
    outcomes = []

    async def finish(upload: Any) -> None:
        await upload.finish(SMALL)
        try:
            await upload.until("done")
            outcomes.append("done")
        except (Refusal, AssertionError):
            outcomes.append("refused")
        upload.cancel()

    await asyncio.gather(*map(finish, uploads))
    assert sorted(outcomes) == ["done", *["refused"] * 4]


# ---- SubmitCsv ----


async def submit(importer: Importer, *parts: bytes, request_id: str = "", **spec: Any) -> Any:
    call = importer.stub.SubmitCsv(metadata=importer.metadata)
    opening = pb.SubmitCsvOpen(request_id=request_id, spec=pb.ImportSpec(**spec))
    await call.write(pb.SubmitCsvRequest(open=opening))
    for part in parts:
        await call.write(pb.SubmitCsvRequest(data=part))
    await call.done_writing()
    async with asyncio.timeout(15):
        return await call


async def test_submit_takes_a_file_in_one_call(importer: Importer, superuser: Any) -> None:
    data = file_of(50_000)
    parts = [data[at : at + 65_536] for at in range(0, len(data), 65_536)]
    request_id = str(uuid4())
    reply = await submit(importer, *parts, request_id=request_id, file_name="x.csv")
    found = getattr(reply, "import")
    assert found.state == pb.IMPORT_STATE_QUEUED
    assert reply.persisted_bytes == len(data)
    assert await stored(superuser, found.import_id) == data
    again = await submit(importer, *parts[:1], request_id=request_id, file_name="x.csv")
    assert getattr(again, "import").import_id == found.import_id
    assert await superuser.fetchval(_JOBS, found.import_id) == 1


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([], "IMPORT_FILE_EMPTY"),
        ([b"given_name\nAda\n"], "IMPORT_HEADER_INVALID"),
        ([b"PK\x03\x04 and more", b"x" * 100_000], "IMPORT_NOT_CSV"),
    ],
)
async def test_submit_refuses_what_is_no_roster(
    importer: Importer, parts: list[bytes], reason: str
) -> None:
    assert (await refused(submit(importer, *parts))).reason == reason


async def test_submit_tells_of_a_part_that_can_be_continued(house: House, server: Any) -> None:
    importer = await house.importer(server, upload_stall_timeout="0.300s")
    call = importer.stub.SubmitCsv(metadata=importer.metadata)
    await call.write(pb.SubmitCsvRequest(open=pb.SubmitCsvOpen(spec=pb.ImportSpec())))
    await call.write(pb.SubmitCsvRequest(data=SMALL[:60]))
    async with asyncio.timeout(15):
        reply = await call
    found = getattr(reply, "import")
    assert (found.state, reply.persisted_bytes) == (pb.IMPORT_STATE_UPLOADING, 60)
    upload = await importer.upload(found.import_id).open(SMALL[:60])
    await upload.send(SMALL, start=60)
    await upload.finish(SMALL)
    await upload.until("done")
    upload.cancel()


async def test_submit_without_an_opening(importer: Importer) -> None:
    call = importer.stub.SubmitCsv(metadata=importer.metadata)
    await call.write(pb.SubmitCsvRequest(data=b"x"))
    await call.done_writing()
    assert (await refused(call)).code is IA


# ---- Who may ----


@pytest.mark.parametrize("role", [Role.AGENT, Role.TRAINER])
async def test_agents_and_trainers_upload_nothing(house: House, server: Any, role: Role) -> None:
    importer = await house.importer(server, role)
    assert (await refused(importer.create())).code is grpc.StatusCode.PERMISSION_DENIED


# ---- Any order of chunks, cuts, repeats and losses ----


@pytest.mark.parametrize("seed", range(6))
async def test_any_way_of_sending_stores_the_same_file(
    importer: Importer, superuser: Any, seed: int
) -> None:
    chance = random.Random(seed)
    data = file_of(chance.randrange(1, 6_000))
    import_id = await importer.new()
    deadline = time.monotonic() + 30
    finished = False
    while not finished:
        assert time.monotonic() < deadline
        known = (await importer.call("GetUpload", pb.GetUploadRequest(import_id=import_id))).upload
        upload = await importer.upload(import_id).open(
            data, offset=chance.randrange(known.persisted_bytes + 1)
        )
        at = upload.persisted
        for _ in range(chance.randrange(8)):
            at = max(0, at - chance.choice([0, 0, 0, 1, 5_000]))
            size = chance.choice([1, 100, 4_096, 70_000])
            await upload.chunk(at, data[at : at + size] or data[:1]) if at < len(data) else None
            at = min(at + size, len(data))
        if chance.random() < 0.3:
            upload.cancel()
            continue
        if at == len(data):
            await upload.finish(data)
            await upload.until("done")
            finished = True
        await upload.half_close()
        await upload.ended()
    assert await stored(superuser, import_id) == data
