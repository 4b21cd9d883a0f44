"""The composition root: settings in, running processes out. Nothing else builds things."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import UUID

import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from grpc_channelz.v1 import channelz
from grpc_reflection.v1alpha import reflection
from pydantic import SecretStr

from trunkline.api.content.v1 import content_service_pb2
from trunkline.api.identity.v1 import identity_service_pb2
from trunkline.api.imports.v1 import imports_service_pb2
from trunkline.api.members.v1 import members_service_pb2
from trunkline.api.ops.v1 import ops_service_pb2
from trunkline.api.stats.v1 import stats_service_pb2
from trunkline_server import __version__, gauges
from trunkline_server.config import ServeSettings, WorkerSettings
from trunkline_server.content.service import ContentService
from trunkline_server.content.worker import ContentWorker
from trunkline_server.db import Database, session_settings
from trunkline_server.findings import Role, Subject
from trunkline_server.identity.authenticator import Authenticator
from trunkline_server.identity.lockout import Lockout
from trunkline_server.identity.passwords import Passwords
from trunkline_server.identity.rules import Peppers
from trunkline_server.identity.service import IdentityService
from trunkline_server.identity.sessions import Sessions
from trunkline_server.identity.tokens import AccessTokens
from trunkline_server.imports.flow import FlowLimits
from trunkline_server.imports.retention import ImportRetention
from trunkline_server.imports.service import ImportService
from trunkline_server.imports.worker import ImportWorker
from trunkline_server.jobs import Runner, Timings
from trunkline_server.link import Link
from trunkline_server.logs import Journal
from trunkline_server.members.service import MemberService
from trunkline_server.members.settings import check_member_rules
from trunkline_server.ops.service import OpsService
from trunkline_server.orgs import TOPIC_ORG, Orgs
from trunkline_server.paging import PageTokens
from trunkline_server.postgres_metrics import PostgresMetrics
from trunkline_server.rpc.drain import Drain, Step
from trunkline_server.rpc.health import Health, PostgresProbe
from trunkline_server.rpc.limits import Limits, Quota, RareLimit, Rate
from trunkline_server.rpc.options import CONCURRENT_RPCS_MAX, server_options
from trunkline_server.rpc.shedding import Shedder
from trunkline_server.rpc.wrapper import Wrapper
from trunkline_server.stats.service import StatsService
from trunkline_server.stats.worker import RollUps
from trunkline_server.telemetry import Telemetry, TelemetrySettings
from trunkline_server.tls import Certificates
from trunkline_server.upkeep import handlers, schedules
from trunkline_server.valkey import Valkey

APP_ROLE = "trunkline_app"
WORKER_ROLE = "trunkline_worker"
LAG_INTERVAL_S = 0.2
# What an organisation may spend at once, in seconds of its rate.
BURST_S = 2.0
# Events come in batches, and from agents' desktops after an outage all at once.
EVENTS_BURST_S = 10.0
# A call makes some 50 containers that die with it; the default of 700 collects every 14 calls.
GC_THRESHOLD = 10_000
# Connections of a process beside its pool and readers: the readiness probe, the metrics.
EXTRA_CONNECTIONS = 2


def service(module: object, name: str) -> ServiceDescriptor:
    found: ServiceDescriptor = module.DESCRIPTOR.services_by_name[name]  # type: ignore[attr-defined]
    return found


IDENTITY = service(identity_service_pb2, "IdentityService")
MEMBERS = service(members_service_pb2, "MemberService")
IMPORTS = service(imports_service_pb2, "ImportService")
CONTENT = service(content_service_pb2, "ContentService")
STATS = service(stats_service_pb2, "StatsService")
OPS = service(ops_service_pb2, "OpsService")
SERVICES = (IDENTITY, MEMBERS, IMPORTS, CONTENT, STATS, OPS)


def secrets(*values: SecretStr | None) -> list[bytes]:
    """The current secret first, then the one before it."""
    return [bytes.fromhex(value.get_secret_value()) for value in values if value is not None]


def peppers(settings: ServeSettings | WorkerSettings) -> Peppers:
    return Peppers(secrets(settings.key_pepper, settings.key_pepper_previous))


def telemetry(kind: str, settings: ServeSettings | WorkerSettings, index: int) -> Telemetry:
    port = settings.metrics_port
    return Telemetry(
        TelemetrySettings(
            service=f"trunkline-{kind}",
            version=__version__,
            otlp_endpoint=settings.otlp_endpoint,
            trace_ratio=settings.trace_ratio,
            metrics_host=settings.metrics_address,
            metrics_port=port + index if port else port,
        )
    )


@dataclass(slots=True)
class Server:
    """One serving process."""

    port: int
    drain: Drain
    members: MemberService
    stats: StatsService
    content: ContentService
    _server: grpc.aio.Server
    _health: Health
    _wrapper: Wrapper
    _closers: Sequence[Step]

    @classmethod
    async def start(cls, settings: ServeSettings, *, index: int = 0, processes: int = 1) -> Server:
        meters = telemetry("serve", settings, index)
        database_url = settings.database_url.get_secret_value()
        redis_url = settings.redis_url.get_secret_value()
        role = APP_ROLE if settings.database_role is None else settings.database_role
        db = await Database.open(
            database_url,
            role=role,
            pool_size=settings.pool_size,
            readers=settings.readers,
            statement_timeout_s=settings.statement_timeout_s,
            application=f"trunkline-serve-{index}",
        )
        valkey = Valkey(redis_url)
        link = Link(redis_url, name=f"{socket.gethostname()}:serve:{index}")
        orgs = Orgs(db, link)
        shedder = Shedder()
        limits = Limits(
            valkey, _quota_reader(orgs), default=_quota(10_000, 2_000), processes=processes
        )
        drain = Drain(notice_s=settings.drain_wait_s, grace_s=settings.drain_grace_s)
        pages = PageTokens(secrets(settings.page_secret, settings.page_secret_previous))

        keys = (settings.token_key, settings.token_key_previous)
        tokens = AccessTokens([key.get_secret_value() for key in keys if key is not None])
        lockout = Lockout(valkey)
        passwords = Passwords(threads=settings.password_threads)
        authenticator = Authenticator(
            db=db, tokens=tokens, peppers=peppers(settings), lockout=lockout, link=link
        )
        identity = IdentityService(
            db=db,
            passwords=passwords,
            logins=Sessions(tokens=tokens, peppers=peppers(settings)),
            peppers=peppers(settings),
            lockout=lockout,
            pages=pages,
            link=link,
            check_member_rules=check_member_rules,
        )
        members = MemberService(db=db, orgs=orgs, link=link, pages=pages, drain=drain)
        imports = ImportService(
            db=db,
            orgs=orgs,
            link=link,
            pages=pages,
            drain=drain,
            rare=RareLimit(valkey, processes=processes),
            flow_limits=FlowLimits(
                stream_window_bytes=settings.upload_window_bytes,
                process_window_bytes=settings.upload_process_window_bytes,
                org_budget_bytes=settings.upload_org_budget_bytes,
                global_budget_bytes=settings.upload_global_budget_bytes,
            ),
            stream_age_s=settings.upload_stream_age_s,
        )
        content = ContentService(db=db, orgs=orgs, link=link, valkey=valkey, pages=pages)
        event_limits = Limits(
            valkey,
            _event_quota_reader(orgs),
            default=_event_quota(5_000),
            processes=processes,
            name="events",
        )
        stats = StatsService(
            db=db, orgs=orgs, link=link, valkey=valkey, drain=drain, event_limits=event_limits
        )

        wrapper = Wrapper(
            authenticator=authenticator,
            limits=limits,
            shedder=shedder,
            telemetry=meters,
            journal=Journal(),
            trusted_proxies=settings.trusted_proxies,
        )
        wrapper.bind(IDENTITY, identity)
        wrapper.bind(MEMBERS, members)
        wrapper.bind(IMPORTS, imports)
        wrapper.bind(CONTENT, content)
        wrapper.bind(STATS, stats)

        names = [descriptor.full_name for descriptor in SERVICES]
        probe = PostgresProbe(
            database_url, session_settings(role, settings.statement_timeout_s, "trunkline-probe")
        )
        health = Health(names, probe=probe, breaker=db.breaker)
        ops = OpsService(
            db=db,
            orgs=orgs,
            pages=pages,
            drain=drain,
            health=health,
            services=names,
            breakers=(db.breaker, valkey.breaker),
        )
        wrapper.bind(OPS, ops)

        server = grpc.aio.server(
            options=server_options(
                handshake_timeout_s=settings.handshake_timeout_s,
                connection_idle_s=settings.connection_idle_s,
                connection_age_s=settings.connection_age_s,
            ),
            maximum_concurrent_rpcs=CONCURRENT_RPCS_MAX,
        )
        server.add_generic_rpc_handlers((wrapper,))
        health.add_to(server)
        if _reflects(settings):
            reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
        if settings.channelz:
            channelz.add_channelz_servicer(server)
        port = _listen(server, settings)
        postgres_metrics = PostgresMetrics(database_url, meters)
        gauges.of_server(
            meters,
            db=db,
            valkey=valkey,
            link=link,
            orgs=orgs,
            limits=limits,
            shedder=shedder,
            wrapper=wrapper,
            passwords=passwords,
            members=members,
            imports=imports,
            content=content,
        )

        link.subscribe(TOPIC_ORG, lambda org: limits.forget_quota(UUID(org)))
        await link.start()
        link.subscribe(TOPIC_ORG, lambda org: event_limits.forget_quota(UUID(org)))
        await limits.start()
        await event_limits.start()
        await members.start()
        await content.start()
        meters.start()
        if index == 0:  # once for all processes of the machine
            postgres_metrics.start()
        lag = asyncio.create_task(_feed_lag(shedder, meters), name="lag")
        await health.start()
        await server.start()
        _settle_memory()

        async def stop_watching() -> None:
            lag.cancel()
            await health.stop()
            probe.close()

        closers: list[Step] = [
            ("watching", stop_watching),
            ("members", members.close),
            ("imports", imports.close),
            ("content", content.close),
            ("authenticator", authenticator.close),
            ("passwords", partial(asyncio.to_thread, passwords.close)),
            ("stats", stats.close),
            ("limits", limits.close),
            ("event limits", event_limits.close),
            ("link", link.close),
            ("valkey", valkey.close),
            ("postgres metrics", postgres_metrics.stop),
            ("database", db.close),
            ("telemetry", meters.close),
        ]
        return cls(port, drain, members, stats, content, server, health, wrapper, closers)

    async def stop(self) -> bool:
        """Drains. True when every accepted call was answered."""
        return await self.drain.serve_out(
            health=self._health,
            server=self._server,
            inflight=self._wrapper.inflight,
            closers=self._closers,
        )


def _settle_memory() -> None:
    """What was built at the start stays for good: no collection has to walk it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 20)


