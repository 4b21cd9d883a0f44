"""The bench's method behind the product's own wrapper, with every step of it at work.

Identity from PostgreSQL, limits settled with Valkey, shedding, metrics and traces that go to a
collector: what stands here is what the product's composition puts round each call.
"""

from __future__ import annotations

from typing import Any

import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor

from bench import contract
from bench.servers.grpc_server import serve
from trunkline.api.options.v1 import policy_pb2
from trunkline_server.config import ServeSettings
from trunkline_server.db import Database
from trunkline_server.identity.authenticator import Authenticator
from trunkline_server.identity.lockout import Lockout
from trunkline_server.identity.rules import Peppers
from trunkline_server.identity.tokens import AccessTokens
from trunkline_server.link import Link
from trunkline_server.logs import Journal
from trunkline_server.rpc.limits import Limits, Quota, Rate
from trunkline_server.rpc.shedding import Shedder
from trunkline_server.rpc.wrapper import Wrapper
from trunkline_server.telemetry import Telemetry, TelemetrySettings
from trunkline_server.valkey import Valkey

# Finite, so that the buckets are counted and settled, and never reached.
_AMPLE = Rate(per_s=1e6, burst=1e6)


class _Echo:
    async def Echo(self, request: Any, context: Any) -> Any:
        return contract.reply(request)


def _service() -> ServiceDescriptor:
    file = contract.file_descriptor(1)
    policy = file.service[0].method[0].options.Extensions[policy_pb2.policy]
    policy.roles.extend([policy_pb2.ROLE_AGENT, policy_pb2.ROLE_ADMIN])
    policy.cost = 1
    policy.priority = policy_pb2.PRIORITY_CRITICAL
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName(contract.SERVICE)


async def _build() -> grpc.aio.Server:
    settings = ServeSettings.model_validate({})  # all of it from the environment
    valkey_url = settings.redis_url.get_secret_value()
    valkey, link = Valkey(valkey_url), Link(valkey_url)
    await link.start()
    limits = Limits(valkey, _quota, default=Quota(org=_AMPLE, credential=_AMPLE))
    await limits.start()
    telemetry = Telemetry(
        TelemetrySettings(
            "bench", "0", otlp_endpoint=settings.otlp_endpoint, trace_ratio=settings.trace_ratio
        )
    )
    telemetry.start()
    wrapper = Wrapper(
        authenticator=await _authenticator(settings, valkey, link),
        limits=limits,
        shedder=Shedder(),
        telemetry=telemetry,
        journal=Journal(),
    )
    wrapper.bind(_service(), _Echo())
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((wrapper,))
    return server


async def _authenticator(settings: ServeSettings, valkey: Valkey, link: Link) -> Authenticator:
    return Authenticator(
        db=await Database.open(settings.database_url.get_secret_value(), pool_size=2),
        tokens=AccessTokens([settings.token_key.get_secret_value()]),
        peppers=Peppers([bytes.fromhex(settings.key_pepper.get_secret_value())]),
        lockout=Lockout(valkey),
        link=link,
    )


async def _quota(org_id: object) -> Quota:
    return Quota(org=_AMPLE, credential=_AMPLE)


if __name__ == "__main__":
    serve(_build)
