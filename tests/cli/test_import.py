"""`trunkline import` against a server that fails where the test says."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Cli
from tests.client.imports_servicer import Fault
from tests.client.stage import Stage, Thread
from tests.client.test_killed import until_at


@pytest.fixture
def here(cli: Cli, staged: Stage) -> Cli:
    cli.environment["TRUNKLINE_ADDRESS"] = staged.address
    cli.environment["TRUNKLINE_API_KEY"] = "test"
    return cli


@pytest.fixture
def roster(tmp_path: Path) -> Path:
    path = tmp_path / "june.csv"
    lines = (f"A-{number:030}\n" for number in range(20_000))
    path.write_text("member_number\n" + "".join(lines))
    return path


def test_a_file_is_imported_and_waited_for(here: Cli, staged: Stage, roster: Path) -> None:
    staged.imports.faults.extend([Fault(40_000, "abort"), Fault(90_000, "go_away")])
    done = here("import", str(roster), "--sync", "--max-rejects", "3", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar for a pipe
    found = json.loads(done.stdout)
    assert (found["state"], found["spec"]["mode"]) == (
        "IMPORT_STATE_SUCCEEDED",
        "IMPORT_MODE_SYNC",
    )
    assert found["spec"]["max_rejects"] == "3"
    assert bytes(staged.imports.only.stored) == roster.read_bytes()


def test_rejects_are_a_failure_that_says_where_they_are(
    here: Cli, staged: Stage, roster: Path
) -> None:
    staged.imports.reject_rows = 3
    failed = here("import", str(roster))
    assert failed.returncode == 7
    assert failed.stderr.count("\n") == 1
    assert f"trunkline imports rejects {staged.imports.only.import_id}" in failed.stderr
    listed = here("imports", "rejects", staged.imports.only.import_id, "-o", "csv")
    assert listed.stdout.splitlines()[0] == "row,line,column,code,message"
    assert len(listed.stdout.splitlines()) == 4
    assert here("import", str(roster), "--allow-rejects").returncode == 0


def test_standard_input(here: Cli, staged: Stage) -> None:
    done = here("import", "-", "--detach", stdin="member_number\nA-1\n")
    assert done.returncode == 0, done.stderr
    assert bytes(staged.imports.only.stored) == b"member_number\nA-1\n"
    assert staged.imports.calls["WatchImport"] == 0


def test_ctrl_c_says_how_to_go_on_and_that_works(
    here: Cli, staged: Stage, thread: Thread, roster: Path
) -> None:
    staged.imports.faults.append(Fault(100_000, "hang"))
    process = subprocess.Popen(
        here.command("import", str(roster)),
        env=here.environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    thread.run(until_at(staged, 100_000))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.count("\n") == 1
    assert f"trunkline import {roster}" in said
    assert here("import", str(roster)).returncode == 0
    assert bytes(staged.imports.only.stored) == roster.read_bytes()
    assert staged.imports.calls["CreateImport"] == 1


def test_what_cannot_be_read(here: Cli, tmp_path: Path) -> None:
    missing = here("import", str(tmp_path / "none.csv"))
    assert missing.returncode == 5
    assert "cannot be read: No such file" in missing.stderr
    assert here("import", "--create", "--sync", "x.csv").returncode == 2