def _reflects(settings: ServeSettings) -> bool:
    if settings.reflection is None:
        return settings.environment == "dev"
    return settings.reflection


def _listen(server: grpc.aio.Server, settings: ServeSettings) -> int:
    address = f"{settings.host}:{settings.port}"
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return server.add_insecure_port(address)
    certificates = Certificates(
        settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file
    )
    return server.add_secure_port(address, certificates.credentials())


def _quota(cost_per_s: float, actor_cost_per_s: float) -> Quota:
    return Quota(
        org=Rate(cost_per_s, cost_per_s * BURST_S),
        credential=Rate(actor_cost_per_s, actor_cost_per_s * BURST_S),
    )


def _quota_reader(orgs: Orgs) -> Callable[[UUID], Awaitable[Quota]]:
    async def read(org_id: UUID) -> Quota:
        quotas = (await orgs.get(org_id)).quotas
        return _quota(quotas.cost_per_second, quotas.actor_cost_per_second)

    return read


def _event_quota(events_per_s: float) -> Quota:
    rate = Rate(events_per_s, events_per_s * EVENTS_BURST_S)
    return Quota(org=rate, credential=rate)


def _event_quota_reader(orgs: Orgs) -> Callable[[UUID], Awaitable[Quota]]:
    async def read(org_id: UUID) -> Quota:
        return _event_quota((await orgs.get(org_id)).quotas.events_per_second)

    return read


