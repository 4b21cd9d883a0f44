"""What clients see of metrics, series and overviews."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from trunkline.api.errors.v1 import item_error_pb2
from trunkline.api.stats.v1 import stats_service_pb2 as pb
from trunkline_server import facts
from trunkline_server.stats import rules
from trunkline_server.stats.queries import NOBODY, Answer, Key
from trunkline_server.stats.record import Problem
from trunkline_server.stats.rules import Bucket, Finality, Metric, Totals, Value

# A spreadsheet takes cells that begin so for formulas.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_EMPTY = Totals()
_INTERVALS = (pb.INTERVAL_HOUR, pb.INTERVAL_DAY, pb.INTERVAL_MONTH)


def timestamp(at: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(at)
    return made


def problem(of: Problem, offset: int = 0) -> pb.EventProblem:
    error = of.error
    return pb.EventProblem(
        index=of.index + offset,
        event_id=of.event_id,
        error=item_error_pb2.ItemError(
            code=error.code.value[0],
            reason=error.reason,
            message=error.message,
            fields=[
                item_error_pb2.FieldError(field=v.field, description=v.description)
                for v in error.violations
            ],
        ),
    )


def finality(of: Finality) -> pb.Finality:
    return pb.Finality(
        as_of=timestamp(of.as_of),
        late_events=of.late_events,
        revision=of.revision,
        final_after=timestamp(of.final_after),
        is_final=of.is_final,
        hours_pending=of.hours_pending,
    )


def metric(of: Metric) -> pb.Metric:
    return pb.Metric(
        metric=of.name,
        description=of.description,
        values=[
            pb.MetricValue(name=v.name, unit=v.unit, description=v.description) for v in of.values
        ],
        dimensions=list(of.dimensions),
        intervals=_INTERVALS,
    )


def _group_value(key: Key, column: str) -> str:
    if column == "outcome":
        return key.outcome or ""
    return "" if key.agent_id in (None, NOBODY) else str(key.agent_id)


def group_keys(
    key: Key, dimensions: Mapping[str, str], names: Mapping[UUID, str]
) -> list[pb.GroupKey]:
    return [
        pb.GroupKey(
            dimension=dimension,
            value=_group_value(key, column),
            display_name=names.get(key.agent_id or NOBODY, "") if column == "agent_id" else "",
        )
        for dimension, column in dimensions.items()
    ]


def point(bucket: Bucket, totals: Totals, values: Sequence[Value]) -> pb.Point:
    return pb.Point(
        start_time=timestamp(bucket.start),
        end_time=timestamp(bucket.end),
        values=[pb.StatValue(value=value.of(totals)) for value in values],
    )


def series(
    key: Key,
    keys: Sequence[pb.GroupKey],
    buckets: Sequence[Bucket],
    answer: Answer,
    values: Sequence[Value],
) -> pb.Series:
    return pb.Series(
        keys=keys,
        points=[
            point(bucket, answer.get((number, key), _EMPTY), values)
            for number, bucket in enumerate(buckets)
        ],
    )


def csv_rows(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows([_cell(cell) for cell in row] for row in rows)
    return text.getvalue().encode()


def csv_row(
    key: Key, dimensions: Mapping[str, str], bucket: Bucket, totals: Totals, values: Sequence[Value]
) -> list[object]:
    return [
        bucket.start.isoformat(),
        bucket.end.isoformat(),
        *(_group_value(key, column) for column in dimensions.values()),
        *(value.of(totals) for value in values),
    ]


def _cell(content: object) -> object:
    if content is None:
        return ""
    if isinstance(content, float):
        return f"{content:.6g}" if content % 1 else f"{content:.0f}"
    if isinstance(content, str) and content.startswith(_FORMULA):
        return f"'{content}"
    return content


def overview(bucket: Bucket, totals: Totals, how_final: Finality) -> pb.Overview:
    return pb.Overview(
        start_time=timestamp(bucket.start),
        end_time=timestamp(bucket.end),
        calls=_calls(totals),
        validations=_validations(totals),
        imports=_imports(totals),
        content=_content(totals),
        sign_ins=pb.SignInFigures(
            count=totals.ended("SIGN_IN", facts.SIGN_IN_OK),
            failed=totals.ended("SIGN_IN", facts.SIGN_IN_FAILED),
            users=totals.agents.get("SIGN_IN", 0),
        ),
        finality=finality(how_final),
    )


def _calls(totals: Totals) -> pb.CallFigures:
    return pb.CallFigures(
        count=totals.of("CALL"),
        handle_seconds_p50=totals.durations.quantile_s(0.5),
        handle_seconds_p90=totals.durations.quantile_s(0.9),
        handle_seconds_p99=totals.durations.quantile_s(0.99),
        by_outcome=totals.by_outcome("CALL"),
        active_agents=totals.agents.get("CALL", 0),
    )


def _validations(totals: Totals) -> pb.ValidationFigures:
    count = totals.of("VALIDATION")
    return pb.ValidationFigures(
        count=count,
        by_decision=totals.by_outcome("VALIDATION"),
        eligible_ratio=rules.ratio(totals.ended("VALIDATION", "ELIGIBLE"), count),
    )


def _imports(totals: Totals) -> pb.ImportFigures:
    accepted, rejected = totals.ended("IMPORT_ROWS", facts.ROWS_ACCEPTED), totals.rows_rejected
    by_code = totals.by_outcome("IMPORT_ROWS")
    return pb.ImportFigures(
        imports=by_code.pop(facts.IMPORT_ENDED, 0),
        rows_accepted=by_code.pop(facts.ROWS_ACCEPTED, 0),
        rows_rejected=rejected,
        rejected_ratio=rules.ratio(rejected, accepted + rejected),
        rejected_by_code=by_code,
    )


def _content(totals: Totals) -> pb.ContentFigures:
    searches = totals.of("ARTICLE_SEARCH")
    misses = totals.ended("ARTICLE_SEARCH", facts.SEARCH_MISS)
    return pb.ContentFigures(
        views=totals.of("ARTICLE_VIEW"),
        searches=searches,
        misses=misses,
        miss_ratio=rules.ratio(misses, searches),
        helpful_votes=totals.ended("ARTICLE_VOTE", facts.VOTE_HELPFUL),
        not_helpful_votes=totals.ended("ARTICLE_VOTE", facts.VOTE_NOT_HELPFUL),
    )
