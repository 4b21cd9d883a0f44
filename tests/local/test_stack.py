"""The embedded servers: state survives, nothing is left behind, nothing stops the next start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.local.programs import HOLD_A_STACK, living_in, program
from trunkline_server.local import (
    DirectoryBusy,
    LocalStack,
    LocalStackError,
    Postgres,
    Valkey,
    leash,
)
from trunkline_server.local.process import PORTS

GONE_WITHIN_S = 15.0


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[LocalStack]:
    stack = LocalStack(tmp_path, environment={})
    yield stack
    stack.stop()


async def run(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def wait_until_gone(directory: Path) -> None:
    deadline = time.monotonic() + GONE_WITHIN_S
    while left := living_in(directory):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


async def test_state_survives_a_restart(stack: LocalStack, tmp_path: Path) -> None:
    urls = stack.start()
    await run(urls.database_url, "CREATE TABLE kept AS SELECT 42 AS answer")
    with redis.Redis.from_url(urls.redis_url) as valkey:
        valkey.set("kept", "42")
    stack.stop()
    assert living_in(tmp_path) == []

    again = LocalStack(tmp_path, environment={})
    with again as urls:
        assert await run(urls.database_url, "SELECT answer FROM kept") == 42
        with redis.Redis.from_url(urls.redis_url) as valkey:
            assert valkey.get("kept") == b"42"


async def test_a_sigkill_of_the_parent_leaves_nothing_and_the_next_start_works(
    tmp_path: Path,
) -> None:
    with program(HOLD_A_STACK, str(tmp_path)) as owner:
        assert owner.stdout is not None
        database_url, _ = owner.stdout.readline().split()
        await run(database_url, "CREATE TABLE kept AS SELECT 42 AS answer")
        owner.kill()
        owner.wait()
        # At once: the start waits for what the killed one left.
        with LocalStack(tmp_path, environment={}) as urls:
            assert await run(urls.database_url, "SELECT answer FROM kept") == 42
    wait_until_gone(tmp_path)


def test_a_sigkill_of_the_parent_ends_even_frozen_servers(tmp_path: Path) -> None:
    code = HOLD_A_STACK.replace(
        "sys.stdin.read()", "stack.postgres.freeze()\nprint(flush=True)\nsys.stdin.read()"
    )
    code = code.replace("urls = LocalStack(", "stack = LocalStack(").replace(
        ").start()", ")\nurls = stack.start()"
    )
    with program(code, str(tmp_path)) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline().startswith("postgresql://")
        owner.stdout.readline()
        owner.kill()
        owner.wait()
        wait_until_gone(tmp_path)


def test_a_sigkill_of_the_leash_ends_its_server(tmp_path: Path) -> None:
    with Valkey(tmp_path / "valkey") as valkey:
        leash = int(Path(f"/proc/{valkey.pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(leash, signal.SIGKILL)
        wait_until_gone(tmp_path)
        valkey.start()
        with redis.Redis.from_url(valkey.url()) as connection:
            assert connection.ping()


async def test_two_stacks_side_by_side(tmp_path: Path) -> None:
    one, other = (LocalStack(tmp_path / name, environment={}) for name in ("one", "other"))
    with one as first, other as second:
        assert first.database_url != second.database_url
        await run(first.database_url, "CREATE TABLE mine ()")
        assert await run(second.database_url, "SELECT to_regclass('mine')") is None
        with redis.Redis.from_url(first.redis_url) as valkey:
            valkey.set("mine", "1")
        with redis.Redis.from_url(second.redis_url) as valkey:
            assert valkey.get("mine") is None


def test_a_second_start_in_the_same_directory_is_refused(stack: LocalStack, tmp_path: Path) -> None:
    stack.start()
    with pytest.raises(DirectoryBusy, match=f"process {os.getpid()}"):
        LocalStack(tmp_path, environment={}).start()
    assert stack.valkey is not None
    with redis.Redis.from_url(stack.valkey.url()) as connection:
        assert connection.ping()


def test_stale_files_do_not_stop_a_start(stack: LocalStack, tmp_path: Path) -> None:
    stack.start()
    assert stack.postgres is not None
    pid_file = stack.postgres.cluster / "postmaster.pid"
    record = pid_file.read_text().splitlines()
    stack.stop()
    # As after a SIGKILL, when another process of this user has been given the pid meanwhile.
    pid_file.write_text("\n".join([str(os.getpid()), *record[1:]]) + "\n")
    for folder in ("pg", "valkey"):
        (tmp_path / folder / "lock").write_text("1 0\n")
        (tmp_path / folder / "port").write_text("not a port\n")
    with LocalStack(tmp_path, environment={}):
        assert pid_file.read_text().splitlines()[0] != str(os.getpid())


def test_a_start_that_was_killed_halfway_is_repeated(tmp_path: Path) -> None:
    unfinished = tmp_path / "pg" / "cluster.new"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    with Postgres(tmp_path / "pg", durable=False) as server:
        assert server.port in PORTS


def test_the_remembered_port_is_given_up_when_taken(tmp_path: Path) -> None:
    with Valkey(tmp_path / "valkey") as valkey:
        first = valkey.port
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", first))
        other.listen()
        with Valkey(tmp_path / "valkey") as valkey:
            assert valkey.port != first


def test_overrides_are_honoured_and_start_nothing(tmp_path: Path) -> None:
    elsewhere = {"DATABASE_URL": "postgresql://db.example/x", "REDIS_URL": "redis://kv.example/1"}
    with LocalStack(tmp_path / "unused", environment=elsewhere) as urls:
        assert urls.database_url == elsewhere["DATABASE_URL"]
        assert urls.redis_url == elsewhere["REDIS_URL"]
    assert not (tmp_path / "unused").exists()


async def test_a_killed_and_a_frozen_postgres_come_back(tmp_path: Path) -> None:
    with Postgres(tmp_path / "pg") as server:
        url = server.create_database("kept")
        await run(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        server.kill()
        with pytest.raises(OSError):
            await run(url, "SELECT 1")
        server.start()
        assert await run(url, "SELECT answer FROM kept") == 42
        server.freeze()
        with pytest.raises(TimeoutError):
            await asyncpg.connect(url, timeout=0.3)
        server.thaw()
        assert await run(url, "SELECT answer FROM kept") == 42


async def test_the_log_holds_nothing_that_was_sent(tmp_path: Path) -> None:
    with Postgres(tmp_path / "pg", durable=False) as server:
        url = server.create_database("logged")
        await run(url, "CREATE TABLE people (name text PRIMARY KEY, age int)")
        await run(url, "INSERT INTO people VALUES ('Canary Bird', 1)")
        for statement in (
            "INSERT INTO people VALUES ('Canary Bird', 1)",
            "SELECT 'Canary Bird'::int",
            "DO $$ BEGIN RAISE WARNING 'Canary Bird'; END $$",
        ):
            try:
                await run(url, statement)
            except asyncpg.PostgresError as error:
                assert "Canary" in str(error) + str(error.detail)
        assert "Canary" not in server.log.read_text()
        assert "ready to accept connections" in server.log.read_text()


async def test_settings(tmp_path: Path) -> None:
    with Postgres(tmp_path / "pg", settings={"max_connections": "17"}) as server:
        expected = {
            "max_connections": "17",
            "fsync": "on",
            "synchronous_commit": "on",
            "client_connection_check_interval": "5s",
            "log_parameter_max_length_on_error": "0",
            "shared_preload_libraries": "pg_stat_statements",
            "listen_addresses": "127.0.0.1",
        }
        for name, value in expected.items():
            assert await run(server.url(), f"SHOW {name}") == value
        locale = await run(server.url(), "SELECT datlocale FROM pg_database LIMIT 1")
        assert locale == "C.UTF-8"


async def test_strangers_are_refused(stack: LocalStack) -> None:
    stack.start()
    assert stack.postgres is not None
    assert stack.valkey is not None
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(
            host="127.0.0.1", port=stack.postgres.port, user="trunkline", password="x"
        )
    with (
        redis.Redis(port=stack.valkey.port, retry=Retry(NoBackoff(), 0)) as valkey,
        pytest.raises(redis.AuthenticationError),
    ):
        valkey.ping()


def test_another_version_s_cluster_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with Postgres(tmp_path / "pg", durable=False) as server:
        version = server.cluster / "PG_VERSION"
    version.write_text("9\n")
    with pytest.raises(LocalStackError, match="dump and restore"):
        server.start()


def test_the_leash_passes_on_the_exit_code() -> None:
    arguments = [str(os.getpid()), "self", str(int(signal.SIGTERM)), "-1"]
    command = ["/bin/sh", "-c", "exit 7"]
    done = subprocess.run([sys.executable, "-I", "-S", leash.__file__, *arguments, *command])
    assert done.returncode == 7
