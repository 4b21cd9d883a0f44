"""StreamEvents: batches gathered into transactions, two of them under way while the next comes in.

The caller is held back by not being read: what waits here is bounded, whatever it sends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace

from trunkline.api.stats.v1 import stats_service_pb2 as pb
from trunkline_server.stats import ask, present
from trunkline_server.stats.record import Batch

# One transaction: larger ones gain little and keep their keys for longer.
GATHER_EVENTS = 4_000
# While one transaction waits for the database, the next is encoded.
LANES = 2
# What a caller that pauses has sent is recorded without waiting for more.
PAUSE_S = 0.5
PROBLEMS_MAX = 1_000
# After a shutdown was announced, how long to go on counting what cannot be recorded any more.
UNREAD_S = 2.0

Record = Callable[[Sequence[pb.Event]], Awaitable[Batch]]


class Intake:
    """One stream."""

    def __init__(self, record: Record, draining: asyncio.Event) -> None:
        self._record = record
        self._draining = draining
        self._gathered: list[pb.Event] = []
        self._offset = 0
        self._lanes: set[asyncio.Task[None]] = set()
        self._counts = pb.EventCounts()
        self._problems: list[pb.EventProblem] = []

    async def run(self, requests: AsyncIterator[pb.StreamEventsRequest]) -> pb.StreamEventsResponse:
        stopping = asyncio.create_task(self._draining.wait())
        coming: asyncio.Task[pb.StreamEventsRequest | None] | None = None
        try:
            while not stopping.done():
                coming = coming or asyncio.create_task(_next(requests))
                done, _ = await asyncio.wait(
                    {coming, stopping},
                    timeout=PAUSE_S if self._gathered else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if coming not in done:
                    await self._flush()  # a pause, or the end
                    continue
                request, coming = coming.result(), None
                if request is None:
                    break
                self._gathered.extend(request.events)
                if len(self._gathered) >= GATHER_EVENTS:
                    await self._flush()
            await self._flush()
            while self._lanes:
                await self._free_lane()
            unread = await _count_unread(requests, coming) if stopping.done() else 0
        finally:
            for task in (stopping, coming, *self._lanes):
                if task is not None:
                    task.cancel()
        self._problems.sort(key=lambda problem: problem.index)
        return pb.StreamEventsResponse(
            counts=self._counts, problems=self._problems[:PROBLEMS_MAX], unread_events=unread
        )

    async def _flush(self) -> None:
        if not self._gathered:
            return
        while len(self._lanes) >= LANES:
            await self._free_lane()
        events, self._gathered = self._gathered, []
        self._lanes.add(asyncio.create_task(self._send(events, self._offset)))
        self._offset += len(events)

    async def _free_lane(self) -> None:
        done, self._lanes = await asyncio.wait(self._lanes, return_when=asyncio.FIRST_COMPLETED)
        for lane in done:
            lane.result()

    async def _send(self, events: list[pb.Event], offset: int) -> None:
        batch = await self._record(events)
        counts = ask.counts(batch.statuses)
        self._counts.recorded += counts.recorded
        self._counts.duplicates += counts.duplicates
        self._counts.conflicts += counts.conflicts
        self._counts.refused += counts.refused
        room = PROBLEMS_MAX - len(self._problems)
        for problem in batch.problems[: max(0, room)]:
            moved = replace(problem, index=problem.index + offset)
            self._problems.append(present.problem(moved))


async def _next(requests: AsyncIterator[pb.StreamEventsRequest]) -> pb.StreamEventsRequest | None:
    """None at the end, which a task cannot raise."""
    try:
        return await anext(requests)
    except StopAsyncIteration:
        return None


async def _count_unread(
    requests: AsyncIterator[pb.StreamEventsRequest],
    coming: asyncio.Task[pb.StreamEventsRequest | None] | None,
) -> int:
    """What arrives after the shutdown was announced, as long as we listen."""
    unread = 0
    try:
        async with asyncio.timeout(UNREAD_S):
            request = await (coming or _next(requests))
            while request is not None:
                unread += len(request.events)
                request = await _next(requests)
    except TimeoutError:
        return unread
    return unread
