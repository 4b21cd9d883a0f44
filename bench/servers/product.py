"""The product's server as its composition root starts it, with the bench's method bound beside."""

from __future__ import annotations

import json
from typing import Any

import uvloop
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor

from bench import contract
from bench.lag import LagProbe
from bench.servers.grpc_server import until_told
from trunkline.api.options.v1 import policy_pb2
from trunkline_server.app import Server
from trunkline_server.config import ServeSettings


class _Echo:
    async def Echo(self, request: Any, context: Any) -> Any:
        return contract.reply(request)


def _echo_service() -> ServiceDescriptor:
    file = contract.file_descriptor(1)
    policy = file.service[0].method[0].options.Extensions[policy_pb2.policy]
    policy.roles.extend([policy_pb2.ROLE_AGENT, policy_pb2.ROLE_ADMIN])
    policy.cost = 1
    policy.priority = policy_pb2.PRIORITY_CRITICAL
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName(contract.SERVICE)


class _Steering:
    """`lag` starts the probe of the event loop, `stop` answers with what it saw."""

    def __init__(self) -> None:
        self._probe = LagProbe()

    def answer(self, line: str) -> str:
        if line == "lag":
            self._probe.start()
            return "started"
        return json.dumps(self._probe.stop().buckets)


async def _main() -> None:
    # The rest comes from the environment.
    settings = ServeSettings.model_validate({"port": 0, "drain_wait_s": 0})
    server = await Server.start(settings)
    # No settings bind a service: only a bench has one of its own.
    server._wrapper.bind(_echo_service(), _Echo())
    await until_told(server.port, _Steering().answer)
    await server.stop()


if __name__ == "__main__":
    uvloop.run(_main())
