"""The statements of stats: what is there already, series, and how final they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from uuid import UUID

from trunkline_server.db import Executor
from trunkline_server.facts import Columns
from trunkline_server.stats import rules
from trunkline_server.stats.rules import Bucket, Finality, Pieces, Totals

# Nobody: an event without an agent, and the sums over all of them.
NOBODY = UUID(int=0)
# Below this age no partition is ever dropped: raw events are there.
RAW_CERTAIN = rules.EVENT_AGE_MAX


# A row that is there differs, or it would have been inserted.
_CONFLICTING = """
SELECT g.event_id::text
FROM unnest($2::uuid[], $3::text[], $4::bigint[], $5::uuid[], $6::bigint[], $7::text[],
            $8::bigint[], $9::jsonb[])
    AS g (event_id, kind, occurred_us, agent_id, duration_us, outcome, quantity, attributes)
JOIN events e ON e.org_id = $1 AND e.event_id = g.event_id
    AND e.occurred_on = (
        (timestamptz 'epoch' + g.occurred_us * interval '1 microsecond') AT TIME ZONE 'UTC'
    )::date
WHERE (e.kind, e.occurred_at, e.agent_id, e.duration_us, e.outcome, e.quantity, e.attributes)
    IS DISTINCT FROM (
        coalesce(g.kind, ($3::text[])[1]),
        timestamptz 'epoch' + g.occurred_us * interval '1 microsecond',
        g.agent_id, g.duration_us, g.outcome, g.quantity, g.attributes
    )
"""


async def conflicting(tx: Executor, org_id: UUID, columns: Columns) -> set[str]:
    """Which of the events are there with another content."""
    rows = await tx.fetch(
        _CONFLICTING,
        org_id,
        columns.event_ids,
        columns.kinds,
        columns.occurred_us,
        columns.agent_ids,
        columns.durations_us,
        columns.outcomes,
        columns.quantities,
        columns.attributes,
    )
    return {row["event_id"] for row in rows}


# ---- questions ----


@dataclass(frozen=True, slots=True)
class Question:
    """What to add up. Empty filters let everything through."""

    kinds: Sequence[str]
    buckets: Sequence[Bucket]
    by_agent: bool = False
    by_outcome: bool = False
    agents: Sequence[UUID] = ()
    outcomes: Sequence[str] = ()
    wants_durations: bool = False
    wants_agents: bool = False

    @property
    def level(self) -> str:
        return "AGENT" if self.by_agent or self.agents else "ALL"

    @property
    def grouped(self) -> bool:
        return self.by_agent or self.by_outcome

    def as_one(self) -> Question:
        """The same over the whole range."""
        return replace(self, buckets=[Bucket(self.start, self.end)])

    def parts(self, size: int) -> Iterator[Question]:
        """The same, some buckets at a time."""
        for first in range(0, len(self.buckets), size):
            yield replace(self, buckets=self.buckets[first : first + size])

    @property
    def start(self) -> datetime:
        return self.buckets[0].start

    @property
    def end(self) -> datetime:
        return self.buckets[-1].end


@dataclass(frozen=True, slots=True)
class Key:
    """A group; None where it is not grouped by that."""

    agent_id: UUID | None = None
    outcome: str | None = None


# Days (UTC) whose daily rows are right for all of the kinds.
_COUNTED_DAYS = """
SELECT day FROM stats_days
WHERE org_id = $1 AND kind = ANY ($2) AND day >= $3 AND day < $4
GROUP BY day HAVING bool_and(NOT dirty)
"""


async def counted_days(tx: Executor, org_id: UUID, of: Question) -> list[date]:
    first, last = of.start.astimezone(UTC).date(), of.end.astimezone(UTC).date()
    rows = await tx.fetch(_COUNTED_DAYS, org_id, of.kinds, first, last)
    return [row["day"] for row in rows]


# An hour that has numbers and no raw events any more cannot be cut.
_NOT_KEPT = """
SELECT EXISTS (
    SELECT FROM unnest($3::timestamptz[]) AS p (at)
    JOIN stats_hours h ON h.org_id = $1 AND h.kind = ANY ($2)
        AND h.hour = date_trunc('hour', p.at, 'UTC') AND h.events > 0
    WHERE NOT EXISTS (
        SELECT FROM events e
        WHERE e.org_id = $1 AND e.kind = h.kind AND e.occurred_at >= h.hour
          AND e.occurred_at < h.hour + interval '1 hour'
    )
)
"""


async def lacks_raw(tx: Executor, org_id: UUID, of: Question, cut: Pieces, now: datetime) -> bool:
    old = [start for _, start, _ in cut.raw if start < now - RAW_CERTAIN]
    return bool(old) and bool(await tx.fetchval(_NOT_KEPT, org_id, of.kinds, old))


# The rows of all pieces: (bucket, what a row of the numbers holds). OFFSET 0 keeps the planner to
# one index look-up a piece, where it would rather read all that the organisation ever had.
_PARTS = """
WITH parts AS (
    SELECT p.bucket, r.kind, r.agent_id, r.outcome, r.quantity, r.measured, r.duration_us,
           r.bins, r.bin_counts
    FROM unnest($4::integer[], $5::date[]) AS p (bucket, day)
    CROSS JOIN LATERAL (
        SELECT kind, agent_id, outcome, quantity, measured, duration_us, bins, bin_counts
        FROM stats_daily WHERE org_id = $1 AND kind = ANY ($2) AND level = $3 AND day = p.day
        OFFSET 0
    ) r
    UNION ALL
    SELECT p.bucket, r.kind, r.agent_id, r.outcome, r.quantity, r.measured, r.duration_us,
           r.bins, r.bin_counts
    FROM unnest($6::integer[], $7::timestamptz[], $8::timestamptz[]) AS p (bucket, start, stop)
    CROSS JOIN LATERAL (
        SELECT kind, agent_id, outcome, quantity, measured, duration_us, bins, bin_counts
        FROM stats_hourly
        WHERE org_id = $1 AND kind = ANY ($2) AND level = $3 AND hour >= p.start AND hour < p.stop
        OFFSET 0
    ) r
    UNION ALL
    SELECT p.bucket, e.kind, coalesce(e.agent_id, uuid '00000000-0000-0000-0000-000000000000'),
           e.outcome, e.quantity, (e.duration_us IS NOT NULL)::integer, e.duration_us,
           ARRAY[stats_bin(e.duration_us)], ARRAY[(e.duration_us IS NOT NULL)::integer::bigint]
    FROM unnest($9::integer[], $10::timestamptz[], $11::timestamptz[]) AS p (bucket, start, stop)
    CROSS JOIN LATERAL (
        SELECT kind, agent_id, outcome, quantity, duration_us FROM events
        WHERE org_id = $1 AND kind = ANY ($2) AND occurred_at >= p.start AND occurred_at < p.stop
          AND occurred_on >= (p.start AT TIME ZONE 'UTC')::date
          AND occurred_on <= (p.stop AT TIME ZONE 'UTC')::date
        OFFSET 0
    ) e
), keyed AS (
    SELECT p.bucket, CASE WHEN $12 THEN p.agent_id END AS key_agent,
           CASE WHEN $13 THEN p.outcome END AS key_outcome, p.kind, p.agent_id, p.outcome,
           p.quantity, p.measured, p.duration_us, p.bins, p.bin_counts
    FROM parts p
    WHERE (cardinality($14::uuid[]) = 0 OR p.agent_id = ANY ($14))
      AND (cardinality($15::text[]) = 0 OR p.outcome = ANY ($15))
)
"""
_GROUPS = (
    _PARTS
    + """
