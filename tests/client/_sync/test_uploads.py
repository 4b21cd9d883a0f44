# Made from tests/client/_async/test_uploads.py by tools/unasync.py: change that one.
"""The uploader against a server that keeps the protocol and fails where the test says."""

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest

from tests.client.imports_servicer import WINDOW_BYTES, Fault
from tests.client.stage import Stage
from trunkline import (
    Client,
    Conflict,
    FailedPrecondition,
    FileChanged,
    ImportFailed,
    Interrupted,
    Invalid,
    JournalError,
    Unavailable,
)
from trunkline.types import Progress

KIB = 1 << 10


@pytest.fixture
def roster(tmp_path: Path) -> Path:
    path = tmp_path / "june.csv"
    lines = (f"A-{number},{os.urandom(20).hex()}\n" for number in range(12_000))
    path.write_text("member_number,family_name\n" + "".join(lines))
    return path


def journals(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f".{path.name}.trunkline-*"))


def test_a_file_arrives_whole_and_leaves_no_journal(
    client: Client, staged: Stage, roster: Path
) -> None:
    job = client.imports.upload(roster)
    assert bytes(staged.imports.only.stored) == roster.read_bytes()
    assert staged.imports.only.spec.file_name == "june.csv"
    assert staged.imports.only.spec.total_bytes == roster.stat().st_size
    assert job.import_id == staged.imports.only.import_id
    assert journals(roster) == []


def test_it_uses_a_grant_up_and_waits_for_the_next(
    client: Client, staged: Stage, roster: Path
) -> None:
    # Sending past the grant would be refused for good.
    staged.imports.grants_when_used_up = True
    with roster.open("ab") as file:
        file.truncate(4 * WINDOW_BYTES)
    client.imports.upload(roster)
    assert bytes(staged.imports.only.stored) == roster.read_bytes()


@pytest.mark.parametrize("kind", ["drop", "abort", "go_away", "refuse"])
def test_whatever_ends_a_stream_is_continued(
    client: Client, staged: Stage, roster: Path, kind: str
) -> None:
    staged.imports.faults.extend(Fault(at * KIB, kind) for at in (32, 200, 205, 400))
    client.imports.upload(roster)
    assert bytes(staged.imports.only.stored) == roster.read_bytes()
    assert staged.imports.calls["UploadImport"] == 5
    assert staged.imports.calls["CreateImport"] == 1


def test_a_lost_acknowledgement_costs_nothing(client: Client, staged: Stage, roster: Path) -> None:
    faults = [Fault(64 * KIB, "lose_ack"), Fault(64 * KIB, "lose_ack"), Fault(96 * KIB, "abort")]
    staged.imports.faults.extend(faults)
    client.imports.upload(roster)
    assert bytes(staged.imports.only.stored) == roster.read_bytes()
    assert staged.imports.resent_bytes == 0


def test_a_grant_smaller_than_what_has_to_be_sent_again(
    client: Client, staged: Stage, roster: Path
) -> None:
    def shrink(progress: Progress) -> None:
        if progress.bytes_stored:
            staged.imports.window_bytes = 10 * KIB

    staged.imports.faults.append(Fault(64 * KIB, "abort"))
    client.imports.upload(roster, on_progress=shrink)
    assert bytes(staged.imports.only.stored) == roster.read_bytes()


def test_a_pause_is_waited_for_and_told(client: Client, staged: Stage, roster: Path) -> None:
    staged.imports.faults.append(Fault(64 * KIB, "pause", 0.05))
    seen: list[Progress] = []
    client.imports.upload(roster, on_progress=seen.append)
    assert "DATABASE_SLOW" in {progress.waits_for for progress in seen}
    stored = [progress.bytes_stored for progress in seen]
    assert stored == sorted(stored)
    assert stored[-1] == seen[-1].bytes_total == roster.stat().st_size


def test_a_refusal_for_good_is_its_error(client: Client, staged: Stage, roster: Path) -> None:
    staged.imports.faults.append(Fault(64 * KIB, "refuse_for_good"))
    with pytest.raises(FailedPrecondition) as caught:
        client.imports.upload(roster)
    assert caught.value.reason == "IMPORT_FILE_TOO_LARGE"
    assert caught.value.remedy == "Split it."
    assert staged.imports.calls["UploadImport"] == 1


def test_another_uploader_of_the_same_file_is_not_fought(
    client: Client, staged: Stage, roster: Path
) -> None:
    staged.imports.faults.append(Fault(64 * KIB, "take_over"))
    with pytest.raises(Conflict):
        client.imports.upload(roster)
    assert staged.imports.calls["UploadImport"] == 1


def test_what_stopped_is_continued_by_the_next_process(
    client: Client, staged: Stage, roster: Path
) -> None:
    staged.imports.down_from_bytes = 150 * KIB
    with pytest.raises(Interrupted) as caught:
        client.imports.upload(roster, give_up_after_s=0.15)
    assert "same upload again" in caught.value.remedy
    (journal,) = journals(roster)
    staged.imports.down_from_bytes = None
    client.imports.upload(roster)
    assert bytes(staged.imports.only.stored) == roster.read_bytes()
    assert staged.imports.calls["CreateImport"] == 1
    assert staged.imports.resent_bytes == 0
    assert not journal.exists()


def test_a_creation_nobody_heard_of_is_found_again(
    client: Client, staged: Stage, roster: Path
) -> None:
    staged.imports.loses_creations = True
    with pytest.raises(Unavailable):
        client.imports.upload(roster)
    staged.imports.loses_creations = False
    client.imports.upload(roster)
    assert bytes(staged.imports.only.stored) == roster.read_bytes()
    assert journals(roster) == []


