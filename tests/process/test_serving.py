"""`trunklined serve` and `worker` as processes: signals, restarts, and what they depend on gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.daemons import STOP_TIMEOUT_S, Daemon, command, environment, until
from tests.running import Metadata, Org, make_org
from trunkline.api.identity.v1 import identity_service_pb2 as identity
from trunkline.api.identity.v1.identity_service_pb2_grpc import IdentityServiceStub
from trunkline.api.members.v1 import members_service_pb2 as members
from trunkline.api.members.v1.members_service_pb2_grpc import MemberServiceStub
from trunkline.api.ops.v1 import ops_service_pb2 as ops
from trunkline.api.ops.v1.ops_service_pb2_grpc import OpsServiceStub
from trunkline_server.local import Postgres, Valkey
from trunkline_server.rpc.caller import Role

CALLS_IN_FLIGHT = 300
# A connection carries 100 streams; further calls would wait in the client.
CALLS_PER_CHANNEL = 75
TIMEOUT_S = 20.0
RESTART_WITHIN_S = 30.0
REVOKED_WITHIN_S = 1.0
SERVING_WITHIN_S = 2.0
GRACE_S = 0.75
DATABASE = "trunkline"
# What docs/adr/0009 asks of clients: a server that stops resets the few calls that arrive while
# its GOAWAY is on the way, and grpc shows that as CANCELLED.
RETRY = json.dumps({
    "methodConfig": [{
        "name": [{}],
        "retryPolicy": {
            "maxAttempts": 4,
            "initialBackoff": "0.05s",
            "maxBackoff": "1s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
        },
    }]
})  # fmt: skip
FAILED_WITHOUT_RETRY_MAX = 0.005


@contextlib.asynccontextmanager
async def channels(
    address: str, count: int, *, retry: bool = False
) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Connections of their own each, so that they spread over the processes."""
    options: list[tuple[str, Any]] = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", int(retry)),
    ]
    if retry:
        options.append(("grpc.service_config", RETRY))
    opened = [grpc.aio.insecure_channel(address, options=options) for _ in range(count)]
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*(channel.channel_ready() for channel in opened))
        yield opened
    finally:
        await asyncio.gather(*(channel.close() for channel in opened))


async def outcome(call: Any) -> str:
    """OK, or the code and text of what came instead."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    return "OK"


def who_am_i(channel: grpc.aio.Channel, metadata: Metadata, timeout_s: float = TIMEOUT_S) -> Any:
    stub: Any = IdentityServiceStub(channel)
    return stub.WhoAmI(identity.WhoAmIRequest(), metadata=metadata, timeout=timeout_s)


def list_users(channel: grpc.aio.Channel, metadata: Metadata, timeout_s: float = TIMEOUT_S) -> Any:
    stub: Any = IdentityServiceStub(channel)
    return stub.ListUsers(identity.ListUsersRequest(), metadata=metadata, timeout=timeout_s)


def list_jobs(channel: grpc.aio.Channel, metadata: Metadata) -> Any:
    """Reads the database and is never shed, however busy the process is."""
    stub: Any = OpsServiceStub(channel)
    return stub.ListJobs(ops.ListJobsRequest(), metadata=metadata, timeout=TIMEOUT_S)


def create_user(channel: grpc.aio.Channel, metadata: Metadata, name: str) -> Any:
    stub: Any = IdentityServiceStub(channel)
    request = identity.CreateUserRequest(
        email=f"{name}@example.org",
        display_name=name,
        role=1,  # type: ignore[arg-type]
    )
    return stub.CreateUser(request, metadata=metadata, timeout=TIMEOUT_S)


def validate(channel: grpc.aio.Channel, metadata: Metadata) -> Any:
    stub: Any = MemberServiceStub(channel)
    request = members.ValidateMemberRequest(member_number="A-1")
    return stub.ValidateMember(request, metadata=metadata, timeout=TIMEOUT_S)


async def ready(channel: grpc.aio.Channel) -> bool:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service="trunkline.api.identity.v1.IdentityService")
    with contextlib.suppress(grpc.aio.AioRpcError):
        reply = await stub.Check(request, timeout=1)
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
    return False


class House:
    """A `serve` on servers of the test's own."""

    def __init__(self, postgres: Postgres, valkey: Valkey, log: Path) -> None:
        self.postgres = postgres
        self.valkey = valkey
        self.url = postgres.url(DATABASE)
        self._log = log
        self.daemon: Daemon

    @contextlib.contextmanager
    def serving(self, processes: int = 2, **given: str) -> Iterator[Daemon]:
        variables = environment(self.url, self.valkey.url(), **given)
        words = ("serve", "--processes", str(processes), "--port", "0")
        with Daemon(self._log, variables, *words) as daemon:
            yield daemon
        for line in daemon.lines():
            assert line["message"] != "unexpected failure", line

    async def org(self) -> Org:
        return await make_org(self.url, "acme")