async def _feed_lag(shedder: Shedder, meters: Telemetry) -> None:
    """Tells the shedder how late the loop runs."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_INTERVAL_S
        await asyncio.sleep(LAG_INTERVAL_S)
        shedder.observe_lag(max(0.0, loop.time() - due))


@dataclass(slots=True)
class Worker:
    """One working process."""

    runner: Runner
    drain: Drain
    _closers: Sequence[Step]

    @classmethod
    async def start(cls, settings: WorkerSettings, *, index: int = 0) -> Worker:
        meters = telemetry("worker", settings, index)
        database_url = settings.database_url.get_secret_value()
        role = WORKER_ROLE if settings.database_role is None else settings.database_role
        db = await Database.open(
            database_url,
            role=role,
            pool_size=settings.pool_size,
            readers=1,
            statement_timeout_s=settings.statement_timeout_s,
            application=f"trunkline-worker-{index}",
        )
        link = Link(
            settings.redis_url.get_secret_value(), name=f"{socket.gethostname()}:worker:{index}"
        )
        await link.start()
        roll_ups = RollUps(db, link)
        orgs = Orgs(db, link)
        imports = ImportWorker(
            db=db,
            orgs=orgs,
            link=link,
            lanes=settings.import_lanes,
            batch_rows=settings.import_batch_rows,
        )
        retention = ImportRetention(db=db, orgs=orgs)
        content = ContentWorker(db=db, orgs=orgs, link=link)
        runner = Runner(
            db,
            database_url,
            {
                **handlers(db, link),
                **roll_ups.handlers(),
                **imports.handlers(),
                **retention.handlers(),
                **content.handlers(),
            },
            schedules=(
                *schedules(),
                *roll_ups.schedules(),
                *retention.schedules(),
                *content.schedules(),
            ),
            slots=settings.concurrency,
            role=role,
            timings=Timings(heartbeat_s=settings.lease_s / 2, poll_s=settings.poll_s),
        )
        gauges.of_worker(meters, db=db, link=link, runner=runner, roll_ups=roll_ups)
        meters.start()
        closers: list[Step] = [
            ("link", link.close),
            ("database", db.close),
            ("telemetry", meters.close),
        ]
        _settle_memory()
        return cls(runner, Drain(notice_s=0), closers)

    async def run(self) -> None:
        """Until `runner.stop()`: leases are handed back before it returns."""
        await self.runner.run()
        await self.drain.work_out(self._closers)


def subject(serve: ServeSettings, work: WorkerSettings) -> Subject:
    """What `trunklined doctor` looks at: what these settings would start on this machine."""
    cores = os.cpu_count() or 1
    files = (serve.tls_cert_file, serve.tls_client_ca_file)
    return Subject(
        database_url=serve.database_url.get_secret_value(),
        redis_url=serve.redis_url.get_secret_value(),
        roles=(
            _role(
                APP_ROLE if serve.database_role is None else serve.database_role,
                (serve.processes or cores) * (serve.pool_size + serve.readers + EXTRA_CONNECTIONS),
            ),
            _role(
                WORKER_ROLE if work.database_role is None else work.database_role,
                (work.processes or cores) * (work.pool_size + 1 + EXTRA_CONNECTIONS),
            ),
        ),
        ports=((serve.host, serve.port),),
        disks=(Path.cwd(),),
        certificates=[file for file in files if file is not None],
    )


def _role(name: str, connections: int) -> Role:
    return Role(name=name, connections=connections, settings={"role": name} if name else {})
