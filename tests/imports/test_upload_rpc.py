"""Uploads through a real channel into a real database: what is stored, and what is refused."""

from __future__ import annotations

from tests.imports.uploading import SMALL, Importer
from trunkline.api.imports.v1 import imports_service_pb2 as pb


async def test_a_file_is_stored_whole_and_queued(importer: Importer) -> None:
    done = await importer.whole(SMALL, file_name="june.csv")
    assert done.state == pb.IMPORT_STATE_QUEUED
    assert done.counters.bytes_received == len(SMALL)
    assert [column.column for column in done.columns] == ["member_number", "given_name", "email"]
    assert done.dialect.delimiter == ","
    assert done.queue.position == 1
