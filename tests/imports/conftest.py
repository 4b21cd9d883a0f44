"""A server with the whole composition, an organisation that may import at will, the database."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest

from tests.imports.uploading import Importer
from tests.running import Running, make_org, running
from trunkline_server.rpc.caller import Role

# Quotas that no test meets by accident; those about quotas set their own.
FREE = {
    "import_starts_per_minute": 1000,
    "user_uploads_per_5_minutes": 1000,
    "imports_running": 100,
    "imports_waiting": 1000,
}


@pytest.fixture
async def superuser(database_url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """One whom no policy and no missing grant stops."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


class House:
    """Makes servers and organisations of one database."""

    def __init__(self, database_url: str, redis_url: str, superuser: Any, stack: Any) -> None:
        self.database_url = database_url
        self.redis_url = redis_url
        self.superuser = superuser
        self.stack: AsyncExitStack = stack
        self._orgs = 0

    async def server(self, **given: Any) -> Running:
        server = running(self.database_url, self.redis_url, **given)
        return await self.stack.enter_async_context(server)

    async def importer(self, server: Running, role: Role = Role.ADMIN, **quotas: Any) -> Importer:
        """In a new organisation."""
        self._orgs += 1
        org = await make_org(self.database_url, f"org-{self._orgs}")
        wanted = json.dumps({**FREE, **quotas})
        await self.superuser.execute(
            "UPDATE orgs SET quotas = $2 WHERE org_id = $1", org.org_id, wanted
        )
        return Importer(server, org, role)


@pytest.fixture
async def house(database_url: str, redis_url: str, superuser: Any) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        yield House(database_url, redis_url, superuser, stack)


@pytest.fixture
async def server(house: House) -> Running:
    return await house.server()


@pytest.fixture
async def importer(house: House, server: Running) -> Importer:
    return await house.importer(server)
