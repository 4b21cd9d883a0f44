"""The process's own instruments: cheap to write on the hot path, read by whoever exports them.

The SDK's `histogram.record` builds a context and an attribute set on each call. Here a record is
one bisect and two additions into a list that belongs to (method, code); the SDK's public data
classes are filled only when somebody collects.
"""

from __future__ import annotations

import logging
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import grpc
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    Sum,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as PrometheusFamily
from prometheus_client.registry import Collector

BOUNDS_S: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
_BUCKETS: Final = len(BOUNDS_S) + 1
_SUM: Final = _BUCKETS  # a row is the buckets, then the sum of seconds

SERIES_MAX = 200  # per callback: a label that grows without bound must not fill the process
LABEL_VALUE_CHARS_MAX = 240

# The only labels there are. None can hold a person's name, number, address or free text.
LABELS: Final = frozenset(
    {
        "breaker",
        "cache",
        "class",
        "db.query.id",
        "db.query.text",
        "feature",
        "kind",
        "lane",
        "link",
        "outcome",
        "partition",
        "pool",
        "priority",
        "queue",
        "reason",
        "rpc.method",
        "rpc.response.status_code",
        "rpc.system.name",
        "signal",
        "state",
        "table",
    }
)
# A value is a name that the program or the schema gave. Only normalised SQL may be more than that.
_NAME = re.compile(rf"[\w.:/$ -]{{0,{LABEL_VALUE_CHARS_MAX}}}\Z", re.ASCII)
_TEXT_LABELS: Final = frozenset({"db.query.text"})

Labels = Mapping[str, str]
Reading = float | Iterable[tuple[float, Labels]]
Callback = Callable[[], Reading]

_CODE_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}

_log = logging.getLogger(__name__)


def refusal(labels: Labels) -> str | None:
    """Why these labels may not leave the process; None when they may."""
    for key, value in labels.items():
        if key not in LABELS:
            return f"label {key!r} is not on the allow-list"
        if key in _TEXT_LABELS:
            if len(value) > LABEL_VALUE_CHARS_MAX:
                return f"value of label {key!r} is too long"
        elif _NAME.match(value) is None:
            return f"value of label {key!r} is not a name"
    return None


class MethodMeter:
    """Counts and durations of one RPC method. `record` belongs to the event loop's thread alone."""

    __slots__ = ("_rows", "method")

    def __init__(self, method: str) -> None:
        self.method = method
        self._rows: dict[int, list[float]] = {}

    def record(self, code: int, seconds: float) -> None:
        try:
            row = self._rows[code]
        except KeyError:
            row = self._rows[code] = [0] * (_BUCKETS + 1)
        row[bisect_left(BOUNDS_S, seconds)] += 1
        row[_SUM] += seconds

    def points(self, start_ns: int, now_ns: int) -> Iterator[HistogramDataPoint]:
        for code, live in list(self._rows.items()):
            row = list(live)  # one copy under the interpreter's lock: buckets and sum agree
            counts = [int(count) for count in row[:_BUCKETS]]
            yield HistogramDataPoint(
                attributes={
                    "rpc.system.name": "grpc",
                    "rpc.method": self.method,
                    "rpc.response.status_code": _CODE_NAMES.get(code, str(code)),
                },
                start_time_unix_nano=start_ns,
                time_unix_nano=now_ns,
                count=sum(counts),
                sum=row[_SUM],
                bucket_counts=counts,
                explicit_bounds=BOUNDS_S,
                # Optional on the wire: extremes of a cumulative histogram tell nothing.
                min=None,  # type: ignore[arg-type]
                max=None,  # type: ignore[arg-type]
            )


@dataclass(frozen=True, slots=True)
class _Instrument:
    name: str
    kind: Literal["gauge", "counter"]
    callback: Callback
    unit: str
    description: str


