"""PostgreSQL -> a migrated template -> a database per test; Valkey; servers of a test's own.

Every pytest-xdist worker has its own pair of servers, started by the first test that asks: no
test waits for another worker's, and none can disturb it. DATABASE_URL and REDIS_URL override
them: then databases are created beside the named one, and each worker flushes the database of
its own number on the named Valkey.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from tests.running import Running, running
from trunkline_server.local import Postgres, Valkey, databases
from trunkline_server.migrate import migrate_up

DEDICATED_DATABASE = "trunkline"

_numbers = itertools.count(1)


class Databases:
    """Copies of one migrated database, dropped behind the tests' backs."""

    def __init__(self, server_url: str) -> None:
        self._server_url = server_url
        # Unique on a server that several workers, or several runs, share.
        self._prefix = f"trunkline_test_{os.getpid()}"
        self._template = f"{self._prefix}_template"
        self._drops = ThreadPoolExecutor(max_workers=1, thread_name_prefix="drop-database")
        self._dropped: list[Future[None]] = []

    def migrate(self) -> None:
        """Create the template."""
        migrate(databases.create_database(self._server_url, self._template))

    def create(self) -> str:
        """A fresh migrated database."""
        name = f"{self._prefix}_{next(_numbers)}"
        return databases.create_database(self._server_url, name, self._template)

    def drop(self, url: str) -> None:
        """Drop it while the next test runs."""
        name = url.partition("?")[0].rpartition("/")[2]
        drop = self._drops.submit(databases.drop_database, self._server_url, name)
        self._dropped.append(drop)

    def close(self) -> None:
        """Wait for what is being dropped, and drop the template."""
        self._drops.shutdown()
        databases.drop_database(self._server_url, self._template)
        for drop in self._dropped:
            drop.result()


def migrate(url: str) -> None:
    """Migrate in a thread of its own: the calling one belongs to pytest-asyncio's loops."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(asyncio.run, migrate_up(url)).result()


@pytest.fixture(scope="session")
def server_directory() -> Iterator[Path]:
    """A directory with a short path: a unix socket's name has 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="trunkline-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def server_url(server_directory: Path) -> Iterator[str]:
    """The superuser's URL of the PostgreSQL server that tests share."""
    if url := os.environ.get("DATABASE_URL"):
        yield url
    else:
        with Postgres(server_directory / "pg", durable=False) as server:
            yield server.url()


@pytest.fixture(scope="session")
def migrated_databases(server_url: str) -> Iterator[Databases]:
    migrated = Databases(server_url)
    migrated.migrate()
    yield migrated
    migrated.close()


@pytest.fixture
def template_database(migrated_databases: Databases) -> Databases:
    """For tests that need several databases: `template_database.create()` and `.drop(url)`."""
    return migrated_databases


@pytest.fixture
def database_url(migrated_databases: Databases) -> Iterator[str]:
    """The superuser's URL of a migrated database that only this test sees."""
    url = migrated_databases.create()
    yield url
    migrated_databases.drop(url)


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    """The superuser's URL of a database with nothing in it."""
    name = f"trunkline_empty_{os.getpid()}_{next(_numbers)}"
    yield databases.create_database(server_url, name)
    databases.drop_database(server_url, name)


@pytest.fixture(scope="session")
def _redis_server_url(server_directory: Path) -> Iterator[str]:
    if url := os.environ.get("REDIS_URL"):
        worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
        yield urlsplit(url)._replace(path=f"/{worker}").geturl()
    else:
        with Valkey(server_directory / "valkey", durable=False) as server:
            yield server.url()


@pytest.fixture
def redis_url(_redis_server_url: str) -> str:
    """The URL of a Valkey database that is empty when the test starts."""
    with redis.Redis.from_url(_redis_server_url) as connection:
        connection.flushdb()
    return _redis_server_url


@pytest.fixture(scope="session")
def _seed(server_directory: Path) -> Path:
    """A stopped, migrated cluster: copying it is quicker than making another."""
    seed = server_directory / "seed"
    with Postgres(seed) as server:
        migrate(server.create_database(DEDICATED_DATABASE))
    return seed


@pytest.fixture
def postgres(_seed: Path) -> Iterator[Postgres]:
    """A server of the test's own, to kill and freeze; `.url("trunkline")` is migrated."""
    directory = Path(tempfile.mkdtemp(prefix="trunkline-"))
    unwanted = shutil.ignore_patterns("port", "lock", "postgres.log")
    shutil.copytree(_seed, directory / "pg", ignore=unwanted)
    with Postgres(directory / "pg") as server:
        yield server
    shutil.rmtree(directory)


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    """A Valkey of the test's own, to kill and freeze."""
    directory = Path(tempfile.mkdtemp(prefix="trunkline-"))
    with Valkey(directory / "valkey") as server:
        yield server
    shutil.rmtree(directory)


@pytest.fixture
async def server(database_url: str, redis_url: str) -> AsyncIterator[Running]:
    """A whole server on a database of its own; `await server.org("acme")` makes a tenant."""
    async with running(database_url, redis_url) as server:
        yield server
