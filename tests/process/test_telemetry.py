"""Metrics and traces as a collector and Prometheus see them, and what they cost."""

from __future__ import annotations

import asyncio
import random
import socket
import time
import timeit
import urllib.request
from bisect import bisect_left
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families

from tests.process.collector import collecting
from trunkline_server.metrics import BOUNDS_S, SERIES_MAX, Labels
from trunkline_server.telemetry import LAG_INTERVAL_S, LoopLag, Telemetry, TelemetrySettings
from trunkline_server.traceparent import parent
from trunkline_server.tracing import FORCED_SPANS_PER_S_MAX

METHOD = "/trunkline.api.members.v1.MemberService/GetMember"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
SAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-01"
UNSAMPLED = f"00-{TRACE_ID}-{SPAN_ID}-00"
NOBODY = "http://127.0.0.1:1"
CANARY = "Wilhelmina Canary"


@asynccontextmanager
async def telemetry_of(endpoint: str | None = None, **more: object) -> AsyncIterator[Telemetry]:
    settings = TelemetrySettings(
        service="trunkline-test",
        version="1.2.3",
        otlp_endpoint=endpoint,
        export_interval_s=0.05,
        **more,  # type: ignore[arg-type]
    )
    telemetry = Telemetry(settings)
    telemetry.start()
    yield telemetry
    await telemetry.close(0.1 if endpoint == NOBODY else 2.0)


async def scrape(telemetry: Telemetry) -> str:
    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{telemetry.metrics_port}/metrics") as answer:
            text: bytes = answer.read()
            return text.decode()

    return await asyncio.to_thread(read)


def observed(telemetry: Telemetry) -> list[float]:
    draw = random.Random(7)
    seconds = [draw.lognormvariate(-5, 2) for _ in range(1000)] + [*BOUNDS_S, 0.0, 100.0]
    meter = telemetry.rpc(METHOD)
    for each in seconds:
        meter.record(0, each)
    meter.record(5, 0.2)
    return seconds


async def test_prometheus_gets_a_true_histogram() -> None:
    async with telemetry_of(metrics_port=0) as telemetry:
        seconds = observed(telemetry)
        text = await scrape(telemetry)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = [
        sample
        for sample in families["rpc_server_call_duration_seconds"].samples
        if sample.labels["rpc_response_status_code"] == "OK"
    ]
    assert {sample.labels["rpc_method"] for sample in samples} == {METHOD}
    for sample in samples:
        if "le" in sample.labels:
            edge = float(sample.labels["le"])
            assert sample.value == sum(1 for each in seconds if each <= edge), edge
        elif sample.name.endswith("_count"):
            assert sample.value == len(seconds)
        else:
            assert sample.value == pytest.approx(sum(seconds))
    assert len(samples) == len(BOUNDS_S) + 3
    assert 'status_code="NOT_FOUND"' in text


async def test_the_collector_gets_the_same_histogram() -> None:
    async with collecting() as collector, telemetry_of(collector.endpoint) as telemetry:
        seconds = observed(telemetry)
        name = "rpc.server.call.duration"
        await collector.until(lambda: name in collector.metrics)
        metric = collector.metrics[name]
        assert collector.resource["service.name"] == "trunkline-test"
    assert metric.unit == "s"
    points = {
        attribute.value.string_value: point
        for point in metric.histogram.data_points
        for attribute in point.attributes
        if attribute.key == "rpc.response.status_code"
    }
    assert set(points) == {"OK", "NOT_FOUND"}
    wanted = [0] * (len(BOUNDS_S) + 1)
    for each in seconds:
        wanted[bisect_left(BOUNDS_S, each)] += 1
    assert list(points["OK"].bucket_counts) == wanted
    assert list(points["OK"].explicit_bounds) == list(BOUNDS_S)
    assert points["OK"].count == len(seconds)
    assert points["OK"].sum == pytest.approx(sum(seconds))
    assert not points["OK"].HasField("min")


