"""Uploads through the real import service."""

import os
from pathlib import Path

import pytest

from trunkline import AlreadyExists, AsyncClient, Invalid
from trunkline.types import Progress


@pytest.fixture
def roster(tmp_path: Path) -> Path:
    path = tmp_path / "june.csv"
    lines = (f"A-{number:08},{os.urandom(60).hex()}\n" for number in range(40_000))
    path.write_text("member_number,family_name\n" + "".join(lines))
    return path


async def test_a_file_is_stored_whole(admin: AsyncClient, roster: Path) -> None:
    seen: list[Progress] = []
    job = await admin.imports.upload(roster, on_progress=seen.append)
    found = await job.refresh()
    assert found.counters.bytes_received == roster.stat().st_size
    assert seen[-1].bytes_stored == roster.stat().st_size
    assert found.spec.file_name == "june.csv"
    listed = [each.import_id async for each in admin.imports.list()]
    assert listed == [job.import_id]
    with pytest.raises(AlreadyExists) as caught:
        await admin.imports.upload(roster)
    assert caught.value.reason == "IMPORT_SAME_FILE"
    assert "allow_same_file" in caught.value.remedy


async def test_rows_and_what_the_server_refuses(admin: AsyncClient) -> None:
    job = await admin.imports.upload([{"member_number": "A-1", "family_name": "Ada"}])
    assert (await job.cancel()).import_id == job.import_id
    with pytest.raises(Invalid) as caught:
        await admin.imports.upload([{"surname": "Ada"}])
    assert caught.value.reason == "IMPORT_HEADER_INVALID"
    assert (await admin.imports.template()).csv.startswith(b"member_number")
