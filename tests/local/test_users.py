"""The stack starts for root, which PostgreSQL refuses, and for anyone else."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.programs import HOLD_A_STACK, ROOT, environment
from trunkline_server.local import LocalStackError, process
from trunkline_server.local.leash import UNPRIVILEGED_ID, Identity
from trunkline_server.local.postgres import Postgres, find_postgres
from trunkline_server.local.process import LeashedProcess

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

ONE_STACK = HOLD_A_STACK.replace("sys.stdin.read()", "import os; print(os.geteuid())")


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory whose parents every user may pass, as pytest's own is not."""
    directory = Path(tempfile.mkdtemp(prefix="trunkline-users-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


def runs_as(identity: Identity, code: str, *arguments: str) -> bool:
    """Whether the code runs to its end as that identity."""
    done = LeashedProcess(
        [sys.executable, "-c", code, *arguments],
        log=Path(os.devnull),
        identity=identity,
        stop_signal=signal.SIGTERM,
    )
    return done.wait(60) == 0


@needs_root
@pytest.mark.parametrize("identity", [Identity.NAMESPACE, Identity.DROPPED])
def test_an_ordinary_user_needs_no_disguise(
    identity: Identity, open_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    if not runs_as(identity, "import trunkline_server.local"):
        pytest.skip(f"this system or this checkout's place does not allow {identity}")
    log = open_directory / "log"
    home = open_directory / "home"
    home.mkdir()
    if identity is Identity.DROPPED:
        os.chown(home, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
    started = LeashedProcess(
        [sys.executable, "-c", ONE_STACK, str(home / ".trunkline")],
        log=log,
        identity=identity,
        stop_signal=signal.SIGTERM,
    )
    assert started.wait(60) == 0, log.read_text()
    assert log.read_text().split()[-1] == str(UNPRIVILEGED_ID)


@needs_root
def test_root_changes_from_one_disguise_to_the_other_and_back(
    open_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initdb = find_postgres().path("initdb")
    if not all(process._runs(initdb, one) for one in (Identity.NAMESPACE, Identity.DROPPED)):
        pytest.skip("this system or this checkout's place allows one of them only")
    for identity in (Identity.DROPPED, Identity.NAMESPACE, Identity.DROPPED):
        monkeypatch.setattr("trunkline_server.local.postgres.identity_for", lambda _, i=identity: i)
        with Postgres(open_directory / "pg", durable=False) as server:
            owner = (server.cluster / "PG_VERSION").stat().st_uid
            assert owner == (UNPRIVILEGED_ID if identity is Identity.DROPPED else 0)
            server.ensure_database("kept")


@needs_root
def test_a_place_closed_to_other_users_is_named(
    open_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = open_directory / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr("trunkline_server.local.postgres.identity_for", lambda _: Identity.DROPPED)
    with pytest.raises(LocalStackError, match=f"{closed} is closed to other users"):
        Postgres(closed / "pg").start()


@needs_root
def test_root_works_below_a_closed_directory() -> None:
    initdb = find_postgres().path("initdb")
    if not process._runs(initdb, Identity.NAMESPACE):
        pytest.skip("this system offers root no user namespace")
    with (
        tempfile.TemporaryDirectory(dir="/root", prefix="trunkline-") as directory,
        Postgres(Path(directory) / "pg", durable=False) as server,
    ):
        server.ensure_database("kept")


def test_the_checkout_is_where_the_tests_think() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import trunkline_server; print(trunkline_server.__file__)"],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(found.stdout.strip()).is_relative_to(ROOT)