async def test_gauges_and_counters_reach_both() -> None:
    async with (
        collecting() as collector,
        telemetry_of(collector.endpoint, metrics_port=0) as telemetry,
    ):
        telemetry.gauge("trunkline.pool.idle", lambda: [(3, {"pool": "app"})], "{connection}")
        telemetry.counter("trunkline.cache.hits", lambda: 7, "{hit}", "Hits.")
        await collector.until(lambda: "trunkline.cache.hits" in collector.metrics)
        text = await scrape(telemetry)
        assert 'trunkline_pool_idle{pool="app"} 3.0' in text
        assert "trunkline_cache_hits_total 7.0" in text
        assert collector.metrics["trunkline.pool.idle"].gauge.data_points[0].as_double == 3
        counter = collector.metrics["trunkline.cache.hits"].sum
        assert counter.is_monotonic
        assert counter.data_points[0].as_double == 7


async def test_one_broken_gauge_costs_only_itself() -> None:
    def broken() -> float:
        raise ValueError(CANARY)

    async with telemetry_of(metrics_port=0) as telemetry:
        telemetry.gauge("trunkline.broken", broken)
        telemetry.gauge("trunkline.whole", lambda: 1)
        text = await scrape(telemetry)
    assert "trunkline_whole 1.0" in text
    assert telemetry.registry.callback_failures == 1
    assert "trunkline_broken" not in text


@pytest.mark.parametrize(
    "labels",
    [
        {"member_number": "A1"},
        {"pool": CANARY + "@example.com"},
        {"pool": "x" * 300},
        {"pool": "é"},
    ],
)
async def test_personal_data_is_no_label(labels: Labels) -> None:
    async with telemetry_of(metrics_port=0) as telemetry:
        telemetry.gauge("trunkline.leak", lambda: [(1, labels)])
        text = await scrape(telemetry)
    assert "trunkline_leak" not in text
    assert telemetry.registry.callback_failures == 1


async def test_series_are_bounded() -> None:
    async with telemetry_of(metrics_port=0) as telemetry:
        telemetry.gauge("trunkline.wide", lambda: [(1, {"kind": str(n)}) for n in range(10_000)])
        text = await scrape(telemetry)
    assert text.count("trunkline_wide{") == SERIES_MAX


async def test_recording_costs_a_fraction_of_the_sdks() -> None:
    async with telemetry_of() as telemetry:
        meter = telemetry.rpc(METHOD)
        sdk = MeterProvider([InMemoryMetricReader()]).get_meter("t").create_histogram("h", "s")
        attributes = {"rpc.method": METHOD, "rpc.response.status_code": "OK"}
        ours = theirs = float("inf")
        for _ in range(5):  # the best of rounds in turn: a shared machine is noisy
            ours = min(ours, timeit.timeit(lambda: meter.record(0, 0.0012), number=5_000))
            theirs = min(
                theirs, timeit.timeit(lambda: sdk.record(0.0012, attributes), number=5_000)
            )
    assert ours < theirs / 5, (ours, theirs)
    assert ours / 5_000 < 2e-6


async def test_an_unsampled_call_builds_nothing() -> None:
    async with telemetry_of(NOBODY, trace_ratio=0.0) as telemetry:
        assert telemetry.start_span(METHOD, None) is None
        assert telemetry.start_span(METHOD, UNSAMPLED) is None
        best = min(
            timeit.repeat(lambda: telemetry.start_span(METHOD, None), number=5_000, repeat=5)
        )
    assert best / 5_000 < 1.5e-6


