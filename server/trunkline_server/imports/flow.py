"""Grants: how far each upload may send, so that stored-but-unprocessed bytes stay bounded.

A grant is an absolute offset: the stream's persisted bytes plus its window, as far as the
organisation's and the global budget have room. The window shrinks when the database slows down
and when many streams share this process. A grant is never taken back.

Uploads that are not finished cannot be processed, so when they alone fill a budget nothing would
ever make room: then the process lets its oldest stream go on.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from trunkline.api.imports.v1 import imports_service_pb2 as pb

STREAM_WINDOW_BYTES = 8 << 20
STREAM_WINDOW_BYTES_MIN = 256 << 10
# All windows of this process together: what could be on its way to it at once.
PROCESS_WINDOW_BYTES = 96 << 20
ORG_BUDGET_BYTES = 2 << 30
GLOBAL_BUDGET_BYTES = 16 << 30
COMMIT_SLOW_S = 0.25
COMMIT_WEIGHT = 0.2
# A slow commit is forgotten when nobody commits, or no grant would ever try again.
COMMIT_MEMORY_S = 5.0
BACKLOG_LIFE_S = 0.5
BACKLOGS_MAX = 10_000
PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class FlowLimits:
    stream_window_bytes: int = STREAM_WINDOW_BYTES
    stream_window_bytes_min: int = STREAM_WINDOW_BYTES_MIN
    process_window_bytes: int = PROCESS_WINDOW_BYTES
    org_budget_bytes: int = ORG_BUDGET_BYTES
    global_budget_bytes: int = GLOBAL_BUDGET_BYTES
    commit_slow_s: float = COMMIT_SLOW_S


@dataclass(frozen=True, slots=True)
class Backlog:
    """Stored and not yet processed; whether a worker is going to make room by itself."""

    all_bytes: int
    org_bytes: int
    all_draining: bool
    org_draining: bool


class Grant(NamedTuple):
    send_limit: int
    pause: pb.PauseReason.ValueType  # PAUSE_REASON_UNSPECIFIED: the window is open


def window(limits: FlowLimits, streams: int, commit_s: float) -> int:
    """Bytes a stream may be ahead of what is stored."""
    size = min(limits.stream_window_bytes, limits.process_window_bytes // max(streams, 1))
    if commit_s > limits.commit_slow_s:
        size = int(size * limits.commit_slow_s / commit_s)
    return max(size, min(limits.stream_window_bytes_min, limits.stream_window_bytes))


def grant(
    limits: FlowLimits,
    backlog: Backlog,
    *,
    persisted: int,
    size_max: int,
    streams: int,
    commit_s: float,
    oldest_of_org: bool,
    oldest_of_all: bool,
) -> Grant:
    """size_max is where the file must end at the latest."""
    org_room = limits.org_budget_bytes - backlog.org_bytes
    global_room = limits.global_budget_bytes - backlog.all_bytes
    # Where nothing else can make room, the oldest goes on and will be finished.
    if oldest_of_org and not backlog.org_draining:
        org_room = size_max
    if oldest_of_all and not backlog.all_draining:
        global_room = size_max
    size = window(limits, streams, commit_s)
    pause = pb.PAUSE_REASON_UNSPECIFIED
    if org_room <= 0:
        pause = pb.PAUSE_REASON_ORG_BUDGET
    elif global_room <= 0:
        pause = pb.PAUSE_REASON_GLOBAL_BUDGET
    elif commit_s > limits.commit_slow_s:
        pause = pb.PAUSE_REASON_DATABASE_SLOW
    room = max(0, min(size, org_room, global_room))
    return Grant(min(persisted + room, size_max), pause)


class Stream:
    """One stream's place in the budgets."""

    __slots__ = ("granted", "org_id")

    def __init__(self, org_id: UUID) -> None:
        self.org_id = org_id
        self.granted = 0


@dataclass(slots=True)
class _Known:
    backlog: Backlog
    read_at: float
    # This process's totals at that time: what it stored since is added.
    stored_before: int
    org_stored: int = 0


ReadBacklog = Callable[[UUID], Awaitable[Backlog]]


class Flow:
    """The grants of one serving process, and their figures."""

    def __init__(
        self,
        read_backlog: ReadBacklog,
        *,
        limits: FlowLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or FlowLimits()
        self._read_backlog = read_backlog
        self._clock = clock
        self._streams: dict[int, Stream] = {}  # in order of age
        self._known: OrderedDict[UUID, _Known] = OrderedDict()
        self._commit_s = 0.0
        self._committed_at = 0.0
        # Totals since the process started, for metrics.
        self.granted_bytes = 0
        self.stored_bytes = 0
        self.refused_bytes = 0
        self.pauses = 0

    @property
    def streams(self) -> int:
        return len(self._streams)

    @property
    def unprocessed_bytes(self) -> int:
        """Of all organisations, as last read."""
        newest = max(self._known.values(), key=lambda known: known.read_at, default=None)
        if newest is None:
            return 0
        return newest.backlog.all_bytes + self.stored_bytes - newest.stored_before

    @property
    def commit_s(self) -> float:
        """How long commits take lately."""
        idle = self._clock() - self._committed_at > COMMIT_MEMORY_S
        return 0.0 if idle else self._commit_s

    def window_bytes(self) -> int:
        """How far each stream may be ahead of what is stored."""
        return window(self.limits, len(self._streams), self.commit_s)

    def enter(self, org_id: UUID) -> Stream:
        stream = Stream(org_id)
        self._streams[id(stream)] = stream
        return stream

    def leave(self, stream: Stream) -> None:
        self._streams.pop(id(stream), None)

    def committed(self, stream: Stream, size: int, seconds: float) -> None:
        self.stored_bytes += size
        before_s = self.commit_s
        self._commit_s = before_s + (seconds - before_s) * COMMIT_WEIGHT
        self._committed_at = self._clock()
        if known := self._known.get(stream.org_id):
            known.org_stored += size

    def finished(self, stream: Stream) -> None:
        """A worker can make room from now on, so what is known of the backlog is wrong."""
        self._known.pop(stream.org_id, None)

    def refused(self, size: int) -> None:
        self.refused_bytes += size

    async def grant(self, stream: Stream, persisted: int, size_max: int) -> Grant:
        given = grant(
            self.limits,
            await self._backlog(stream.org_id),
            persisted=persisted,
            size_max=size_max,
            streams=len(self._streams),
            commit_s=self.commit_s,
            oldest_of_org=self._is_oldest(stream, stream.org_id),
            oldest_of_all=self._is_oldest(stream, None),
        )
        if given.send_limit > stream.granted:
            self.granted_bytes += given.send_limit - max(stream.granted, persisted)
            stream.granted = given.send_limit
        return given

    def _is_oldest(self, stream: Stream, org_id: UUID | None) -> bool:
        ours = (s for s in self._streams.values() if org_id is None or s.org_id == org_id)
        return next(ours, None) is stream

    async def _backlog(self, org_id: UUID) -> Backlog:
        known = self._known.get(org_id)
        if known is None or self._clock() - known.read_at > BACKLOG_LIFE_S:
            stored_before = self.stored_bytes
            backlog = await self._read_backlog(org_id)
            known = self._known[org_id] = _Known(backlog, self._clock(), stored_before)
            self._known.move_to_end(org_id)
            if len(self._known) > BACKLOGS_MAX:
                self._known.popitem(last=False)
        read = known.backlog
        return Backlog(
            read.all_bytes + self.stored_bytes - known.stored_before,
            read.org_bytes + known.org_stored,
            read.all_draining,
            read.org_draining,
        )
