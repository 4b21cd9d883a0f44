"""The client under test."""

from collections.abc import AsyncIterator

import pytest

from tests.client.stage import Stage
from tests.running import Org, Running
from trunkline import AsyncClient
from trunkline_server.rpc.caller import Role


@pytest.fixture
async def client(staged: Stage) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(staged.address, api_key="test") as client:
        yield client


@pytest.fixture
async def admin(real: Running, acme: Org) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(real.address, api_key=acme.keys[Role.ADMIN]) as client:
        yield client
