"""An OTLP collector in the small: a real gRPC server that keeps what it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
from opentelemetry.proto.collector.metrics.v1 import (
    metrics_service_pb2,
    metrics_service_pb2_grpc,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

PATIENCE_S = 20.0


class Collector(
    metrics_service_pb2_grpc.MetricsServiceServicer, trace_service_pb2_grpc.TraceServiceServicer
):
    def __init__(self) -> None:
        self.metrics: dict[str, Metric] = {}  # the latest of each name
        self.spans: list[Span] = []
        self.resource: dict[str, str] = {}
        self.endpoint = ""
        self._news = asyncio.Event()

    async def Export(
        self,
        request: metrics_service_pb2.ExportMetricsServiceRequest
        | trace_service_pb2.ExportTraceServiceRequest,
        context: grpc.aio.ServicerContext[object, object],
    ) -> object:
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            for resource_spans in request.resource_spans:
                for scope in resource_spans.scope_spans:
                    self.spans.extend(scope.spans)
            answer: object = trace_service_pb2.ExportTraceServiceResponse()
        else:
            for resource_metrics in request.resource_metrics:
                for each in resource_metrics.resource.attributes:
                    self.resource[each.key] = each.value.string_value
                for scope_metrics in resource_metrics.scope_metrics:
                    self.metrics.update({metric.name: metric for metric in scope_metrics.metrics})
            answer = metrics_service_pb2.ExportMetricsServiceResponse()
        self._news.set()
        return answer

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()
    server = grpc.aio.server()
    for add in (
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server,
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server,
    ):
        add(collector, server)  # type: ignore[no-untyped-call]
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield collector
    await server.stop(0)