@pytest.fixture
def house(postgres: Postgres, valkey: Valkey, tmp_path: Path) -> House:
    return House(postgres, valkey, tmp_path / "serve.log")


# ---- ending and restarting ----


async def test_sigterm_with_300_calls_in_flight_fails_none(house: House) -> None:
    org = await house.org()
    admin = org.as_(Role.ADMIN)
    count = CALLS_IN_FLIGHT // CALLS_PER_CHANNEL
    with house.serving() as daemon:
        async with channels(daemon.address, count) as opened:
            await asyncio.gather(*(list_jobs(channel, admin) for channel in opened))
            house.postgres.freeze()  # what is asked now stays in flight
            calls = [
                asyncio.ensure_future(outcome(list_jobs(channel, admin)))
                for channel in opened
                for _ in range(CALLS_PER_CHANNEL)
            ]
            await asyncio.sleep(0.3)
            assert [call.result() for call in calls if call.done()] == []
            daemon.signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            house.postgres.thaw()
            assert Counter(await asyncio.gather(*calls)) == {"OK": CALLS_IN_FLIGHT}
        assert await asyncio.to_thread(daemon.process.wait, STOP_TIMEOUT_S) == 0


async def test_a_rolling_restart_under_load_fails_no_call(house: House) -> None:
    org = await house.org()
    admin = org.as_(Role.ADMIN)
    plain: Counter[str] = Counter()
    retried: Counter[str] = Counter()
    stop = asyncio.Event()

    async def load(channel: grpc.aio.Channel, outcomes: Counter[str]) -> None:
        while not stop.is_set():
            outcomes[await outcome(list_users(channel, admin))] += 1
            await asyncio.sleep(0.004)

    with house.serving(TRUNKLINE_DRAIN_WAIT_S="0.5") as daemon:
        before = set(daemon.children())
        async with (
            channels(daemon.address, 4) as bare,
            channels(daemon.address, 4, retry=True) as retrying,
        ):
            running = [asyncio.ensure_future(load(channel, plain)) for channel in bare]
            running += [asyncio.ensure_future(load(channel, retried)) for channel in retrying]
            await asyncio.sleep(0.5)
            daemon.signal(signal.SIGHUP)
            await until(
                lambda: len(daemon.children()) == 2 and not before & set(daemon.children()),
                2 * RESTART_WITHIN_S,
            )
            await asyncio.sleep(0.5)
            stop.set()
            await asyncio.gather(*running)
    assert retried.total() > 100
    assert retried == {"OK": retried.total()}
    failed = plain.total() - plain["OK"]
    print(f"without retry: {plain}; with: {retried}")
    assert failed <= plain.total() * FAILED_WITHOUT_RETRY_MAX, plain


async def test_a_killed_child_is_started_again(house: House) -> None:
    org = await house.org()
    with house.serving() as daemon:
        killed = daemon.children()[0]
        os.kill(killed, signal.SIGKILL)
        await until(
            lambda: killed not in daemon.children() and len(daemon.children()) == 2,
            RESTART_WITHIN_S,
        )
        async with channels(daemon.address, 4) as opened:
            calls = [outcome(who_am_i(channel, org.as_(Role.ADMIN))) for channel in opened]
            assert set(await asyncio.gather(*calls)) == {"OK"}


