"""Schedules: one job for each tick of a task, whoever of the workers notices first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from trunkline_server.db import Connection
from trunkline_server.jobs.queue import SYSTEM_ORG, enqueue


@dataclass(frozen=True, slots=True)
class Schedule:
    """Ticks are multiples of `every` since 1970 UTC, by the database's clock.

    A tick that nobody was there for is not made up for, and one whose predecessor's job is still
    live is skipped: a scheduled task looks at the state of the world, never at the tick.
    """

    task: str  # also the kind of the job
    every: timedelta
    priority: int = 0


# Ticks that have passed already cost one index look-up.
_FIRE = """
INSERT INTO schedules (org_id, task, tick)
SELECT $1, s.task, date_bin(s.every, clock_timestamp(), timestamptz 'epoch')
FROM unnest($2::text[], $3::interval[]) AS s (task, every)
ON CONFLICT DO NOTHING
RETURNING task
"""


async def fire(tx: Connection, schedules: Sequence[Schedule]) -> list[UUID]:
    """Enqueue what is due, in the transaction that notes the tick."""
    if not schedules:
        return []
    by_task = {s.task: s for s in sorted(schedules, key=lambda s: s.task)}
    periods = [s.every for s in by_task.values()]
    fired = await tx.fetch(_FIRE, SYSTEM_ORG, list(by_task), periods)
    return [
        await enqueue(
            tx, SYSTEM_ORG, row["task"], priority=by_task[row["task"]].priority, dedup_key="tick"
        )
        for row in fired
    ]
