"""Judges events one by one, at the price of judging them together.

A batch in which nothing is wrong, as nearly all are, is checked by columns; only one that fails is
looked at event by event, with the contract's own rules, to say what is wrong with which.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from protovalidate import Validator, Violation

from trunkline.api.stats.v1 import stats_service_pb2 as pb
from trunkline_server.errors import AppError, FieldViolation
from trunkline_server.facts import Columns
from trunkline_server.rpc.caller import Caller, Role
from trunkline_server.stats import rules
from trunkline_server.stats.errors import (
    EventConflict,
    EventInvalid,
    EventKindNotAllowed,
    EventOfAnotherAgent,
    EventTooNew,
    EventTooOld,
)

DURATION_S_MAX = 604_800
QUANTITY_MAX = 1_000_000_000
VIOLATIONS_MAX = 10
_US = 1_000_000
_CALL = pb.EVENT_KIND_CALL
_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_UUIDS = re.compile(f"(?:{_UUID}\n)++")
_OUTCOME = re.compile(r"[A-Za-z0-9_.-]{0,64}")

# Everything of an event that a repeat must match: all but its id.
_Content = tuple[int, str | UUID | None, int | None, str, int, str | None]


@dataclass(frozen=True, slots=True)
class Problem:
    index: int
    event_id: str
    error: AppError


@dataclass(slots=True)
class Batch:
    """What is to be inserted, in the order of ids, and what is known of the rest."""

    statuses: list[pb.EventStatus.ValueType]
    columns: Columns
    # Row of the columns -> place in the batch.
    places: Sequence[int]
    problems: list[Problem] = field(default_factory=list)
    # Place -> place of the first event with the same id.
    repeats: dict[int, int] = field(default_factory=dict)

    def row_ids(self) -> Sequence[str]:
        return self.columns.event_ids  # type: ignore[return-value]

    def settle(self, new: set[str] | None, conflicting: set[str]) -> None:
        """After the insert: which were new, and which others have another content there."""
        if new is None or not (new or conflicting):
            recorded, duplicate = pb.EVENT_STATUS_RECORDED, pb.EVENT_STATUS_DUPLICATE
            same = recorded if new is None else duplicate
            for place in self.places:
                self.statuses[place] = same
        else:
            for event_id, place in zip(self.row_ids(), self.places, strict=True):
                if event_id in new:
                    self.statuses[place] = pb.EVENT_STATUS_RECORDED
                elif event_id in conflicting:
                    self.conflict(place, event_id)
                else:
                    self.statuses[place] = pb.EVENT_STATUS_DUPLICATE
        self._settle_repeats()

    def conflict(self, place: int, event_id: str) -> None:
        self.statuses[place] = pb.EVENT_STATUS_CONFLICT
        self.problems.append(Problem(place, event_id, EventConflict()))

    def _settle_repeats(self) -> None:
        """Within a batch: the same again has been recorded; another content is in conflict."""
        for place, first in self.repeats.items():
            if self.statuses[first] == pb.EVENT_STATUS_RECORDED:
                self.statuses[place] = pb.EVENT_STATUS_DUPLICATE
            else:
                self.statuses[place] = self.statuses[first]


class Judge:
    def __init__(self) -> None:
        self._collect = Validator().collect_violations

    def batch(self, events: Sequence[pb.Event], who: Caller, now: datetime) -> Batch:
        return _sound(events, who, now) or self._examined(events, who, now)

    def _examined(self, events: Sequence[pb.Event], who: Caller, now: datetime) -> Batch:
        statuses = [pb.EVENT_STATUS_UNSPECIFIED] * len(events)
        batch = Batch(statuses, _no_columns(), ())
        first: dict[str, tuple[int, _Content]] = {}
        for place, event in enumerate(events):
            error = self._error(event, who, now)
            event_id = event.event_id.lower()
            if error is not None:
                statuses[place] = pb.EVENT_STATUS_REFUSED
                batch.problems.append(Problem(place, event.event_id[:36], error))
            elif event_id not in first:
                first[event_id] = place, _content(event, who)
            elif first[event_id][1] == _content(event, who):
                batch.repeats[place] = first[event_id][0]
            else:
                batch.conflict(place, event_id)
        _fill(batch, first)
        return batch

    def _error(self, event: pb.Event, who: Caller, now: datetime) -> AppError | None:
        violations = self._collect(event)
        if violations:
            return EventInvalid(
                violations=[
                    FieldViolation(
                        ".".join(e.field_name for e in v.proto.field.elements)
                        if v.proto.field
                        else "",
                        v.proto.message or v.proto.rule_id,
                    )
                    for v in violations[:VIOLATIONS_MAX]
                ]
            )
        if event.kind != _CALL:
            return EventKindNotAllowed()
        occurred = event.occurred_at.ToDatetime(tzinfo=now.tzinfo)
        if rules.too_old(occurred, now):
            return EventTooOld()
        if rules.too_new(occurred, now):
            return EventTooNew()
        if who.role is Role.AGENT and event.agent_id.lower() not in ("", who.actor_key):
            return EventOfAnotherAgent()
        return None


def _sound(events: Sequence[pb.Event], who: Caller, now: datetime) -> Batch | None:
    """The batch, if nothing at all is wrong with it; the same rules, a column at a time."""
    count = len(events)
    ids = [event.event_id for event in events]
    joined = "\n".join(ids).lower()
    if not _UUIDS.fullmatch(joined + "\n") or any(event.kind != _CALL for event in events):
        return None
    ids = joined.split("\n")
    if len(set(ids)) < count:
        return None
    times = [event.occurred_at for event in events]
    nanos = [at.nanos for at in times]
    occurred_us = [at.seconds * _US + at.nanos // 1000 for at in times]
    oldest, newest = _window(now)
    if min(occurred_us) < oldest or max(occurred_us) > newest or not _nanos(nanos):
        return None
    durations = [event.duration if event.HasField("duration") else None for event in events]
    durations_us = [None if d is None else d.seconds * _US + d.nanos // 1000 for d in durations]
    measured = [d for d in durations if d is not None]
    if measured and not (
        _nanos([d.nanos for d in measured])
        and min(d.seconds for d in measured) >= 0
        and max(d.seconds for d in measured) < DURATION_S_MAX
    ):
        return None
    outcomes = [event.outcome for event in events]
    if not all(_OUTCOME.fullmatch(outcome) for outcome in set(outcomes)):
        return None
    quantities = [event.quantity or 1 for event in events]
    if min(quantities) < 0 or max(quantities) > QUANTITY_MAX:
        return None
    if any(event.attributes for event in events):
        return None
    agents = _agents([event.agent_id for event in events], who)
    if agents is None:
        return None
    columns = Columns(
        ids, ["CALL"], occurred_us, agents, durations_us, outcomes, quantities, []
    )  # fmt: skip
    statuses = [pb.EVENT_STATUS_UNSPECIFIED] * count
    places = sorted(range(count), key=ids.__getitem__)
    return Batch(statuses, _in_order(columns, places), places)


def _path(violation: Violation) -> str:
    """Without the keys of maps: those are the client's text."""
    field = violation.proto.field
    return ".".join(element.field_name for element in field.elements) if field else ""