def test_a_file_may_change_before_any_of_it_was_sent(
    client: Client, staged: Stage, roster: Path
) -> None:
    staged.imports.loses_creations = True
    with pytest.raises(Unavailable):
        client.imports.upload(roster)
    staged.imports.loses_creations = False
    with roster.open("a") as file:
        file.write("A-99999,Later\n")
    job = client.imports.upload(roster)
    assert bytes(staged.imports.held[job.import_id].stored) == roster.read_bytes()


def test_another_content_is_never_mixed_in(client: Client, staged: Stage, roster: Path) -> None:
    staged.imports.down_from_bytes = 150 * KIB
    with pytest.raises(Interrupted):
        client.imports.upload(roster, give_up_after_s=0.15)
    staged.imports.down_from_bytes = None
    content = bytearray(roster.read_bytes())
    content[100] ^= 1
    roster.write_bytes(content)
    with pytest.raises(FileChanged, match="not the file"):
        client.imports.upload(roster)
    job = client.imports.upload(roster, resume=False)
    assert bytes(staged.imports.held[job.import_id].stored) == content
    assert len(staged.imports.held) == 2


def test_a_file_of_another_size_is_told_at_once(
    client: Client, staged: Stage, roster: Path
) -> None:
    staged.imports.down_from_bytes = 150 * KIB
    with pytest.raises(Interrupted):
        client.imports.upload(roster, give_up_after_s=0.15)
    with roster.open("a") as file:
        file.write("A-99999,Later\n")
    with pytest.raises(FileChanged, match="since its upload was begun"):
        client.imports.upload(roster)


def test_a_file_that_changes_on_the_way_is_not_finished(
    client: Client, staged: Stage, roster: Path
) -> None:
    def touch(progress: Progress) -> None:
        if progress.bytes_stored:
            os.utime(roster, ns=(1, 1))

    with pytest.raises(FileChanged, match="while it was uploaded"):
        client.imports.upload(roster, on_progress=touch)
    assert not staged.imports.only.upload().finished


def test_a_file_nobody_may_read(client: Client, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="cannot be read: No such file"):
        client.imports.upload(tmp_path / "missing.csv")
    with pytest.raises(Invalid, match="cannot be read: Is a directory"):
        client.imports.upload(tmp_path)


def test_a_full_disk_under_the_journal_stops_it_before_anything_is_sent(
    client: Client, staged: Stage, roster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JournalError, match="No space left") as caught:
        client.imports.upload(roster)
    assert "--no-journal" in caught.value.remedy
    assert staged.imports.calls["CreateImport"] == 0
    assert journals(roster) == []
    client.imports.upload(roster, journal=False)


def test_a_torn_journal_counts_as_none(client: Client, staged: Stage, roster: Path) -> None:
    staged.imports.down_from_bytes = 150 * KIB
    with pytest.raises(Interrupted):
        client.imports.upload(roster, give_up_after_s=0.15)
    staged.imports.down_from_bytes = None
    (journal,) = journals(roster)
    journal.write_text('{"version": 1, "request')
    job = client.imports.upload(roster)
    assert bytes(staged.imports.held[job.import_id].stored) == roster.read_bytes()


def test_rows_of_all_kinds(client: Client, staged: Stage) -> None:
    people = [{"member_number": "A-1", "family_name": 'O"Hara, Ada'}, {"member_number": "A-2"}]
    expected = b'member_number,family_name\nA-1,"O""Hara, Ada"\nA-2,\n'
    given: list[Any] = [
        people,
        iter(people),
        io.BytesIO(expected),
        io.StringIO(expected.decode()),
        expected,
    ]
    for source in given:
        job = client.imports.upload(source)
        assert bytes(staged.imports.held[job.import_id].stored) == expected
    job = client.imports.upload([["A-1", 7]], header=["member_number", "plan"])
    assert bytes(staged.imports.held[job.import_id].stored) == b"member_number,plan\nA-1,7\n"
    with pytest.raises(Invalid, match="surname"):
        client.imports.upload([{"member_number": "1"}, {"surname": "x"}])


def test_many_rows_survive_drops_without_being_read_twice(client: Client, staged: Stage) -> None:
    staged.imports.faults.extend(Fault(at * KIB, "abort") for at in (40, 100, 300))
    made = iter(range(60_000))
    client.imports.upload({"member_number": f"A-{number}"} for number in made)
    lines = bytes(staged.imports.only.stored).decode().splitlines()
    assert lines == ["member_number", *(f"A-{number}" for number in range(60_000))]


def test_a_batch_of_rows(client: Client, staged: Stage) -> None:
    with client.imports.rows(file_name="nightly") as batch:
        for number in range(5):
            batch.add({"member_number": f"A-{number}"})
    assert batch.job is not None
    assert staged.imports.only.stored.count(b"\n") == 6
    assert staged.imports.only.spec.file_name == "nightly"

    with pytest.raises(KeyError):
        with client.imports.rows() as batch:
            batch.add({"member_number": "A-1"})
            raise KeyError
    assert len(staged.imports.held) == 1


def test_waiting_says_what_was_rejected(client: Client, staged: Stage, roster: Path) -> None:
    staged.imports.reject_rows = 5
    job = client.imports.upload(roster)
    states: list[str] = []
    with pytest.raises(ImportFailed, match="rejected 5 rows") as caught:
        job.wait(on_progress=lambda progress: states.append(progress.state))
    assert caught.value.import_.import_id == job.import_id
    assert states == ["QUEUED", "QUEUED", "RUNNING", "SUCCEEDED"]
    assert [reject.row_no for reject in job.rejects()] == [1, 2, 3, 4, 5]
    pages = [len(page.items) for page in job.rejects().pages()]
    assert pages == [2, 2, 1]
    assert len(job.rejects().first(3)) == 3
    assert (job.wait(allow_rejects=True)).counters.rejected == 5