async def test_a_worker_starts_again_and_stops(house: House, tmp_path: Path) -> None:
    variables = environment(house.url, house.valkey.url())
    with Daemon(tmp_path / "worker.log", variables, "worker", "--processes", "1") as daemon:
        assert daemon.announced == "working with 1 processes"
        (killed,) = daemon.children()
        os.kill(killed, signal.SIGKILL)
        await until(
            lambda: killed not in daemon.children() and len(daemon.children()) == 1,
            RESTART_WITHIN_S,
        )
        assert await asyncio.to_thread(daemon.stop) == 0


# ---- revocation ----


@pytest.mark.parametrize("valkey_is_there", [True, False], ids=["valkey", "no valkey"])
async def test_a_revoked_key_is_refused_by_all_processes(
    house: House, valkey_is_there: bool
) -> None:
    org = await house.org()
    admin = org.as_(Role.ADMIN)
    with house.serving() as daemon:
        async with channels(daemon.address, 12) as opened:
            stub: Any = IdentityServiceStub(opened[0])
            made = await stub.CreateApiKey(
                identity.CreateApiKeyRequest(display_name="short-lived", role=1),  # type: ignore[arg-type]
                metadata=admin,
                timeout=TIMEOUT_S,
            )
            key: Metadata = (("authorization", f"Bearer {made.secret}"),)
            if not valkey_is_there:
                house.valkey.kill()
                await asyncio.sleep(2)  # the link is known to be gone
            warm = [outcome(who_am_i(channel, key)) for channel in opened]
            assert set(await asyncio.gather(*warm)) == {"OK"}
            await stub.RevokeApiKey(
                identity.RevokeApiKeyRequest(key_id=made.api_key.key_id),
                metadata=admin,
                timeout=TIMEOUT_S,
            )
            await asyncio.sleep(REVOKED_WITHIN_S)
            after = [await outcome(who_am_i(channel, key)) for channel in opened]
    assert all(each.startswith("UNAUTHENTICATED") for each in after), after


# ---- what it depends on ----


async def test_postgresql_frozen_and_thawed(house: House) -> None:
    org = await house.org()
    admin = org.as_(Role.ADMIN)
    with house.serving(processes=1) as daemon:
        async with channels(daemon.address, 1) as (channel,):
            assert await outcome(list_users(channel, admin)) == "OK"
            house.postgres.freeze()
            started = time.monotonic()
            calls = [outcome(list_users(channel, admin, 1.5)) for _ in range(20)]
            codes = {each.split(":")[0] for each in await asyncio.gather(*calls)}
            assert time.monotonic() - started < 1.5 + GRACE_S
            assert codes <= {"DEADLINE_EXCEEDED", "UNAVAILABLE"}
            async with asyncio.timeout(5):
                while await ready(channel):
                    await asyncio.sleep(0.05)
            house.postgres.thaw()
            thawed = time.monotonic()
            async with asyncio.timeout(SERVING_WITHIN_S):
                while not await ready(channel):
                    await asyncio.sleep(0.05)
                while await outcome(list_users(channel, admin, 1)) != "OK":
                    await asyncio.sleep(0.05)
            assert time.monotonic() - thawed < SERVING_WITHIN_S


async def test_postgresql_killed_and_started(house: House) -> None:
    org = await house.org()
    admin = org.as_(Role.ADMIN)
    with house.serving(processes=1) as daemon:
        async with channels(daemon.address, 1) as (channel,):
            assert await outcome(list_users(channel, admin)) == "OK"
            await asyncio.to_thread(house.postgres.kill)
            meanwhile = [await outcome(list_users(channel, admin, 2)) for _ in range(5)]
            assert {each.split(":")[0] for each in meanwhile} <= {
                "UNAVAILABLE",
                "DEADLINE_EXCEEDED",
            }, meanwhile
            await asyncio.to_thread(house.postgres.start)
            async with asyncio.timeout(SERVING_WITHIN_S):
                while await outcome(list_users(channel, admin, 1)) != "OK":
                    await asyncio.sleep(0.05)