class Registry:
    """All instruments of one process, and the one way to read them."""

    def __init__(self) -> None:
        self._start_ns = time.time_ns()
        self._meters: dict[str, MethodMeter] = {}
        self._instruments: dict[str, _Instrument] = {}
        self._complained: set[str] = set()
        self.callback_failures = 0

    def rpc(self, method: str) -> MethodMeter:
        meter = self._meters.get(method)
        if meter is None:
            meter = self._meters[method] = MethodMeter(method)
        return meter

    def add(
        self,
        kind: Literal["gauge", "counter"],
        name: str,
        callback: Callback,
        unit: str,
        description: str,
    ) -> None:
        if name in self._instruments:
            raise ValueError(f"instrument {name} is registered twice")
        self._instruments[name] = _Instrument(name, kind, callback, unit, description)

    def collect(self) -> list[Metric]:
        now_ns = time.time_ns()
        metrics = [
            metric
            for instrument in list(self._instruments.values())
            if (metric := self._read(instrument, now_ns)) is not None
        ]
        points = [
            point
            for meter in list(self._meters.values())
            for point in meter.points(self._start_ns, now_ns)
        ]
        if points:
            metrics.append(
                Metric(
                    name="rpc.server.call.duration",
                    description="Duration of RPCs as the server sees them, by method and status.",
                    unit="s",
                    data=Histogram(points, AggregationTemporality.CUMULATIVE),
                )
            )
        return metrics

    def _read(self, instrument: _Instrument, now_ns: int) -> Metric | None:
        try:
            reading = instrument.callback()
            pairs = [(reading, {})] if isinstance(reading, int | float) else list(reading)
        except Exception:
            # One broken gauge must not cost the others their export.
            self.callback_failures += 1
            self._complain(instrument.name, "metric callback failed", exc_info=True)
            return None
        points = [
            NumberDataPoint(dict(labels), self._start_ns, now_ns, float(value))
            for value, labels in pairs[:SERIES_MAX]
            if self._allowed(instrument.name, labels)
        ]
        if not points:
            return None
        data: Gauge | Sum
        if instrument.kind == "gauge":
            data = Gauge(points)
        else:
            data = Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=True)
        return Metric(instrument.name, instrument.description, instrument.unit, data)

    def _allowed(self, name: str, labels: Labels) -> bool:
        why = refusal(labels)
        if why is not None:
            self.callback_failures += 1
            self._complain(name, "metric label refused")
        return why is None

    def _complain(self, name: str, message: str, *, exc_info: bool = False) -> None:
        # Once per instrument: a scrape every second must not fill the log.
        if name not in self._complained:
            self._complained.add(name)
            _log.error(message, extra={"metric": name}, exc_info=exc_info)


_PROMETHEUS_UNITS: Final = {"s": "seconds", "By": "bytes"}


class PrometheusView(Collector):
    """The same metrics in Prometheus' words."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[PrometheusFamily]:
        for metric in self._registry.collect():
            yield _family(metric)


def _family(metric: Metric) -> PrometheusFamily:
    name = metric.name.replace(".", "_")
    unit = _PROMETHEUS_UNITS.get(metric.unit or "", "")
    text = metric.description or metric.name
    keys = sorted({key for p in metric.data.data_points for key in p.attributes or ()})
    labels = [key.replace(".", "_") for key in keys]
    match metric.data:
        case Histogram(data_points=histogram_points):
            histogram = HistogramMetricFamily(name, text, labels=labels, unit=unit)
            for point in histogram_points:
                histogram.add_metric(_values(point.attributes, keys), _cumulative(point), point.sum)
            return histogram
        case Sum(data_points=number_points):
            counter = CounterMetricFamily(name, text, labels=labels, unit=unit)
            for number in number_points:
                counter.add_metric(_values(number.attributes, keys), number.value)
            return counter
        case Gauge(data_points=number_points):
            gauge = GaugeMetricFamily(name, text, labels=labels, unit=unit)
            for number in number_points:
                gauge.add_metric(_values(number.attributes, keys), number.value)
            return gauge
        case _:
            raise TypeError(f"{metric.name}: the registry makes no such metric")


def _values(attributes: Mapping[str, object] | None, keys: Sequence[str]) -> list[str]:
    known = attributes or {}
    return [str(known.get(key, "")) for key in keys]


def _cumulative(point: HistogramDataPoint) -> list[tuple[str, float]]:
    edges = [f"{bound:g}" for bound in point.explicit_bounds] + ["+Inf"]
    total = 0
    buckets: list[tuple[str, float]] = []
    for edge, count in zip(edges, point.bucket_counts, strict=True):
        total += count
        buckets.append((edge, total))
    return buckets
