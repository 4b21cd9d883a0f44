"""Readiness follows a real PostgreSQL that is stopped, frozen and started; liveness does not."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from trunkline_server.local.postgres import Postgres
from trunkline_server.rpc.health import Health, PostgresProbe

SERVICE = "trunkline.api.members.v1.MemberService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("health")) as running:
        yield running


class RestingBreaker:
    retry_after_s = 0.0


@pytest.fixture
def breaker() -> RestingBreaker:
    return RestingBreaker()


@pytest.fixture
async def health(postgres: Postgres, breaker: RestingBreaker) -> AsyncIterator[Health]:
    probe = PostgresProbe(postgres.url())
    health = Health([SERVICE], probe=probe, breaker=breaker, interval_s=0.02, timeout_s=0.5)
    await health.start()
    yield health
    await health.stop()
    probe.close()


@pytest.fixture
async def stub(health: Health) -> AsyncIterator[health_pb2_grpc.HealthStub]:
    server = grpc.aio.server()
    health.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield health_pb2_grpc.HealthStub(channel)
    await server.stop(0)


async def check(stub: health_pb2_grpc.HealthStub, service: str) -> int:
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    status: int = answer.status
    return status


async def test_readiness_follows_postgresql_and_watch_tells(
    postgres: Postgres, stub: health_pb2_grpc.HealthStub
) -> None:
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=60)
    assert (await watch.read()).status == SERVING
    await asyncio.to_thread(postgres.stop)
    assert (await watch.read()).status == NOT_SERVING
    assert await check(stub, SERVICE) == NOT_SERVING
    assert await check(stub, "") == SERVING
    await asyncio.to_thread(postgres.start)
    assert (await watch.read()).status == SERVING
    assert await check(stub, SERVICE) == SERVING


async def test_a_frozen_postgresql_is_not_ready(
    postgres: Postgres, stub: health_pb2_grpc.HealthStub
) -> None:
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=60)
    assert (await watch.read()).status == SERVING
    postgres.freeze()
    try:
        assert (await watch.read()).status == NOT_SERVING
    finally:
        postgres.thaw()
    assert (await watch.read()).status == SERVING


async def test_a_resting_breaker_is_not_ready(
    breaker: RestingBreaker, stub: health_pb2_grpc.HealthStub
) -> None:
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=60)
    assert (await watch.read()).status == SERVING
    breaker.retry_after_s = 1.0
    assert (await watch.read()).status == NOT_SERVING
    breaker.retry_after_s = 0.0
    assert (await watch.read()).status == SERVING


async def test_drain_is_told_and_watches_end(
    health: Health, stub: health_pb2_grpc.HealthStub
) -> None:
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=60)
    assert (await watch.read()).status == SERVING
    health.drain()
    assert (await watch.read()).status == NOT_SERVING
    assert await check(stub, "") == SERVING
    health.end_watches()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watch.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_unknown_service(stub: health_pb2_grpc.HealthStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(stub, "nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="nobody"), timeout=60)
    assert (await watch.read()).status == SERVICE_UNKNOWN
    watch.cancel()


async def test_watches_are_bounded(
    stub: health_pb2_grpc.HealthStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline_server.rpc.health.WATCHES_MAX", 1)
    first = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=60)
    await first.read()
    second = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=60)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await second.read()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    first.cancel()
