"""The enumeration guard at work: counts in this process, consequences in all of them.

The statistics are each process's own and cost no call. What follows from them is stored and told
to the others: a stop holds everywhere, until an administrator releases it (docs/adr/0012).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

import asyncpg

from trunkline_server import audit
from trunkline_server.db import Database
from trunkline_server.errors import AppError
from trunkline_server.link import Link
from trunkline_server.members import queries
from trunkline_server.members.errors import EnumerationSuspected
from trunkline_server.members.guard import AGENTS_MAX, Guard, GuardLimits, Level, Reading
from trunkline_server.rpc.caller import Caller, Role

TOPIC_GUARD = "guard"  # payload: actor, space, STOPPED or RELEASED
SLOW_DELAY_S = 1.0
# Stops are read again this often, whether or not the link told of them.
RELOAD_S = 30.0
RETRY_S = 0.5
_STOPPED, _RELEASED = "STOPPED", "RELEASED"
_STORED = {Level.WARN: "WARNED", Level.SLOW: "SLOWED", Level.STOP: _STOPPED}

_log = logging.getLogger(__name__)


class Guards:
    """`check` before a look-up, `record` after it. Neither waits."""

    def __init__(self, db: Database, link: Link | None) -> None:
        self._db = db
        self._link = link
        self._guard = Guard()
        self._levels: dict[str, Level] = {}
        self._stopped: frozenset[str] = frozenset()
        self._unsaved: dict[str, tuple[Caller, Reading]] = {}
        self._wake = asyncio.Event()
        self._stale = asyncio.Event()
        self._changes = 0
        self._tasks: list[asyncio.Task[None]] = []
        if link is not None:
            link.subscribe(TOPIC_GUARD, self._told)
            link.on_recovery(self._distrust)

    async def start(self) -> None:
        with contextlib.suppress(AppError, asyncpg.PostgresError, OSError):
            await self._load()
        self._tasks = [
            asyncio.create_task(self._save_for_ever(), name="guard-save"),
            asyncio.create_task(self._load_for_ever(), name="guard-load"),
        ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(AppError, asyncpg.PostgresError, OSError):
            await self._save()

    def check(self, who: Caller) -> None:
        if who.actor_key in self._stopped:
            raise EnumerationSuspected

    def record(
        self, who: Caller, number: str, *, missed: bool, limits: GuardLimits, now_s: float
    ) -> Level:
        """Counts one look-up of an agent; the level that holds from now on."""
        reading = self._guard.record(
            who.actor_key, number, missed=missed, limits=limits, now_s=now_s
        )
        level = reading.level
        if level is not self._levels.get(who.actor_key, Level.OK):
            self._changed(who, reading)
        return level

    def release(self, actor_key: str) -> None:
        """In this process; `announce_release` tells the others."""
        self._changes += 1
        self._stopped -= {actor_key}
        self._unsaved.pop(actor_key, None)
        self._levels.pop(actor_key, None)
        self._guard.release(actor_key)

    async def announce_release(self, actor_key: str) -> None:
        self.release(actor_key)
        if self._link is not None:
            await self._link.publish(TOPIC_GUARD, f"{actor_key} {_RELEASED}")

    def _changed(self, who: Caller, reading: Reading) -> None:
        if len(self._levels) > AGENTS_MAX:
            self._levels.clear()
        was = self._levels.get(who.actor_key, Level.OK)
        self._levels[who.actor_key] = reading.level
        if reading.level is Level.STOP:
            self._stop(who.actor_key)
        # Only what gets worse is written: a caller at the border would else be written each time.
        if reading.level > was:
            self._unsaved[who.actor_key] = (who, reading)
            self._wake.set()

    def _stop(self, actor_key: str) -> None:
        self._changes += 1
        self._stopped |= {actor_key}

    def _told(self, payload: str) -> None:
        actor_key, _, what = payload.partition(" ")
        if what == _STOPPED:
            self._stop(actor_key)
        elif actor_key in self._stopped:
            self.release(actor_key)

    def _distrust(self) -> None:
        self._stale.set()

    # -- beside the look-ups

    async def _save_for_ever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await _until_done(self._save, "guard levels not written down yet")

    async def _load_for_ever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RELOAD_S):
                    await self._stale.wait()
            self._stale.clear()
            await _until_done(self._load, "stopped callers not read yet")

    async def _save(self) -> None:
        while self._unsaved:
            actor_key, (who, reading) = next(iter(self._unsaved.items()))
            await self._save_one(who, reading)
            if self._unsaved.get(actor_key, (None, None))[1] is reading:
                del self._unsaved[actor_key]
            if reading.level is Level.STOP and self._link is not None:
                await self._link.publish(TOPIC_GUARD, f"{actor_key} {_STOPPED}")

    async def _save_one(self, who: Caller, reading: Reading) -> None:
        async with self._db.tenant_tx(who.org_id) as tx:
            await queries.save_guard(
                tx, who.org_id, who.actor_id, who.actor_name, _STORED[reading.level],
                reading.sign, (reading.lookups, reading.misses, reading.sequential),
            )  # fmt: skip
            await audit.append(
                tx,
                who.org_id,
                "validation.guard",
                resource_type="actor",
                resource_id=who.actor_id,
                outcome="REFUSED" if reading.level is Level.STOP else "OK",
                reason=reading.sign,
                details={
                    "level": _STORED[reading.level],
                    "lookups": str(reading.lookups),
                    "misses": str(reading.misses),
                    "sequential": str(reading.sequential),
                },
                actor=who,
            )

    async def _load(self) -> None:
        """The stops of all organisations, and those that are not written down yet."""
        while True:
            before = self._changes
            async with self._db.system_tx() as tx:
                stored = {str(actor_id) for actor_id in await queries.stopped(tx)}
            if self._changes == before:
                break  # else it was read before what was told meanwhile
        unsaved = {
            key for key, (_, reading) in self._unsaved.items() if reading.level is Level.STOP
        }
        for released in self._stopped - stored - unsaved:
            self.release(released)
        self._stopped = frozenset(stored | unsaved)


async def _until_done(step: Callable[[], Awaitable[None]], complaint: str) -> None:
    while True:
        try:
            await step()
            return
        except (AppError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            _log.warning(complaint)
            await asyncio.sleep(RETRY_S)


def guards(who: Caller) -> bool:
    """Whether the caller is one the guard watches: people who answer calls."""
    return who.role is Role.AGENT