def _window(now: datetime) -> tuple[int, int]:
    oldest, newest = now - rules.EVENT_AGE_MAX, now + rules.EVENT_AHEAD_MAX
    return int(oldest.timestamp() * _US) + 1, int(newest.timestamp() * _US)


def _nanos(nanos: Sequence[int]) -> bool:
    return min(nanos) >= 0 and max(nanos) < 1_000_000_000


def _agents(given: list[str], who: Caller) -> list[str] | None:
    """The caller where none is named; None when one is no id, or not the agent's own."""
    lower = {agent: agent.lower() or who.actor_key for agent in set(given)}
    if not _UUIDS.fullmatch("\n".join(lower.values()) + "\n"):
        return None
    if who.role is Role.AGENT and set(lower.values()) != {who.actor_key}:
        return None
    return [lower[agent] for agent in given]


def _in_order(columns: Columns, places: Sequence[int]) -> Columns:
    if all(row == place for row, place in enumerate(places)):
        return columns  # ids made in the order of time
    return Columns(
        event_ids=[columns.event_ids[place] for place in places],
        kinds=columns.kinds,
        occurred_us=[columns.occurred_us[place] for place in places],
        agent_ids=[columns.agent_ids[place] for place in places],
        durations_us=[columns.durations_us[place] for place in places],
        outcomes=[columns.outcomes[place] for place in places],
        quantities=[columns.quantities[place] for place in places],
        attributes=columns.attributes,
    )


def _content(event: pb.Event, who: Caller) -> _Content:
    attributes = dict(event.attributes)
    return (
        event.occurred_at.ToMicroseconds(),
        event.agent_id.lower() or who.actor_key,
        event.duration.ToMicroseconds() if event.HasField("duration") else None,
        event.outcome,
        event.quantity or 1,
        json.dumps(attributes, sort_keys=True) if attributes else None,
    )


def _no_columns() -> Columns:
    return Columns([], [], [], [], [], [], [], [])


def _fill(batch: Batch, first: dict[str, tuple[int, _Content]]) -> None:
    rows = sorted(first.items())
    batch.places = [place for _, (place, _) in rows]
    contents = [content for _, (_, content) in rows]
    batch.columns = Columns(
        event_ids=[event_id for event_id, _ in rows],
        kinds=["CALL"],
        occurred_us=[content[0] for content in contents],
        agent_ids=[content[1] for content in contents],
        durations_us=[content[2] for content in contents],
        outcomes=[content[3] for content in contents],
        quantities=[content[4] for content in contents],
        attributes=[c[5] for c in contents] if any(c[5] for c in contents) else [],
    )
