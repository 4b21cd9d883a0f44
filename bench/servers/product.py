"""The product's parts in one process, with the bench's method bound beside its services.

Identity from PostgreSQL, limits settled with Valkey, shedding, metrics and traces that go to a
collector: what the product's composition puts round each call.
"""

from __future__ import annotations

import json
from typing import Any

import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor

from bench import contract
from bench.lag import LagProbe
from bench.servers.grpc_server import serve
from trunkline.api.identity.v1 import identity_service_pb2
from trunkline.api.options.v1 import policy_pb2
from trunkline_server.config import ServeSettings
from trunkline_server.db import Database
from trunkline_server.identity.authenticator import Authenticator
from trunkline_server.identity.lockout import Lockout
from trunkline_server.identity.passwords import Passwords
from trunkline_server.identity.rules import Peppers
from trunkline_server.identity.service import IdentityService
from trunkline_server.identity.sessions import Sessions
from trunkline_server.identity.tokens import AccessTokens
from trunkline_server.link import Link
from trunkline_server.logs import Journal
from trunkline_server.paging import PageTokens
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


def _echo_service() -> ServiceDescriptor:
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
    wrapper = await _composed(settings)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((wrapper,))
    return server


async def _composed(settings: ServeSettings) -> Wrapper:
    valkey_url = settings.redis_url.get_secret_value()
    valkey, link = Valkey(valkey_url), Link(valkey_url)
    await link.start()
    db = await Database.open(
        settings.database_url.get_secret_value(),
        pool_size=settings.pool_size,
        readers=settings.readers,
    )
    limits = Limits(valkey, _quota, default=Quota(org=_AMPLE, credential=_AMPLE))
    await limits.start()
    telemetry = Telemetry(
        TelemetrySettings(
            "bench", "0", otlp_endpoint=settings.otlp_endpoint, trace_ratio=settings.trace_ratio
        )
    )
    telemetry.start()
    tokens = AccessTokens([settings.token_key.get_secret_value()])
    peppers = Peppers([bytes.fromhex(settings.key_pepper.get_secret_value())])
    lockout = Lockout(valkey)
    wrapper = Wrapper(
        authenticator=Authenticator(
            db=db, tokens=tokens, peppers=peppers, lockout=lockout, link=link
        ),
        limits=limits,
        shedder=Shedder(),
        telemetry=telemetry,
        journal=Journal(),
    )
    identity = IdentityService(
        db=db,
        passwords=Passwords(threads=settings.password_threads),
        logins=Sessions(tokens=tokens, peppers=peppers),
        peppers=peppers,
        lockout=lockout,
        pages=PageTokens([bytes.fromhex(settings.page_secret.get_secret_value())]),
        link=link,
        check_member_rules=lambda rules: None,
    )
    services = identity_service_pb2.DESCRIPTOR.services_by_name
    wrapper.bind(services["IdentityService"], identity)
    wrapper.bind(_echo_service(), _Echo())
    return wrapper


async def _quota(org_id: object) -> Quota:
    return Quota(org=_AMPLE, credential=_AMPLE)


class _Steering:
    """`lag` starts the probe of the event loop, `stop` answers with what it saw."""

    def __init__(self) -> None:
        self._probe = LagProbe()

    def answer(self, line: str) -> str:
        if line == "lag":
            self._probe.start()
            return "started"
        return json.dumps(self._probe.stop().buckets)


if __name__ == "__main__":
    serve(_build, _Steering().answer)
