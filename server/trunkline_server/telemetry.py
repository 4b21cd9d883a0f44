"""OpenTelemetry set-up: traces and metrics over OTLP, metrics for Prometheus, loop lag.

Everything that talks to a collector lives in threads of its own behind bounded queues and short
time-outs, so a dead collector costs lost telemetry and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import (
    MetricExportResult,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind, Tracer
from prometheus_client import CollectorRegistry, make_wsgi_app

from trunkline_server import tracing
from trunkline_server.metrics import Callback, MethodMeter, PrometheusView, Registry
from trunkline_server.traceparent import parent
from trunkline_server.tracing import Span

SPAN_QUEUE_MAX = 2048
SPAN_BATCH_MAX = 256
SPAN_DELAY_S = 2.0
EXPORT_TIMEOUT_S = 5.0
POINTS_PER_EXPORT_MAX = 5_000  # a point is some 300 bytes: far below the collector's 4 MiB
SCRAPE_TIMEOUT_S = 5.0
LAG_INTERVAL_S = 0.05
LAG_SAMPLES = 600  # the last half minute

_SCOPE: Final = "trunkline_server"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TelemetrySettings:
    service: str
    version: str
    otlp_endpoint: str | None = None  # http://host:4317, or https:// for TLS
    trace_ratio: float = 0.01
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None  # None: no endpoint; 0: any free port
    export_interval_s: float = 15.0


class Telemetry:
    """One per process. `rpc` and `start_span` are for the hot path; the rest is set-up."""

    def __init__(self, settings: TelemetrySettings) -> None:
        resource = Resource.create(
            {
                "service.name": settings.service,
                "service.version": settings.version,
                "service.instance.id": str(uuid.uuid4()),
                "process.pid": os.getpid(),
            }
        )
        self.registry = Registry()
        self.lag = LoopLag()
        self._sampler = tracing.Sampler(settings.trace_ratio)
        self._spans: OTLPSpanExporter | None = None
        self._provider: TracerProvider | None = None
        self._tracer: Tracer | None = None
        self._push: _Push | None = None
        self._scrape: _Scrape | None = None
        if settings.otlp_endpoint:
            self._spans = OTLPSpanExporter(
                endpoint=settings.otlp_endpoint, timeout=EXPORT_TIMEOUT_S
            )
            self._provider = _provider(resource, self._spans)
            self._tracer = self._provider.get_tracer(_SCOPE, settings.version)
            self._push = _Push(self.registry, resource, settings)
        if settings.metrics_port is not None:
            self._scrape = _Scrape(self.registry, settings.metrics_host, settings.metrics_port)
        self._own_instruments()

    @property
    def metrics_port(self) -> int | None:
        """The port that Prometheus scrapes, once known."""
        return self._scrape.port if self._scrape else None

    def rpc(self, method: str) -> MethodMeter:
        return self.registry.rpc(method)

    def gauge(self, name: str, callback: Callback, unit: str = "1", description: str = "") -> None:
        self.registry.add("gauge", name, callback, unit, description)

    def counter(
        self, name: str, callback: Callback, unit: str = "1", description: str = ""
    ) -> None:
        """`callback` answers the total since the process started; it never falls."""
        self.registry.add("counter", name, callback, unit, description)

    def start_span(
        self,
        name: str,
        traceparent: str | bytes | None = None,
        kind: SpanKind = SpanKind.SERVER,
    ) -> Span | None:
        tracer = self._tracer
        if tracer is None:
            return None
        if traceparent is None:
            return tracing.start(tracer, name, None, kind) if self._sampler.root() else None
        remote = parent(traceparent)
        wanted = self._sampler.follow(remote) if remote else self._sampler.root()
        return tracing.start(tracer, name, remote, kind) if wanted else None

    def start(self) -> None:
        """Begin exporting and watching the running loop."""
        self.lag.start(asyncio.get_running_loop())
        if self._push:
            self._push.start()
        if self._scrape:
            self._scrape.start()

    async def close(self, timeout_s: float = 3.0) -> None:
        """Flush what can be flushed in time. Threads that hang on a dead collector are daemons."""
        self.lag.stop()
        loop, flushed = asyncio.get_running_loop(), asyncio.Event()

        def work() -> None:
            self._close(timeout_s)
            # The loop may be gone when a dead collector held us longer than it waited.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(flushed.set)

        threading.Thread(target=work, name="telemetry-close", daemon=True).start()
        try:
            await asyncio.wait_for(flushed.wait(), timeout_s)
        except TimeoutError:
            self._abandon()

    def _close(self, timeout_s: float) -> None:
        if self._push:
            self._push.close(timeout_s)
        if self._provider:
            self._provider.shutdown()
        if self._scrape:
            self._scrape.close()

    def _abandon(self) -> None:
        """Cut the exports off that wait for a collector which does not answer."""
        if self._push:
            self._push.abandon()
        if self._spans:
            self._spans.shutdown()

    def _own_instruments(self) -> None:
        self.gauge(
            "trunkline.loop.lag.p99",
            lambda: self.lag.p99_s,
            "s",
            "How late the event loop runs what is due, 99th percentile of the last half minute.",
        )
        self.gauge("trunkline.loop.lag.max", lambda: self.lag.max_s, "s", "The same, the worst.")
        self.counter(
            "trunkline.trace.forced_refused",
            lambda: self._sampler.forced_refused,
            "{call}",
            "Calls marked as sampled by their caller above the rate that is honoured.",
        )
        self.counter(
            "trunkline.telemetry.callback_failures",
            lambda: self.registry.callback_failures,
            "{failure}",
            "Metric callbacks that raised or used a label that is not allowed.",
        )
        if self._push:
            self.counter(
                "trunkline.telemetry.export_failures",
                lambda: self._push.failures if self._push else 0,
                "{export}",
                "Metric exports that the collector did not take.",
            )


def set_up(settings: TelemetrySettings) -> Telemetry:
    return Telemetry(settings)


def _provider(resource: Resource, exporter: OTLPSpanExporter) -> TracerProvider:
    provider = TracerProvider(
        sampler=ALWAYS_ON,  # Telemetry.start_span has decided before the SDK is asked
        resource=resource,
        shutdown_on_exit=False,
        span_limits=SpanLimits(
            max_attributes=32,
            max_events=16,
            max_links=4,
            max_attribute_length=tracing.ATTRIBUTE_CHARS_MAX,
        ),
    )
    provider.add_span_processor(
        BatchSpanProcessor(
            exporter,
            max_queue_size=SPAN_QUEUE_MAX,
            max_export_batch_size=SPAN_BATCH_MAX,
            schedule_delay_millis=SPAN_DELAY_S * 1000,
            export_timeout_millis=EXPORT_TIMEOUT_S * 1000,
        )
    )
    return provider


class _Push(threading.Thread):
    """Sends the registry to the collector at an interval."""

    def __init__(self, registry: Registry, resource: Resource, settings: TelemetrySettings) -> None:
        super().__init__(name="metrics-push", daemon=True)
        self._registry = registry
        self._resource = resource
        self._scope = InstrumentationScope(_SCOPE, settings.version)
        self._interval_s = settings.export_interval_s
        self._exporter = OTLPMetricExporter(
            endpoint=settings.otlp_endpoint,
            timeout=EXPORT_TIMEOUT_S,
            max_export_batch_size=POINTS_PER_EXPORT_MAX,
        )
        self._closing = threading.Event()
        self.failures = 0

    def run(self) -> None:
        while not self._closing.wait(self._interval_s):
            self._export()
        self._export()

    def close(self, timeout_s: float) -> None:
        self._closing.set()
        if self.is_alive():
            self.join(timeout_s)
        self.abandon()

    def abandon(self) -> None:
        self._exporter.shutdown(timeout_millis=0)

    def _export(self) -> None:
        scope = ScopeMetrics(self._scope, self._registry.collect(), "")
        batch = MetricsData([ResourceMetrics(self._resource, [scope], "")])
        try:
            result = self._exporter.export(batch)
        except Exception:
            _log.warning("metrics export failed", exc_info=True)
            result = MetricExportResult.FAILURE
        if result is not MetricExportResult.SUCCESS:
            self.failures += 1


class _QuietHandler(WSGIRequestHandler):
    timeout = SCRAPE_TIMEOUT_S  # a scraper that stalls must not hold the only thread

    def log_message(self, format: str, *args: Any) -> None:
        """A scrape is not news."""


class _Server(WSGIServer):
    allow_reuse_port = True  # in a rolling restart the old process still holds the slot's port


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Scrape(threading.Thread):
    """Prometheus' endpoint. One thread, one scrape at a time; it answers while the loop hangs."""

    def __init__(self, registry: Registry, host: str, port: int) -> None:
        super().__init__(name="metrics-scrape", daemon=True)
        prometheus = CollectorRegistry(auto_describe=False)
        prometheus.register(PrometheusView(registry))
        self._server = make_server(
            host,
            port,
            make_wsgi_app(prometheus),
            server_class=_Server6 if _is_ipv6(host) else _Server,
            handler_class=_QuietHandler,
        )
        self.port = self._server.server_port

    def run(self) -> None:
        self._server.serve_forever(poll_interval=0.2)

    def close(self) -> None:
        if self.is_alive():
            self._server.shutdown()
        self._server.server_close()


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


class LoopLag:
    """Measures how late a timer fires: what the loop's other work costs everyone who waits."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=LAG_SAMPLES)
        self._handle: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due = 0.0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self.stop()
        self._loop = loop
        self._schedule()

    def stop(self) -> None:
        if self._handle:
            self._handle.cancel()
            self._handle = None

    @property
    def p99_s(self) -> float:
        ordered = sorted(self._samples.copy())
        return ordered[int(len(ordered) * 0.99)] if ordered else 0.0

    @property
    def max_s(self) -> float:
        return max(self._samples.copy(), default=0.0)

    def _schedule(self) -> None:
        assert self._loop is not None
        self._due = time.perf_counter() + LAG_INTERVAL_S
        self._handle = self._loop.call_later(LAG_INTERVAL_S, self._tick)

    def _tick(self) -> None:
        self._samples.append(max(0.0, time.perf_counter() - self._due))
        self._schedule()
