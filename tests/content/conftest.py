"""A server of the real composition, an organisation, and a caller for each role."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from tests.content.desk import Desk
from tests.running import Running, running


@pytest.fixture
async def desk(server: Running) -> Desk:
    return Desk(server.channel, await server.org("north"), server.database_url)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Any]:
    """One whom no policy and no missing grant stops."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
def start_server(database_url: str, redis_url: str) -> Any:
    """For tests that need several processes."""
    return lambda **given: running(database_url, redis_url, **given)