async def test_a_sampled_parent_is_honoured() -> None:
    async with collecting() as collector:
        async with telemetry_of(collector.endpoint, trace_ratio=0.0) as telemetry:
            span = telemetry.start_span(METHOD, SAMPLED)
            assert span is not None
            assert span.trace_id == TRACE_ID
            span.set("trunkline.org_id", "018f")
            child = span.child("queries.get")
            child.end()
            span.end(13)
            assert parent(span.traceparent) is not None
        await collector.until(lambda: len(collector.spans) == 2)
    spans = {span.name: span for span in collector.spans}
    server = spans[METHOD]
    assert server.trace_id.hex() == TRACE_ID
    assert server.parent_span_id.hex() == SPAN_ID
    assert spans["queries.get"].parent_span_id == server.span_id
    attributes = {each.key: each.value.string_value for each in server.attributes}
    assert attributes["rpc.response.status_code"] == "INTERNAL"
    assert attributes["trunkline.org_id"] == "018f"
    assert server.status.code == server.status.STATUS_CODE_ERROR


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "garbage",
        SAMPLED.upper(),
        SAMPLED + "-more",
        SAMPLED[:-1],
        "ff" + SAMPLED[2:],
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        "01" + SAMPLED[2:] + "-" + "x" * 10_000,
        SAMPLED.encode(),
        SAMPLED + "\n",
    ],
)
async def test_a_broken_traceparent_is_ignored(broken: str | bytes) -> None:
    assert parent(broken) is None
    async with telemetry_of(NOBODY, trace_ratio=0.0) as telemetry:
        assert telemetry.start_span(METHOD, broken) is None
    async with telemetry_of(NOBODY, trace_ratio=1.0) as telemetry:
        span = telemetry.start_span(METHOD, broken)
        assert span is not None
        assert span.trace_id != TRACE_ID


def test_a_later_version_of_traceparent_is_read() -> None:
    later = parent("01" + SAMPLED[2:] + "-more")
    assert later is not None
    assert (later.trace_id, later.sampled) == (TRACE_ID, True)


async def test_callers_cannot_force_a_flood_of_spans() -> None:
    async with telemetry_of(NOBODY, trace_ratio=0.0) as telemetry:
        spans = [telemetry.start_span(METHOD, SAMPLED) for _ in range(10 * FORCED_SPANS_PER_S_MAX)]
    # The second may turn while they are made.
    assert sum(1 for span in spans if span) <= 2 * FORCED_SPANS_PER_S_MAX


async def test_the_ratio_holds() -> None:
    async with telemetry_of(NOBODY, trace_ratio=0.01) as telemetry:
        random.seed(3)
        sampled = sum(1 for _ in range(20_000) if telemetry._sampler.root())
    assert 140 <= sampled <= 260


async def test_span_attributes_are_from_the_list() -> None:
    async with telemetry_of(NOBODY, trace_ratio=1.0) as telemetry:
        span = telemetry.start_span(METHOD)
        assert span is not None
        with pytest.raises(ValueError, match="allow-list"):
            span.set("member.name", CANARY)


@pytest.mark.parametrize("collector", ["closed port", "silent"])
async def test_a_dead_collector_slows_nothing(collector: str) -> None:
    """Everything is sampled and exported every 50 ms, to nobody."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if collector == "silent":
            listener.listen()
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        took: list[float] = []
        async with telemetry_of(endpoint, trace_ratio=1.0) as telemetry:
            meter = telemetry.rpc(METHOD)
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                started = time.perf_counter()
                span = telemetry.start_span(METHOD)
                assert span is not None
                span.end()
                meter.record(0, 0.001)
                took.append(time.perf_counter() - started)
                await asyncio.sleep(0.0005)
            closing = time.monotonic()
        assert time.monotonic() - closing < 2.5  # close() is bounded by its own time-out
    assert sorted(took)[int(len(took) * 0.99)] < 0.005


async def test_the_metrics_endpoint_survives_a_client_that_stalls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trunkline_server.telemetry._QuietHandler.timeout", 0.1)
    async with telemetry_of(metrics_port=0) as telemetry:
        telemetry.gauge("trunkline.whole", lambda: 1)
        with socket.create_connection(("127.0.0.1", telemetry.metrics_port or 0)) as stalled:
            stalled.sendall(b"GET /met")
            assert "trunkline_whole" in await scrape(telemetry)


async def test_the_metrics_endpoint_is_on_loopback_by_default() -> None:
    settings = TelemetrySettings(service="s", version="v", metrics_port=0)
    assert settings.metrics_host == "127.0.0.1"


async def test_a_blocked_loop_shows_in_the_lag() -> None:
    lag = LoopLag()
    lag.start(asyncio.get_running_loop())
    await asyncio.sleep(LAG_INTERVAL_S * 2.5)
    assert lag.max_s < 0.2
    time.sleep(0.3)
    await asyncio.sleep(LAG_INTERVAL_S)
    lag.stop()
    assert lag.max_s > 0.2
    assert lag.p99_s > 0.2
