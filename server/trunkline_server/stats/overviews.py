"""Overviews, kept in Valkey for minutes and made again early, by one process for all of them.

Without Valkey every question goes to the database; several of one process that ask for the same
share one answer.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID
from zoneinfo import ZoneInfo

from trunkline.api.stats.v1 import stats_service_pb2 as pb
from trunkline_server.db import Database
from trunkline_server.link import Link
from trunkline_server.stats import present, queries, rules
from trunkline_server.stats.errors import RangeInvalid
from trunkline_server.stats.rules import Bucket, Interval
from trunkline_server.stats.worker import TOPIC_CHANGED
from trunkline_server.valkey import PREFIX, Valkey, ValkeyUnavailable

KEPT_S = 600
# Not made again sooner, however often the numbers change.
FRESH_S = 1.0
# Made again after this time if nothing is known to have changed: `as_of` moves on.
SOFT_S = 60.0
# The same while this process may be missing the messages that say so.
SOFT_UNTRUSTED_S = 3.0
# How long the process that makes one again keeps the others from it.
TURN_MS = 5_000
CHANGED_MAX = 100_000

_HEAD = struct.Struct(">d")


@dataclass(frozen=True, slots=True)
class Asked:
    """Which overview: a range, or today so far where an end is open."""

    org_id: UUID
    zone: ZoneInfo
    start: datetime | None = None
    end: datetime | None = None

    def bucket(self, now: datetime) -> Bucket:
        today = rules.today(now, self.zone)
        bucket = Bucket(self.start or today.start, self.end or now)
        if bucket.start >= bucket.end or bucket.end - bucket.start > rules.RANGE_MAX:
            raise RangeInvalid
        return bucket

    def key(self, now: datetime) -> str:
        open_ended = self.start is None or self.end is None
        day = now.astimezone(self.zone).date() if open_ended else ""
        ends = [at.timestamp() if at else "" for at in (self.start, self.end)]
        return f"{PREFIX}stats:overview:{{{self.org_id}}}:{self.zone.key}:{day}:{ends[0]}:{ends[1]}"


@dataclass(frozen=True, slots=True)
class Kept:
    made_at: float
    overview: pb.Overview


class Overviews:
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
        self._link = link
        self._clock = clock
        self._changed_at: dict[str, float] = {}
        self._flights: dict[str, asyncio.Task[pb.Overview]] = {}
        self.hits = 0
        self.made = 0
        if link is not None:
            link.subscribe(TOPIC_CHANGED, self._changed)

    def _changed(self, org_key: str) -> None:
        if len(self._changed_at) >= CHANGED_MAX:
            self._changed_at.clear()  # what was kept before is then made again after SOFT_S
        self._changed_at[org_key] = self._clock()

    async def get(self, asked: Asked) -> pb.Overview:
        now = datetime.now(UTC)
        asked.bucket(now)  # refuse before looking anywhere
        key = asked.key(now)
        kept = await self._read(key)
        if kept is not None and (
            self._is_fresh(kept, str(asked.org_id)) or not await self._my_turn(key)
        ):
            self.hits += 1
            return kept.overview
        return await self._shared(key, asked)

    def _is_fresh(self, kept: Kept, org_key: str) -> bool:
        age_s = self._clock() - kept.made_at
        if age_s < FRESH_S:
            return True
        trusted = self._link is not None and self._link.trusted
        if age_s > (SOFT_S if trusted else SOFT_UNTRUSTED_S):
            return False
        return kept.made_at > self._changed_at.get(org_key, 0.0)

    async def _shared(self, key: str, asked: Asked) -> pb.Overview:
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.create_task(self._make(key, asked))
            flight.add_done_callback(lambda _: self._flights.pop(key, None))
        # One caller who gives up must not take the answer from the others.
        return await asyncio.shield(flight)

    async def _make(self, key: str, asked: Asked) -> pb.Overview:
        made_at = self._clock()
        overview = await computed(self._db, asked)
        self.made += 1
        await self._write(key, Kept(made_at, overview))
        return overview

    async def _read(self, key: str) -> Kept | None:
        if self._valkey is None:
            return None
        try:
            found: bytes | None = await self._valkey.command("GET", key)
        except ValkeyUnavailable:
            return None
        if found is None:
            return None
        (made_at,) = _HEAD.unpack_from(found)
        return Kept(made_at, pb.Overview.FromString(found[_HEAD.size :]))

    async def _my_turn(self, key: str) -> bool:
        """Whether this process is the one to make it again."""
        assert self._valkey is not None
        try:
            words = ("SET", f"{key}:turn", 1, "NX", "PX", TURN_MS)
            return await self._valkey.command(*words) is not None
        except ValkeyUnavailable:
            return True

    async def _write(self, key: str, kept: Kept) -> None:
        if self._valkey is None:
            return
        body = _HEAD.pack(kept.made_at) + kept.overview.SerializeToString()
        try:
            await self._valkey.command("SET", key, body, "EX", KEPT_S)
            await self._valkey.command("DEL", f"{key}:turn")
        except ValkeyUnavailable:
            return


async def computed(db: Database, asked: Asked) -> pb.Overview:
    """From the numbers, all in one moment."""
    async with db.tenant_tx(asked.org_id, isolation="repeatable_read") as tx:
        bucket = asked.bucket(datetime.now(UTC))
        question = queries.Question(
            kinds=rules.ALL_KINDS,
            buckets=rules.buckets(bucket.start, bucket.end, Interval.WHOLE, UTC) or [],
            wants_durations=True,
            wants_agents=True,
        )
        days = await queries.counted_days(tx, asked.org_id, question)
        cut = rules.pieces(question.buckets, days)
        how_final = await queries.finality(tx, asked.org_id, question)
        found = await queries.totals(tx, asked.org_id, question, cut, ())
    totals = found.get((0, queries.Key()), rules.Totals())
    return present.overview(bucket, totals, how_final)
