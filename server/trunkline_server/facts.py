"""Facts: what happened, recorded as events in the transaction in which it happened.

Callers' events and the service's own take this one path. The numbers are made of them later, by
the roll-ups of the stats slice; nothing here waits for anything but its own rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from uuid import UUID

from trunkline_server.db import Executor
from trunkline_server.ids import uuid7

Kind = Literal[
    "CALL", "VALIDATION", "IMPORT_ROWS", "ARTICLE_VIEW", "ARTICLE_SEARCH", "ARTICLE_VOTE", "SIGN_IN"
]

# Outcomes of the service's own kinds. Those of VALIDATION are names of Decision; those of
# IMPORT_ROWS beside these two are names of RejectCode.
ROWS_ACCEPTED = "accepted"
IMPORT_ENDED = "ended"
SEARCH_HIT = "hit"
SEARCH_MISS = "miss"
VOTE_HELPFUL = "helpful"
VOTE_NOT_HELPFUL = "not_helpful"
SIGN_IN_OK = "ok"
SIGN_IN_FAILED = "failed"

_US_PER_S = 1_000_000


@dataclass(frozen=True, slots=True)
class Fact:
    """`quantity` is how many things it stands for, `agent_id` whom it concerns. Ids only."""

    kind: Kind
    occurred_at: datetime
    agent_id: UUID | None
    outcome: str = ""
    quantity: int = 1
    event_id: UUID = field(default_factory=uuid7)


@dataclass(slots=True)
class Columns:
    """Events as columns, which is how they travel. Times are microseconds since 1970.

    `kinds` may hold the one kind that all are of, and `attributes` nothing where no event has any:
    unnest fills what is missing up with NULL.
    """

    event_ids: Sequence[UUID | str]
    kinds: Sequence[str]
    occurred_us: Sequence[int]
    agent_ids: Sequence[UUID | str | None]
    durations_us: Sequence[int | None]
    outcomes: Sequence[str]
    quantities: Sequence[int]
    attributes: Sequence[str | None]

    def __len__(self) -> int:
        return len(self.event_ids)


# Marks of its own for each transaction (docs/adr/0030): an insert never waits for another's mark.
# `inserted` alone is marked, so a retry costs the look-ups of its keys and leaves nothing.
_APPEND = """
WITH given AS (
    SELECT event_id, coalesce(kind, ($3::text[])[1]) AS kind,
           timestamptz 'epoch' + occurred_us * interval '1 microsecond' AS occurred_at,
           agent_id, duration_us, outcome, quantity, attributes
    FROM unnest($2::uuid[], $3::text[], $4::bigint[], $5::uuid[], $6::bigint[], $7::text[],
                $8::bigint[], $9::jsonb[])
        AS g (event_id, kind, occurred_us, agent_id, duration_us, outcome, quantity, attributes)
), inserted AS (
    INSERT INTO events (
        org_id, occurred_on, event_id, kind, occurred_at, agent_id, duration_us, outcome,
        quantity, attributes
    )
    SELECT $1, (occurred_at AT TIME ZONE 'UTC')::date, event_id, kind, occurred_at, agent_id,
           duration_us, outcome, quantity, attributes
    FROM given
    ON CONFLICT DO NOTHING
    RETURNING event_id, occurred_at, kind
), marked AS (
    INSERT INTO stats_dirty (org_id, hour, kind, mark_id)
    SELECT $1, date_trunc('hour', occurred_at, 'UTC'), kind, $10 FROM inserted GROUP BY 2, 3
)
SELECT count(*) AS inserted,
       CASE WHEN count(*) < $11 THEN array_agg(event_id::text) END AS event_ids,
       CASE WHEN count(*) < $11 THEN (
           SELECT array_agg(
               CASE WHEN (e.kind, e.occurred_at, e.agent_id, e.duration_us, e.outcome, e.quantity,
                          e.attributes)
                   IS DISTINCT FROM (g.kind, g.occurred_at, g.agent_id, g.duration_us, g.outcome,
                                     g.quantity, g.attributes)
                   THEN g.event_id::text END
           )
           FROM given g JOIN events e ON e.org_id = $1 AND e.event_id = g.event_id
               AND e.occurred_on = (g.occurred_at AT TIME ZONE 'UTC')::date
       ) END AS met
FROM inserted
"""


@dataclass(frozen=True, slots=True)
class Inserted:
    """Ids as they were given. `new` is None when all were."""

    new: set[str] | None
    conflicting: frozenset[str] = frozenset()
    # Another transaction was quicker by a moment: what it wrote was not to be compared yet.
    unseen: bool = False


async def insert(tx: Executor, org_id: UUID, columns: Columns) -> Inserted:
    """Inserts what is not there, and compares the rest. Rows in the order of their ids.

    Two transactions that send the same events must meet them in the same order, or they would
    wait for each other in a ring.
    """
    row = await tx.fetchrow(
        _APPEND,
        org_id,
        columns.event_ids,
        columns.kinds,
        columns.occurred_us,
        columns.agent_ids,
        columns.durations_us,
        columns.outcomes,
        columns.quantities,
        columns.attributes,
        uuid7(),
        len(columns),
    )
    assert row is not None
    if row["inserted"] == len(columns):
        return Inserted(None)
    met = row["met"] or ()
    return Inserted(
        set(row["event_ids"] or ()),
        frozenset(event_id for event_id in met if event_id is not None),
        unseen=row["inserted"] + len(met) < len(columns),
    )


async def append(tx: Executor, org_id: UUID, facts: Sequence[Fact]) -> None:
    """In the caller's transaction. A fact that is there already stays as it is."""
    ordered = sorted(facts, key=lambda fact: fact.event_id)
    if not ordered:
        return
    await insert(
        tx,
        org_id,
        Columns(
            [fact.event_id for fact in ordered],
            [fact.kind for fact in ordered],
            [_microseconds(fact.occurred_at) for fact in ordered],
            [fact.agent_id for fact in ordered],
            [None] * len(ordered),
            [fact.outcome for fact in ordered],
            [fact.quantity for fact in ordered],
            [],
        ),
    )


def _microseconds(at: datetime) -> int:
    return int(at.timestamp()) * _US_PER_S + at.microsecond
