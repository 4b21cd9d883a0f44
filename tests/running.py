"""A whole server in the test's own process: the real composition, on a free port."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import grpc.aio
from google.rpc import error_details_pb2, status_pb2

from trunkline_server.app import Server
from trunkline_server.config import ServeSettings
from trunkline_server.db import Database
from trunkline_server.identity import admin
from trunkline_server.identity.rules import Peppers
from trunkline_server.identity.tokens import new_signing_key
from trunkline_server.rpc.caller import Role

Metadata = tuple[tuple[str, str], ...]

PEPPER = os.urandom(32).hex()
PAGE_SECRET = os.urandom(32).hex()
SIGNING_KEY = new_signing_key()


def settings(database_url: str, redis_url: str, **given: Any) -> ServeSettings:
    """What a test server runs with; `given` overrides."""
    values: dict[str, Any] = {
        "environment": "dev",
        "database_url": database_url,
        "redis_url": redis_url,
        "port": 0,
        "key_pepper": PEPPER,
        "page_secret": PAGE_SECRET,
        "token_key": SIGNING_KEY,
        "drain_wait_s": 0,
        "drain_grace_s": 5,
        "pool_size": 4,
        "readers": 2,
    }
    return ServeSettings(**{**values, **given})


@dataclass(frozen=True)
class Org:
    """An organisation of a test, with one API key for each role."""

    org_id: UUID
    slug: str
    keys: dict[Role, str]

    def as_(self, role: Role) -> Metadata:
        """The metadata of a call in that role."""
        return (("authorization", f"Bearer {self.keys[role]}"),)


async def make_org(database_url: str, slug: str) -> Org:
    peppers = Peppers([bytes.fromhex(PEPPER)])
    db = await Database.open(database_url, pool_size=1, readers=1)
    try:
        org_id = await admin.create_org(db, slug, f"Organisation {slug}")
        keys = {
            role: (
                await admin.create_key(
                    db, peppers, slug, display_name=f"{slug} {role.name}", role=role
                )
            ).secret
            for role in Role
        }
    finally:
        await db.close()
    return Org(org_id, slug, keys)


class Running:
    """A server under test and a channel to it."""

    def __init__(self, server: Server, channel: grpc.aio.Channel, database_url: str) -> None:
        self.server = server
        self.channel = channel
        self.address = f"127.0.0.1:{server.port}"
        self.database_url = database_url

    async def org(self, slug: str) -> Org:
        return await make_org(self.database_url, slug)


@contextlib.asynccontextmanager
async def running(database_url: str, redis_url: str, **given: Any) -> AsyncIterator[Running]:
    server = await Server.start(settings(database_url, redis_url, **given))
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield Running(server, channel, database_url)
    finally:
        async with asyncio.timeout(30):
            await server.stop()


def details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The details of an error by the name of their message; its reason under `reason`."""
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    found: dict[str, Any] = {}
    for packed in status.details:
        name = packed.type_url.rsplit(".", 1)[1]
        message = getattr(error_details_pb2, name)()
        packed.Unpack(message)
        found[name] = message
    found["reason"] = found["ErrorInfo"].reason
    return found
