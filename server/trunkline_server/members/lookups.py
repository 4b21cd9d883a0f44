"""What became of the validations: counted and audited in batches (docs/adr/0008)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import asyncpg

from trunkline_server import facts
from trunkline_server.db import Database
from trunkline_server.errors import AppError
from trunkline_server.ids import uuid7
from trunkline_server.members import queries
from trunkline_server.members.queries import Logged
from trunkline_server.members.validation import Answer, Tally
from trunkline_server.rpc.caller import Caller

FLUSH_INTERVAL_S = 0.2
# At 3,000 validations a second this bridges half a minute without a database.
BUFFER_MAX = 100_000
ROWS_PER_WRITE_MAX = 5_000
MEMBERS_PER_ROW_MAX = 10_000
# A database that is away is asked again this often.
RETRY_S = 0.5

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
        self._buffer: deque[tuple[Caller, Sequence[Answer], float]] = deque()
        self._rows: deque[tuple[UUID, list[Logged]]] = deque()
        self._unwritten = 0
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return self._unwritten

    def record(self, who: Caller, answers: Sequence[Answer], now_s: float) -> None:
        self._buffer.append((who, answers, now_s))
        self._unwritten += len(answers)
        self.counts.recorded += len(answers)
        if self._unwritten > self._buffer_max:
            self._drop_oldest()

    def start(self) -> None:
        self._task = asyncio.create_task(self._flush_for_ever(), name="validation-log")

    async def close(self) -> None:
        """Writes what is left."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self.flush()

    async def flush(self) -> None:
        """Writes everything; what cannot be written stays for the next time."""
        self._tally()
        while self._rows:
            org_id, rows = self._rows[0]
            async with self._db.tenant_tx(org_id) as tx:
                await queries.log_validations(tx, org_id, rows)
                await facts.append(tx, org_id, [_fact(row) for row in rows])
            # Rows keep their ids until now, so that a write whose answer was lost is not doubled.
            if self._rows and self._rows[0][1] is rows:
                self._rows.popleft()
                count = sum(row.validations for row in rows)
                self.counts.written += count
                self._unwritten -= count

    def _tally(self) -> None:
        """One row for all validations of an actor with the same outcome and day."""
        by_org: dict[UUID, dict[tuple[str, Tally], _Group]] = {}
        for who, answers, now_s in self._buffer:
            groups = by_org.setdefault(who.org_id, {})
            actor_key = who.actor_key
            for answer in answers:
                group = groups.get((actor_key, answer.tally))
                if group is None:
                    group = groups[(actor_key, answer.tally)] = _Group(who.actor_id, now_s)
                group.validations += 1
                if answer.member_id is not None:
                    group.member_ids.append(answer.member_id)
        self._buffer.clear()
        for org_id, groups in by_org.items():
            rows = [
                row
                for (_, tally), group in groups.items()
                for row in group.rows(tally)
            ]  # fmt: skip
            for first in range(0, len(rows), ROWS_PER_WRITE_MAX):
                self._rows.append((org_id, rows[first : first + ROWS_PER_WRITE_MAX]))

    def _drop_oldest(self) -> None:
        # The oldest go: an audit that lags is worth less than one that is current.
        while self._unwritten > self._buffer_max:
            if len(self._rows) > 1:
                # The first may be on its way to the database at this moment.
                _, rows = self._rows[1]
                del self._rows[1]
                count = sum(row.validations for row in rows)
            elif self._buffer:
                count = len(self._buffer.popleft()[1])
            else:
                return
            self._unwritten -= count
            self.counts.dropped += count

    async def _flush_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.flush()
            except (AppError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                _log.warning("validations not written down yet", extra={"count": len(self)})
                await asyncio.sleep(RETRY_S)


def _fact(row: Logged) -> facts.Fact:
    """The same for the statistics; its id is the row's, so that it is counted once as well."""
    return facts.Fact(
        "VALIDATION", row.at, row.actor_id, row.decision, row.validations, row.validation_id
    )


class _Group:
    __slots__ = ("_actor_id", "_at_s", "member_ids", "validations")

    def __init__(self, actor_id: UUID, at_s: float) -> None:
        self._actor_id = actor_id
        self._at_s = at_s
        self.validations = 0
        self.member_ids: list[UUID] = []

    def rows(self, tally: Tally) -> list[Logged]:
        """Mostly one; no row grows without bound."""
        ids = self.member_ids
        if len(ids) <= MEMBERS_PER_ROW_MAX:
            return [self._row(tally, self.validations, ids)]
        rows = [
            self._row(tally, len(part), part)
            for first in range(0, len(ids), MEMBERS_PER_ROW_MAX)
            if (part := ids[first : first + MEMBERS_PER_ROW_MAX])
        ]
        if missed := self.validations - len(ids):
            rows.append(self._row(tally, missed, []))
        return rows

    def _row(self, tally: Tally, validations: int, member_ids: list[UUID]) -> Logged:
        decision, reasons, as_of = tally
        at = datetime.fromtimestamp(self._at_s, UTC)
        return Logged(
            uuid7(), self._actor_id, decision, reasons, validations, member_ids, as_of, at
        )
