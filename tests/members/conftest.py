"""A server of the real composition, an organisation, and a caller for each role."""

from __future__ import annotations

from typing import Any

import pytest

from tests.members.desk import Desk
from tests.running import Running, running


@pytest.fixture
async def desk(server: Running) -> Desk:
    """An organisation's people at the server."""
    return Desk(server.channel, await server.org("north"), server.database_url)


@pytest.fixture
def start_server(database_url: str, redis_url: str) -> Any:
    """For tests that need several processes, or settings of their own."""
    return lambda **given: running(database_url, redis_url, **given)