async def test_backends_killed(house: House) -> None:
    org = await house.org()
    admin = org.as_(Role.ADMIN)
    with house.serving(processes=1) as daemon:
        async with channels(daemon.address, 1) as (channel,):
            assert await outcome(list_users(channel, admin)) == "OK"
            connection = await asyncpg.connect(house.url)
            ended = await connection.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE application_name LIKE 'trunkline-%'"
            )
            await connection.close()
            assert ended >= 3
            async with asyncio.timeout(SERVING_WITHIN_S):
                while await outcome(list_users(channel, admin, 1)) != "OK":
                    await asyncio.sleep(0.02)


async def test_a_primary_that_becomes_read_only(house: House) -> None:
    org = await house.org()
    admin = org.as_(Role.ADMIN)
    with house.serving(processes=1) as daemon:
        async with channels(daemon.address, 1) as (channel,):
            assert await outcome(create_user(channel, admin, "ada")) == "OK"
            await _set_read_only(house.url, True)
            refused = await outcome(create_user(channel, admin, "bea"))
            assert refused.startswith("UNAVAILABLE"), refused
            await _set_read_only(house.url, False)
            async with asyncio.timeout(SERVING_WITHIN_S):
                while await outcome(create_user(channel, admin, "cleo")) != "OK":
                    await asyncio.sleep(0.05)


async def _set_read_only(url: str, read_only: bool) -> None:
    connection = await asyncpg.connect(
        url, server_settings={"default_transaction_read_only": "off"}
    )
    value = "on" if read_only else "off"
    await connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()
    observer = await asyncpg.connect(url)
    async with asyncio.timeout(5):
        while await observer.fetchval("SHOW default_transaction_read_only") != value:
            await asyncio.sleep(0.02)
    await observer.close()


async def test_validation_survives_valkey(house: House) -> None:
    org = await house.org()
    agent = org.as_(Role.AGENT)
    outcomes: Counter[str] = Counter()
    stop = asyncio.Event()

    async def load(channel: grpc.aio.Channel) -> None:
        while not stop.is_set():
            outcomes[await outcome(validate(channel, agent))] += 1
            await asyncio.sleep(0.01)

    with house.serving() as daemon:
        async with channels(daemon.address, 4) as opened:
            running = [asyncio.ensure_future(load(channel)) for channel in opened]
            await asyncio.sleep(0.5)
            await asyncio.to_thread(house.valkey.kill)
            await asyncio.sleep(2)
            await asyncio.to_thread(house.valkey.start)
            await asyncio.sleep(1)
            stop.set()
            await asyncio.gather(*running)
    assert outcomes.total() > 100
    assert outcomes == {"OK": outcomes.total()}


async def test_a_collector_that_is_gone_costs_no_call(house: House) -> None:
    org = await house.org()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # never listens
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with house.serving(
            processes=1, TRUNKLINE_OTLP_ENDPOINT=endpoint, TRUNKLINE_TRACE_RATIO="1"
        ) as daemon:
            async with channels(daemon.address, 1) as (channel,):
                slowest = 0.0
                for _ in range(200):
                    started = time.monotonic()
                    assert await outcome(who_am_i(channel, org.as_(Role.ADMIN))) == "OK"
                    slowest = max(slowest, time.monotonic() - started)
            assert slowest < 1
            assert await asyncio.to_thread(daemon.stop) == 0


# ---- the other commands ----


@pytest.fixture
def variables(database_url: str, redis_url: str) -> Mapping[str, str]:
    return environment(database_url, redis_url)


async def test_healthcheck(variables: Mapping[str, str], tmp_path: Path) -> None:
    with Daemon(tmp_path / "log", variables, "serve", "--processes", "1", "--port", "0") as daemon:
        asked = ("healthcheck", "--address", daemon.address)
        assert (await command(variables, *asked))[:2] == (0, "serving\n")
        service = ("--service", "trunkline.api.members.v1.MemberService")
        assert (await command(variables, *asked, *service))[:2] == (0, "serving\n")
        await asyncio.to_thread(daemon.stop)
        assert (await command(variables, *asked))[:2] == (1, "not serving\n")


async def test_doctor(variables: Mapping[str, str]) -> None:
    code, out, err = await command({**variables, "TRUNKLINE_PORT": "0"}, "doctor")
    assert code == 0, out
    assert err == ""
    for subject in ("PostgreSQL", "migrations"):
        assert subject.lower() in out.lower()
    gone = {**variables, "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing"}
    code, out, err = await command(gone, "doctor")
    assert code == 1
    assert "Traceback" not in out + err


