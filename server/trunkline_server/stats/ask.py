"""Questions: from what a caller asks to what the statements need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import assert_never
from uuid import UUID
from zoneinfo import ZoneInfo

from google.protobuf.timestamp_pb2 import Timestamp

from trunkline.api.stats.v1 import stats_service_pb2 as pb
from trunkline_server.db import Executor
from trunkline_server.errors import FieldViolation
from trunkline_server.stats import present, queries, rules
from trunkline_server.stats.errors import (
    DimensionUnknown,
    FilterInvalid,
    MetricUnknown,
    RangeInvalid,
    RangeNotKept,
    TooManyBuckets,
    ValueUnknown,
)
from trunkline_server.stats.queries import NOBODY, Key, Question
from trunkline_server.stats.rules import Interval, Metric, Pieces, Totals, Value

YEARS = range(1970, 2200)
# Filters that no event passes.
_NO_AGENT = UUID(int=(1 << 128) - 1)
_NO_OUTCOME = "-" * 65


@dataclass(frozen=True, slots=True)
class Plan:
    question: Question
    metric: Metric
    values: Sequence[Value]
    dimensions: Mapping[str, str]  # those it is grouped by, in the caller's order
    zone: ZoneInfo
    max_groups: int


def plan(query: pb.StatsQuery, zone: ZoneInfo) -> Plan:
    metric = rules.METRICS.get(query.metric)
    if metric is None:
        raise MetricUnknown
    start, end = moment(query.from_time), moment(query.to_time)
    if start >= end:
        raise RangeInvalid
    interval = _interval(query.interval)
    made = rules.buckets(start, end, interval, zone) if end - start <= rules.RANGE_MAX else None
    if made is None:
        raise TooManyBuckets(
            f"At most {rules.BUCKETS_MAX} buckets and {rules.RANGE_MAX.days} days at a time."
        )
    values = _values(metric, query.values)
    dimensions = {name: _column(metric, name) for name in query.group_by}
    filters = _filters(metric, query.filters)
    question = Question(
        kinds=metric.kinds,
        buckets=made,
        by_agent="agent_id" in dimensions.values(),
        by_outcome="outcome" in dimensions.values(),
        agents=_agents(filters.get("agent_id")),
        outcomes=_outcomes(filters.get("outcome")),
        wants_durations=any(value.needs_durations for value in values),
        wants_agents=any(value.needs_agents for value in values),
    )
    return Plan(question, metric, values, dimensions, zone, query.max_groups)


def moment(at: Timestamp) -> datetime:
    found = at.ToDatetime(tzinfo=UTC)
    if found.year not in YEARS:
        raise RangeInvalid
    return found


def _interval(asked: pb.Interval.ValueType) -> Interval:
    match asked:
        case pb.INTERVAL_UNSPECIFIED:
            return Interval.WHOLE
        case pb.INTERVAL_HOUR:
            return Interval.HOUR
        case pb.INTERVAL_DAY:
            return Interval.DAY
        case pb.INTERVAL_MONTH:
            return Interval.MONTH
        case _:
            assert_never(asked)  # type: ignore[arg-type]


def _values(metric: Metric, names: Sequence[str]) -> Sequence[Value]:
    known = {value.name: value for value in metric.values}
    if not set(names) <= set(known):
        raise ValueUnknown(violations=[FieldViolation("query.values", ValueUnknown.text)])
    return [known[name] for name in names] or metric.values


def _column(metric: Metric, dimension: str) -> str:
    if dimension not in metric.dimensions:
        raise DimensionUnknown
    return metric.dimensions[dimension]


def _filters(metric: Metric, filters: Iterable[pb.DimensionFilter]) -> dict[str, set[str]]:
    """By column; several filters of one dimension must all hold."""
    found: dict[str, set[str]] = {}
    for each in filters:
        column, values = _column(metric, each.dimension), set(each.values)
        found[column] = found[column] & values if column in found else values
    return found


def _agents(values: set[str] | None) -> list[UUID]:
    if values is None:
        return []
    try:
        return [UUID(value) if value else NOBODY for value in values] or [_NO_AGENT]
    except ValueError:
        raise FilterInvalid(
            violations=[FieldViolation("query.filters", FilterInvalid.text)]
        ) from None


def _outcomes(values: set[str] | None) -> list[str]:
    return [] if values is None else sorted(values) or [_NO_OUTCOME]


async def cut(tx: Executor, org_id: UUID, question: Question) -> Pieces:
    pieces = rules.pieces(question.buckets, await queries.counted_days(tx, org_id, question))
    if await queries.lacks_raw(tx, org_id, question, pieces, datetime.now(UTC)):
        raise RangeNotKept
    return pieces


async def chosen(tx: Executor, org_id: UUID, of: Plan) -> tuple[Sequence[Key], int]:
    """The groups to return and how many there are; one without grouping."""
    if not of.question.grouped:
        return [Key()], 1
    limit = rules.groups_limit(of.max_groups, len(of.question.buckets))
    whole = of.question.as_one()
    return await queries.groups(tx, org_id, whole, await cut(tx, org_id, whole), limit)


async def count_groups(tx: Executor, org_id: UUID, of: Plan) -> int:
    if not of.question.grouped:
        return 1
    whole = of.question.as_one()
    return (await queries.groups(tx, org_id, whole, await cut(tx, org_id, whole), 1))[1]


async def export_rows(tx: Executor, org_id: UUID, of: Plan, part: Question) -> list[list[object]]:
    """Of groups, those that have something in the bucket; without grouping, every bucket."""
    pieces = await cut(tx, org_id, part)
    found = await queries.totals(tx, org_id, part, pieces, None)
    if not part.grouped:
        for number in range(len(part.buckets)):
            found.setdefault((number, Key()), Totals())
    return [
        present.csv_row(key, of.dimensions, part.buckets[number], totals, of.values)
        for (number, key), totals in sorted(found.items(), key=_by_place)
    ]


def _by_place(item: tuple[tuple[int, Key], Totals]) -> tuple[int, str, str]:
    (number, key), _ = item
    return number, str(key.agent_id), key.outcome or ""


def numbers(overview: pb.Overview) -> bytes:
    """What makes two overviews the same: all but the times, which always move on."""
    compared = pb.Overview()
    compared.CopyFrom(overview)
    for name in ("end_time", "finality"):
        compared.ClearField(name)
    compared.finality.revision = overview.finality.revision
    compared.finality.late_events = overview.finality.late_events
    return compared.SerializeToString(deterministic=True)


def counts(statuses: Iterable[pb.EventStatus.ValueType]) -> pb.EventCounts:
    found = Counter(statuses)
    return pb.EventCounts(
        recorded=found[pb.EVENT_STATUS_RECORDED],
        duplicates=found[pb.EVENT_STATUS_DUPLICATE],
        conflicts=found[pb.EVENT_STATUS_CONFLICT],
        refused=found[pb.EVENT_STATUS_REFUSED],
    )
