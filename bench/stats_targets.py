"""What the open-loop driver calls for stats: one overview after another, of many organisations."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc.aio

from bench.targets import Call
from trunkline.api.stats.v1 import stats_service_pb2 as pb
from trunkline.api.stats.v1 import stats_service_pb2_grpc as stubs

CALL_TIMEOUT_S = 10.0


@asynccontextmanager
async def overviews(given: Mapping[str, Any]) -> AsyncIterator[Call]:
    """`address`, `tokens`; with `days`, of ranges that nobody asked for before, else of today."""
    async with grpc.aio.insecure_channel(given["address"]) as channel:
        await channel.channel_ready()
        stub: stubs.StatsServiceAsyncStub = stubs.StatsServiceStub(channel)
        tokens = [(("authorization", token),) for token in given["tokens"]]

        async def call(number: int) -> str:
            request = _asked(number, given.get("days", 0))
            try:
                metadata = tokens[number % len(tokens)]
                await stub.GetOverview(request, metadata=metadata, timeout=CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "ok"

        yield call


def _asked(number: int, days: int) -> pb.GetOverviewRequest:
    request = pb.GetOverviewRequest()
    if days:
        # A day at a time, each from another second on: no two are the same.
        start = datetime.now(UTC) - timedelta(days=1 + number % days, seconds=number)
        request.from_time.FromDatetime(start)
        request.to_time.FromDatetime(start + timedelta(days=1))
    return request
