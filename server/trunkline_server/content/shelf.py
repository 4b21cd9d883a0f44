"""Published lists, kept in Valkey for minutes and made again early by one process for all.

A list is named by the version of what the organisation's readers see, so a publication leaves the
old ones behind instead of hunting for them: whatever knows the new version finds nothing stale.
"""

from __future__ import annotations

import asyncio
import hashlib
import struct
import time
from collections.abc import Awaitable, Callable
from uuid import UUID

from trunkline_server.cache import Cache
from trunkline_server.content import queries
from trunkline_server.content.writing import TOPIC_ARTICLES
from trunkline_server.db import Database
from trunkline_server.link import Link
from trunkline_server.valkey import PREFIX, Valkey, ValkeyUnavailable

KEPT_S = 600
# Votes, views and the order of the most read move on without a publication.
EARLY_S = 300.0
# How long the process that makes a list again keeps the others from it.
TURN_MS = 10_000
VERSIONS_MAX = 10_000
VERSION_TTL_S = 30.0
# While this process may be missing publications, it asks the database for the version.
VERSION_SHORT_TTL_S = 0.5
LIST_BYTES_MAX = 1 << 20

_HEAD = struct.Struct(">d")
Make = Callable[[], Awaitable[bytes]]


class Shelf:
    def __init__(
        self,
        db: Database,
        valkey: Valkey | None,
        link: Link | None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._db = db
        self._valkey = valkey
        self._clock = clock
        self._flights: dict[str, asyncio.Task[bytes]] = {}
        self.hits = 0
        self.made = 0
        self.versions: Cache[str, int] = Cache(
            "content_versions",
            entries_max=VERSIONS_MAX,
            ttl_s=VERSION_TTL_S,
            short_ttl_s=VERSION_SHORT_TTL_S,
        )
        if link is None:
            self.versions.distrust()
        else:
            link.subscribe(TOPIC_ARTICLES, self._changed)
            link.on_loss(self.versions.distrust)
            link.on_recovery(self.versions.restore)

    def _changed(self, payload: str) -> None:
        self.versions.invalidate(payload.partition(" ")[0])

    async def get(self, org_id: UUID, what: bytes, make: Make) -> bytes:
        """`what` names the list among the organisation's; `make` reads it from the database."""
        version = await self.versions.get_or_load(
            org_id, str(org_id), lambda: self._version(org_id)
        )
        digest = hashlib.sha256(what).hexdigest()
        key = f"{PREFIX}content:{{{org_id}}}:{version}:{digest}"
        kept = await self._read(key)
        if kept is None:
            return await self._shared(key, make)
        made_at, content = kept
        if self._clock() - made_at > EARLY_S and await self._my_turn(key):
            self._refresh(key, make)
        self.hits += 1
        return content

    async def _version(self, org_id: UUID) -> int:
        async with self._db.tenant_tx(org_id) as tx:
            return await queries.version(tx, org_id)

    async def _shared(self, key: str, make: Make) -> bytes:
        # One caller who gives up must not take the answer from the others.
        return await asyncio.shield(self._refresh(key, make))

    def _refresh(self, key: str, make: Make) -> asyncio.Task[bytes]:
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.create_task(self._make(key, make))
            flight.add_done_callback(lambda task: self._landed(key, task))
        return flight

    def _landed(self, key: str, flight: asyncio.Task[bytes]) -> None:
        self._flights.pop(key, None)
        if not flight.cancelled():
            flight.exception()  # seen; who waits for it gets it, an early one has the old list

    async def _make(self, key: str, make: Make) -> bytes:
        made_at = self._clock()
        content = await make()
        self.made += 1
        if self._valkey is not None and len(content) <= LIST_BYTES_MAX:
            try:
                await self._valkey.command("SET", key, _HEAD.pack(made_at) + content, "EX", KEPT_S)
            except ValkeyUnavailable:
                pass
        return content

    async def _read(self, key: str) -> tuple[float, bytes] | None:
        if self._valkey is None:
            return None
        try:
            found: bytes | None = await self._valkey.command("GET", key)
        except ValkeyUnavailable:
            return None
        if found is None:
            return None
        return _HEAD.unpack_from(found)[0], found[_HEAD.size :]

    async def _my_turn(self, key: str) -> bool:
        assert self._valkey is not None
        try:
            words = ("SET", f"{key}:turn", 1, "NX", "PX", TURN_MS)
            return await self._valkey.command(*words) is not None
        except ValkeyUnavailable:
            return False

    async def close(self) -> None:
        for flight in list(self._flights.values()):
            flight.cancel()
        await asyncio.gather(*self._flights.values(), return_exceptions=True)
