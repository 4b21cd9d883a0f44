"""channelz: a debugging aid that is off, and never beyond the loopback address."""

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from pydantic import ValidationError

from tests.running import Running, running, settings


async def test_it_is_off_unless_asked_for(server: Running) -> None:
    stub = channelz_pb2_grpc.ChannelzStub(server.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetServers(channelz_pb2.GetServersRequest())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_it_answers_when_asked_for(database_url: str, redis_url: str) -> None:
    async with running(database_url, redis_url, channelz=True) as server:
        stub = channelz_pb2_grpc.ChannelzStub(server.channel)
        assert (await stub.GetServers(channelz_pb2.GetServersRequest())).server


def test_it_stays_on_this_machine() -> None:
    with pytest.raises(ValidationError, match="loopback"):
        settings("postgresql://x", "redis://x", channelz=True, host="0.0.0.0")
