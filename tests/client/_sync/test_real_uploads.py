# Made from tests/client/_async/test_real_uploads.py by tools/unasync.py: change that one.
"""Uploads through the real import service."""

import os
from pathlib import Path

import pytest

from trunkline import AlreadyExists, Client, Invalid
from trunkline.types import Progress


@pytest.fixture
def roster(tmp_path: Path) -> Path:
    path = tmp_path / "june.csv"
    lines = (f"A-{number:08},{os.urandom(60).hex()}\n" for number in range(40_000))
    path.write_text("member_number,family_name\n" + "".join(lines))
    return path


def test_a_file_is_stored_whole(admin: Client, roster: Path) -> None:
    seen: list[Progress] = []
    job = admin.imports.upload(roster, on_progress=seen.append)
    found = job.refresh()
    assert found.counters.bytes_received == roster.stat().st_size
    assert seen[-1].bytes_stored == roster.stat().st_size
    assert found.spec.file_name == "june.csv"
    listed = [each.import_id for each in admin.imports.list()]
    assert listed == [job.import_id]
    with pytest.raises(AlreadyExists) as caught:
        admin.imports.upload(roster)
    assert caught.value.reason == "IMPORT_SAME_FILE"
    assert "allow_same_file" in caught.value.remedy


def test_rows_and_what_the_server_refuses(admin: Client) -> None:
    job = admin.imports.upload([{"member_number": "A-1", "family_name": "Ada"}])
    assert (job.cancel()).import_id == job.import_id
    with pytest.raises(Invalid) as caught:
        admin.imports.upload([{"surname": "Ada"}])
    assert caught.value.reason == "IMPORT_HEADER_INVALID"
    assert (admin.imports.template()).csv.startswith(b"member_number")