SELECT key_agent, key_outcome, sum(quantity)::bigint AS total, count(*) OVER () AS groups
FROM keyed GROUP BY key_agent, key_outcome
ORDER BY total DESC, key_agent, key_outcome LIMIT $16
"""
)
_CHOSEN = """
WHERE (
    NOT $16 OR (key_agent, key_outcome) IN (
        SELECT c.agent_id, c.outcome FROM unnest($17::uuid[], $18::text[]) AS c (agent_id, outcome)
    ) OR (NOT $12 AND key_outcome = ANY ($18)) OR (NOT $13 AND key_agent = ANY ($17))
)
"""
_SUMS = (
    _PARTS
    + """
SELECT bucket, key_agent, key_outcome, kind, outcome, sum(quantity)::bigint AS quantity,
       sum(measured)::bigint AS measured, coalesce(sum(duration_us), 0)::float8 AS duration_us
FROM keyed
"""
    + _CHOSEN
    + "GROUP BY bucket, key_agent, key_outcome, kind, outcome"
)
_DURATIONS = (
    _PARTS  # noqa: S608 - made of constants
    + """
SELECT bucket, key_agent, key_outcome, array_agg(bin) AS bins, array_agg(n) AS counts
FROM (
    SELECT bucket, key_agent, key_outcome, b.bin, sum(b.n)::bigint AS n
    FROM keyed, unnest(bins, bin_counts) AS b (bin, n)
"""
    + _CHOSEN
    + """ AND b.bin IS NOT NULL
    GROUP BY bucket, key_agent, key_outcome, b.bin
) AS binned
GROUP BY bucket, key_agent, key_outcome
"""
)
_AGENTS = (
    _PARTS
    + """