async def test_config_show(variables: Mapping[str, str], tmp_path: Path) -> None:
    secret = tmp_path / "pepper"
    secret.write_text(variables["TRUNKLINE_KEY_PEPPER"])
    given = {name: v for name, v in variables.items() if name != "TRUNKLINE_KEY_PEPPER"}
    given["TRUNKLINE_KEY_PEPPER_FILE"] = str(secret)
    code, out, _ = await command(given, "config", "show", "--origin")
    assert code == 0
    lines = dict(line.split(" = ", 1) for line in out.splitlines())
    assert lines["key_pepper"] == f"**********  (file {secret})"
    assert lines["pool_size"] == "4  (environment TRUNKLINE_POOL_SIZE)"
    assert lines["drain_grace_s"] == "10.0  (environment TRUNKLINE_DRAIN_GRACE_S)"
    assert lines["handshake_timeout_s"] == "10.0  (default)"
    assert variables["TRUNKLINE_KEY_PEPPER"] not in out
    assert variables["DATABASE_URL"] not in out


async def test_wrong_settings_are_one_line_each(variables: Mapping[str, str]) -> None:
    wrong = {**variables, "TRUNKLINE_POOL_SIZE": "0", "TRUNKLINE_PAGE_SECRET": "short"}
    code, out, err = await command(wrong, "serve")
    assert (code, out) == (78, "")
    assert "pool_size" in err
    assert "page_secret" in err
    assert "Traceback" not in err


async def test_migrate(variables: Mapping[str, str], empty_database_url: str) -> None:
    fresh = {**variables, "DATABASE_URL": empty_database_url}
    code, out, _ = await command(fresh, "migrate", "up", "--dry-run")
    assert (code, out.splitlines()[0]) == (0, "would apply 0001_identity")
    assert (await command(fresh, "migrate", "status"))[1].split()[:2] == [
        "0001_identity",
        "PENDING",
    ]
    assert (await command(fresh, "migrate", "up"))[1].startswith("applied 0001_identity\n")
    assert (await command(fresh, "migrate", "up"))[:2] == (0, "nothing to do\n")
    assert (await command(fresh, "migrate", "verify"))[:2] == (0, "")


async def test_admin_makes_the_first_organisation(
    variables: Mapping[str, str], tmp_path: Path
) -> None:
    org = ("admin", "create-org", "--slug", "acme", "--name", "Acme")
    assert (await command(variables, *org))[0] == 0
    code, _, err = await command(variables, *org)
    assert code == 78
    assert "Traceback" not in err
    user = ("admin", "create-user", "--org", "acme", "--email", "ada@example.org")
    code, out, _ = await command(variables, *user, "--name", "Ada", "--role", "ADMIN")
    password = out.split("password = ")[1].strip()
    key = ("admin", "create-key", "--org", "acme", "--name", "first", "--role", "ADMIN")
    secret = (await command(variables, *key))[1].split("secret = ")[1].strip()
    with Daemon(tmp_path / "log", variables, "serve", "--processes", "1", "--port", "0") as daemon:
        async with channels(daemon.address, 1) as (channel,):
            metadata = (("authorization", f"Bearer {secret}"),)
            assert await outcome(who_am_i(channel, metadata)) == "OK"
            stub: Any = IdentityServiceStub(channel)
            session = await stub.Login(
                identity.LoginRequest(org_slug="acme", email="ada@example.org", password=password),
                timeout=TIMEOUT_S,
            )
            metadata = (("authorization", f"Bearer {session.tokens.access_token}"),)
            assert await outcome(who_am_i(channel, metadata)) == "OK"
            assert (await command(variables, "admin", "suspend-org", "--org", "acme"))[0] == 0
            await asyncio.sleep(REVOKED_WITHIN_S)
            refused = await outcome(who_am_i(channel, metadata))
            assert refused.startswith(StatusCode.PERMISSION_DENIED.name), refused
            assert (await command(variables, "admin", "resume-org", "--org", "acme"))[0] == 0
