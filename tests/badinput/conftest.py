"""One server process for all bad input: it has to survive every line of it, one after another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest

from tests.badinput.wire import request_headers, wire
from tests.conftest import Databases
from tests.daemons import Daemon, environment
from tests.running import Org, make_org
from trunkline_server.rpc.caller import Role

HANDSHAKE_TIMEOUT_S = 2.0
CONNECTION_IDLE_S = 2.0


@dataclass(frozen=True)
class House:
    daemon: Daemon
    org: Org
    other: Org
    database_url: str
    redis_url: str

    @property
    def port(self) -> int:
        return self.daemon.port

    @property
    def pid(self) -> int:
        """Of the process that serves."""
        (child,) = self.daemon.children()
        return child

    @property
    def authorization(self) -> str:
        return self.org.as_(Role.ADMIN)[0][1]


@pytest.fixture(scope="session")
def _house(
    migrated_databases: Databases,
    _redis_server_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[House]:
    database_url = migrated_databases.create()
    log: Path = tmp_path_factory.mktemp("badinput") / "serve.log"
    variables = environment(
        database_url,
        _redis_server_url,
        TRUNKLINE_LOG_LEVEL="debug",
        TRUNKLINE_HANDSHAKE_TIMEOUT_S=str(HANDSHAKE_TIMEOUT_S),
        TRUNKLINE_CONNECTION_IDLE_S=str(CONNECTION_IDLE_S),
    )
    with ThreadPoolExecutor(max_workers=1) as thread:
        org, other = (
            thread.submit(asyncio.run, make_org(database_url, slug)).result()
            for slug in ("acme", "other")
        )
    with Daemon(log, variables, "serve", "--processes", "1", "--port", "0") as daemon:
        yield House(daemon, org, other, database_url, _redis_server_url)
    migrated_databases.drop(database_url)


@pytest.fixture
async def house(_house: House) -> AsyncIterator[House]:
    """After each test: nothing of it is in the log, and the same process still serves."""
    pid, before = _house.pid, len(_house.daemon.lines())
    yield _house
    for line in _house.daemon.lines()[before:]:
        assert line["level"] in ("debug", "info"), line
        assert "error" not in line, line
    assert _house.pid == pid
    async with wire(_house.port) as connection:
        connection.call(1, request_headers(authorization=_house.authorization))
        assert (await connection.reply(1)).status == 0


@pytest.fixture
async def channel(house: House) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{house.port}") as channel:
        yield channel