SELECT bucket, key_agent, key_outcome, kind, count(DISTINCT agent_id) AS agents
FROM keyed
"""
    + _CHOSEN
    + """ AND agent_id <> uuid '00000000-0000-0000-0000-000000000000'
    AND (kind <> 'SIGN_IN' OR outcome = 'ok')
GROUP BY bucket, key_agent, key_outcome, kind
"""
)


async def groups(
    tx: Executor, org_id: UUID, of: Question, cut: Pieces, limit: int
) -> tuple[list[Key], int]:
    """The largest groups, and how many there are."""
    rows = await tx.fetch(_GROUPS, *_arguments(org_id, of, cut, of.level), limit)
    keys = [Key(row["key_agent"], row["key_outcome"]) for row in rows]
    return keys, rows[0]["groups"] if rows else 0


Answer = dict[tuple[int, Key], Totals]


async def totals(
    tx: Executor, org_id: UUID, of: Question, cut: Pieces, chosen: Sequence[Key] | None
) -> Answer:
    """By number of bucket and group, of all groups without `chosen`; what is missing is zero."""
    found: Answer = {}
    some = chosen or ()
    choice = (
        of.grouped and chosen is not None,
        [key.agent_id for key in some],
        [key.outcome for key in some],
    )
    here = _arguments(org_id, of, cut, of.level)
    for row in await tx.fetch(_SUMS, *here, *choice):
        sums = _at(found, row["bucket"], row["key_agent"], row["key_outcome"])
        sums.add(row["kind"], row["outcome"], row["quantity"])
        sums.measured += row["measured"]
        sums.duration_us += round(row["duration_us"])
    if of.wants_durations:
        for row in await tx.fetch(_DURATIONS, *here, *choice):
            sums = _at(found, row["bucket"], row["key_agent"], row["key_outcome"])
            sums.durations.add(row["bins"], row["counts"])
    if of.wants_agents:
        by_agent = _arguments(org_id, of, cut, "AGENT")
        for row in await tx.fetch(_AGENTS, *by_agent, *choice):
            sums = _at(found, row["bucket"], row["key_agent"], row["key_outcome"])
            sums.agents[row["kind"]] = row["agents"]
    return found


def _at(found: Answer, bucket: int, agent_id: UUID | None, outcome: str | None) -> Totals:
    return found.setdefault((bucket, Key(agent_id, outcome)), Totals())


def _arguments(org_id: UUID, of: Question, cut: Pieces, level: str) -> tuple[object, ...]:
    return (
        org_id,
        of.kinds,
        level,
        [number for number, _ in cut.days],
        [day for _, day in cut.days],
        [number for number, _, _ in cut.hours],
        [start for _, start, _ in cut.hours],
        [stop for _, _, stop in cut.hours],
        [number for number, _, _ in cut.raw],
        [start for _, start, _ in cut.raw],
        [stop for _, _, stop in cut.raw],
        of.by_agent,
        of.by_outcome,
        of.agents,
        of.outcomes,
    )


_FINALITY = """
SELECT now() AS now, d.oldest_mark, d.hours_pending, h.revision, h.late_events
FROM (
    SELECT min(marked_at) AS oldest_mark, count(DISTINCT hour) AS hours_pending FROM stats_dirty
    WHERE org_id = $1 AND kind = ANY ($2) AND hour >= $3 AND hour < $4
) AS d, (
    SELECT coalesce(sum(revision), 0)::bigint AS revision,
           coalesce(sum(events - coalesce(first_events, events)), 0)::bigint AS late_events
    FROM stats_hours WHERE org_id = $1 AND kind = ANY ($2) AND hour >= $3 AND hour < $4
) AS h
"""


async def finality(tx: Executor, org_id: UUID, of: Question) -> Finality:
    first = rules.floor_hour(of.start)
    row = await tx.fetchrow(_FINALITY, org_id, of.kinds, first, of.end)
    assert row is not None
    return rules.finality(
        of.end,
        now=row["now"],
        oldest_mark=row["oldest_mark"],
        hours_pending=row["hours_pending"],
        revision=row["revision"],
        late_events=row["late_events"],
    )


_NAMES = """
SELECT user_id AS agent_id, display_name FROM users WHERE org_id = $1 AND user_id = ANY ($2)
UNION ALL
SELECT key_id, display_name FROM api_keys WHERE org_id = $1 AND key_id = ANY ($2)
"""


async def names(tx: Executor, org_id: UUID, agents: Sequence[UUID]) -> dict[UUID, str]:
    if not agents:
        return {}
    return {r["agent_id"]: r["display_name"] for r in await tx.fetch(_NAMES, org_id, agents)}
