"""WatchMembers: the changes in the order of their commits, from a checkpoint on.

Each change names the members whose latest it is. A member that was changed again before it was
read here is told of once, with the later change: what a watch promises is that whoever follows it
ends with the members as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID

from trunkline.api.errors.v1 import reason_pb2
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.db import Database, Executor, Record
from trunkline_server.errors import Invalid, RateLimited
from trunkline_server.link import Link
from trunkline_server.members import present
from trunkline_server.members.validation import TOPIC_MEMBER, TOPIC_MEMBERS
from trunkline_server.paging import PageTokenInvalid, PageTokens
from trunkline_server.rpc.caller import Caller, caller
from trunkline_server.rpc.drain import Drain

# The link's word is a hint: whatever it loses is found by looking.
POLL_S = 2.0
HEARTBEAT_S = 15.0
MEMBERS_PER_MESSAGE = 500
CHANGES_AT_ONCE = 100
CHECKPOINT_TTL_S = 90 * 86_400
WATCHES_PER_ORG_MAX = 50


class CheckpointInvalid(Invalid):
    reason = reason_pb2.REASON_CHECKPOINT_INVALID
    text = "The checkpoint was not issued for this watch; start without one."


class TooManyWatches(RateLimited):
    reason = reason_pb2.REASON_TOO_MANY_STREAMS
    text = "The organisation has as many watches open as it may."


_LAST = "SELECT seq FROM member_change_seqs WHERE org_id = $1"
# From the change at hand on: its members after the last one told of are still to come.
_CHANGES = """
SELECT change_id, seq, cause, actor_kind, actor_id, actor_name, import_id, file_name, changed_at
FROM member_changes WHERE org_id = $1 AND seq >= $2 ORDER BY seq LIMIT $3
"""
_MEMBERS = """
SELECT member_id, member_number, given_name, family_name, email, phone, date_of_birth, plan,
       status, effective_from, effective_to, attributes, version, row_no, created_at, updated_at,
       deleted_at, purge_at, $5::text AS cause, $6::text AS actor_kind, $7::uuid AS actor_id,
       $8::text AS actor_name, $9::uuid AS import_id, $10::text AS file_name,
       $11::timestamptz AS changed_at
FROM members WHERE org_id = $1 AND change_id = $2 AND member_id > $3
ORDER BY member_id LIMIT $4
"""
_GONE = """
SELECT member_id, member_number FROM member_removals
WHERE org_id = $1 AND change_id = $2 AND member_id > $3 ORDER BY member_id LIMIT $4
"""
_FIRST_ID, _LAST_ID = UUID(int=0), UUID(int=(1 << 128) - 1)


@dataclass(slots=True)
class _Place:
    """All changes before `seq` are told of, and of that one the members up to `member_id`."""

    seq: int
    member_id: UUID


class Watching:
    def __init__(self, db: Database, link: Link | None, pages: PageTokens, drain: Drain) -> None:
        self._db = db
        self._pages = pages
        self._drain = drain
        self._watches: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        if link is not None:
            link.subscribe(TOPIC_MEMBER, self._hint)
            link.subscribe(TOPIC_MEMBERS, self._hint)

    async def watch(
        self, request: pb.WatchMembersRequest
    ) -> AsyncIterator[pb.WatchMembersResponse]:
        who = caller()
        place = self._opened(request.checkpoint) or await self._now(who)
        news = asyncio.Event()
        open_ones = self._watches[who.org_key]
        if len(open_ones) >= WATCHES_PER_ORG_MAX:
            raise TooManyWatches(retry_after_s=60)
        open_ones.add(news)
        undo = self._drain.on_goaway(news.set)
        try:
            async for reply in self._follow(who, place, news):
                yield reply
        finally:
            undo()
            open_ones.discard(news)
            if not open_ones:
                self._watches.pop(who.org_key, None)

    async def _follow(
        self, who: Caller, place: _Place, news: asyncio.Event
    ) -> AsyncIterator[pb.WatchMembersResponse]:
        loop = asyncio.get_running_loop()
        # At once: the client learns where it is before anything happens.
        beat_at = loop.time()
        while not self._drain.draining.is_set():
            news.clear()
            async for reply in self._told(who, place):
                beat_at = loop.time() + HEARTBEAT_S
                yield reply
            if loop.time() >= beat_at:
                beat_at = loop.time() + HEARTBEAT_S
                yield pb.WatchMembersResponse(checkpoint=self._checkpoint(place))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(POLL_S, max(beat_at - loop.time(), 0.01))):
                    await news.wait()
        yield pb.WatchMembersResponse(checkpoint=self._checkpoint(place), go_away=True)

    async def _told(self, who: Caller, place: _Place) -> AsyncIterator[pb.WatchMembersResponse]:
        """Everything after the place, message by message; the place moves on."""
        while not self._drain.draining.is_set():
            async with self._db.tenant_tx(who.org_id) as tx:
                changes, more = await _next(tx, who, place)
            if changes:
                yield pb.WatchMembersResponse(changes=changes, checkpoint=self._checkpoint(place))
            if not more:
                return

    def _checkpoint(self, place: _Place) -> str:
        return self._pages.seal([place.seq, str(place.member_id)], ttl_s=CHECKPOINT_TTL_S)

    def _opened(self, checkpoint: str) -> _Place | None:
        try:
            position = self._pages.open(checkpoint)
        except PageTokenInvalid:
            raise CheckpointInvalid from None
        return _Place(position[0], UUID(position[1])) if position else None

    async def _now(self, who: Caller) -> _Place:
        async with self._db.tenant_tx(who.org_id) as tx:
            seq: int | None = await tx.fetchval(_LAST, who.org_id)
        return _Place(seq or 0, _LAST_ID)

    def _hint(self, payload: str) -> None:
        for news in self._watches.get(payload[:36], ()):
            news.set()


async def _next(tx: Executor, who: Caller, place: _Place) -> tuple[list[pb.MemberChange], bool]:
    """Up to a message of changes; whether there may be more."""
    told: list[pb.MemberChange] = []
    changes = await tx.fetch(_CHANGES, who.org_id, place.seq, CHANGES_AT_ONCE)
    for change in changes:
        if change["seq"] > place.seq:
            place.seq, place.member_id = change["seq"], _FIRST_ID
        room = MEMBERS_PER_MESSAGE - len(told)
        if not room:
            return told, True
        rows = await _members_of(tx, who, change, place.member_id, room)
        told.extend(rows)
        if len(rows) == room:
            place.member_id = UUID(rows[-1].member.member_id)
            return told, True
        place.member_id = _LAST_ID
    return told, len(changes) == CHANGES_AT_ONCE


async def _members_of(
    tx: Executor, who: Caller, change: Record, after: UUID, limit: int
) -> list[pb.MemberChange]:
    if after == _LAST_ID:
        return []
    cause = present.change_cause(change["cause"])
    moment = present.timestamp(change["changed_at"])
    if change["cause"] == "PURGED":
        gone = await tx.fetch(_GONE, who.org_id, change["change_id"], after, limit)
        members = [
            pb.Member(member_id=str(row["member_id"]), member_number=row["member_number"])
            for row in gone
        ]
    else:
        rows = await tx.fetch(
            _MEMBERS, who.org_id, change["change_id"], after, limit, change["cause"],
            change["actor_kind"], change["actor_id"], change["actor_name"], change["import_id"],
            change["file_name"], change["changed_at"],
        )  # fmt: skip
        members = [present.member(row, who.role) for row in rows]
    return [pb.MemberChange(member=member, cause=cause, change_time=moment) for member in members]
