"""What became of the validations: counted, audited, and watched for a search for numbers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict, deque
from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

import asyncpg

from trunkline_server.db import Database
from trunkline_server.errors import Unavailable
from trunkline_server.ids import uuid7
from trunkline_server.members import queries
from trunkline_server.members.queries import Logged

FLUSH_INTERVAL_S = 0.2
# At 3,000 validations a second this bridges half a minute without a database.
BUFFER_MAX = 100_000
ROWS_PER_FLUSH_MAX = 5_000

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    recorded: int = 0
    written: int = 0
    dropped: int = 0


class ValidationLog:
    """A bounded buffer that is written in batches, off the way of the answer.

    What a killed process had not flushed is lost: at most FLUSH_INTERVAL_S of its validations.
    A drained process loses none.
    """

    def __init__(
        self, db: Database, *, interval_s: float = FLUSH_INTERVAL_S, buffer_max: int = BUFFER_MAX
    ) -> None:
        self.counts = Counts()
        self._db = db
        self._interval_s = interval_s
        self._buffer_max = buffer_max
        self._buffer: deque[tuple[UUID, UUID, str, str, UUID | None, date, datetime]] = deque()
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._buffer)

    def record(
        self,
        org_id: UUID,
        actor_id: UUID,
        decision: str,
        reasons: str,
        member_id: UUID | None,
        as_of: date,
        at: datetime,
    ) -> None:
        if len(self._buffer) >= self._buffer_max:
            # The oldest go: an audit that lags is worth less than one that is current.
            self._buffer.popleft()
            self.counts.dropped += 1
        self._buffer.append((org_id, actor_id, decision, reasons, member_id, as_of, at))
        self.counts.recorded += 1

    def start(self) -> None:
        self._task = asyncio.create_task(self._flush_for_ever(), name="validation-log")

    async def close(self) -> None:
        """Writes what is left."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        while self._buffer:
            await self.flush()

    async def flush(self) -> None:
        taken = [self._buffer.popleft() for _ in range(min(len(self._buffer), ROWS_PER_FLUSH_MAX))]
        by_org: dict[UUID, list[Logged]] = defaultdict(list)
        for org_id, *rest in taken:
            by_org[org_id].append(Logged(uuid7(), *rest))  # type: ignore[arg-type]
        for org_id, rows in by_org.items():
            await self._write(org_id, rows)

    async def _write(self, org_id: UUID, rows: list[Logged]) -> None:
        async with self._db.tenant_tx(org_id) as tx:
            await queries.log_validations(tx, org_id, rows)
        self.counts.written += len(rows)

    async def _flush_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            while self._buffer:
                await self._flush_or_put_back()

    async def _flush_or_put_back(self) -> None:
        before = list(self._buffer)[:ROWS_PER_FLUSH_MAX]
        try:
            await self.flush()
        except (Unavailable, asyncpg.PostgresError, OSError):
            _log.warning("validations could not be written down", extra={"count": len(before)})
            room = self._buffer_max - len(self._buffer)
            self._buffer.extendleft(reversed(before[-room:] if room else []))
            await asyncio.sleep(self._interval_s)
