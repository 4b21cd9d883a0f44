"""The doctor against a real PostgreSQL and Valkey, well and ill; and the probe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import grpc
import pytest

from trunkline_server import doctor
from trunkline_server.findings import Check, Role, Subject, Verdict
from trunkline_server.healthcheck import healthy
from trunkline_server.local.postgres import Postgres
from trunkline_server.local.valkey import Valkey
from trunkline_server.rpc.health import Health

APP = Role("trunkline_app", 20)
CANARY = "Wilhelmina-Canary"


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with Postgres(tmp_path_factory.mktemp("doctor"), durable=False) as running:
        yield running


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("valkey"), durable=False) as running:
        yield running


@pytest.fixture
async def database(postgres: Postgres) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(postgres.url())
    await connection.execute("CREATE ROLE trunkline_app NOLOGIN")
    yield connection
    await connection.execute("DROP TABLE IF EXISTS things; DROP ROLE IF EXISTS ordinary")
    await connection.execute("DROP OWNED BY trunkline_app; DROP ROLE trunkline_app")
    await connection.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Migrations of a release that has none yet."""
    return tmp_path


async def examined(subject: Subject) -> dict[str, Check]:
    return {check.name: check for check in await doctor.run_checks(subject)}


def subject_of(postgres: Postgres, folder: Path, **more: object) -> Subject:
    return Subject(postgres.url(), migrations=folder, roles=[APP], **more)  # type: ignore[arg-type]


async def test_a_well_deployment(
    postgres: Postgres, valkey: Valkey, database: object, folder: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    subject = subject_of(
        postgres,
        folder,
        redis_url=valkey.url(),
        ports=[("127.0.0.1", port)],
        disks=[folder],
    )
    found = await examined(subject)
    for name in ("python", "grpcio", "postgresql", "connections", "clock", "pooler", "pg_trgm"):
        assert found[name].verdict is Verdict.OK, found[name]
    for name in ("role trunkline_app", "row security", "migrations", "valkey", f"port {port}"):
        assert found[name].verdict is Verdict.OK, found[name]
    assert found["login role"].verdict is Verdict.WARN  # the embedded stack's superuser
    assert doctor.exit_code(list(found.values())) == 0
    assert all(check.remedy for check in found.values() if check.verdict is not Verdict.OK)
    assert "login role" in doctor.render(list(found.values()))


@pytest.mark.parametrize(
    ("illness", "name"),
    [
        ("ALTER ROLE trunkline_app SUPERUSER", "role trunkline_app"),
        ("ALTER ROLE trunkline_app BYPASSRLS", "role trunkline_app"),
        (
            "CREATE TABLE things (org_id uuid); ALTER TABLE things OWNER TO trunkline_app",
            "role trunkline_app",
        ),
        ("CREATE TABLE things (org_id uuid)", "row security"),
        (
            "CREATE TABLE things (org_id uuid); ALTER TABLE things ENABLE ROW LEVEL SECURITY",
            "row security",
        ),
    ],
)
async def test_isolation_that_is_not_there(
    postgres: Postgres,
    database: asyncpg.Connection[asyncpg.Record],
    folder: Path,
    illness: str,
    name: str,
) -> None:
    await database.execute(illness)
    found = await examined(subject_of(postgres, folder))
    assert found[name].verdict is Verdict.FAIL
    assert doctor.exit_code(list(found.values())) == 1


async def test_a_role_that_cannot_be_taken(
    postgres: Postgres, database: asyncpg.Connection[asyncpg.Record], folder: Path
) -> None:
    await database.execute("CREATE ROLE ordinary LOGIN PASSWORD 'x'")
    parts = urlsplit(postgres.url())
    url = urlunsplit(parts._replace(netloc=f"ordinary:x@127.0.0.1:{postgres.port}"))
    found = await examined(Subject(url, roles=[APP], migrations=folder))
    assert found["role trunkline_app"].finding == "cannot be taken"
    assert found["login role"].verdict is Verdict.OK
    await database.execute("GRANT trunkline_app TO ordinary")
    found = await examined(Subject(url, roles=[APP], migrations=folder))
    assert found["role trunkline_app"].verdict is Verdict.OK


async def test_more_connections_than_there_are(
    postgres: Postgres, database: object, folder: Path
) -> None:
    found = await examined(
        Subject(postgres.url(), roles=[Role("trunkline_app", 190)], migrations=folder)
    )
    assert found["connections"].verdict is Verdict.FAIL


async def test_pending_migrations(postgres: Postgres, database: object, folder: Path) -> None:
    (folder / "0001_first.sql").write_text("CREATE TABLE first (id int);\n")
    found = await examined(subject_of(postgres, folder))
    assert found["migrations"].finding == "1 pending"


async def test_a_database_that_is_away_says_no_password(folder: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        found = await examined(
            Subject(
                f"postgresql://someone:{CANARY}@{address}/db",
                redis_url=f"redis://:{CANARY}@{address}/0",
                migrations=folder,
            )
        )
    assert found["database"].verdict is Verdict.FAIL
    assert found["valkey"].verdict is Verdict.FAIL
    assert CANARY not in doctor.render(list(found.values()))


async def test_a_clock_that_is_off(
    postgres: Postgres, database: object, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline_server.doctor_database._CLOCK", "SELECT 0::float8")
    found = await examined(subject_of(postgres, folder))
    assert found["clock"].verdict is Verdict.FAIL


async def test_ports_disks_files_and_certificates(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        [port] = doctor.ports([("127.0.0.1", taken.getsockname()[1])])
    assert port.verdict is Verdict.WARN
    [missing] = doctor.disks([folder / "nowhere"])
    assert missing.verdict is Verdict.FAIL
    [broken] = doctor.certificates([folder / "nothing.pem"])
    assert broken.verdict is Verdict.FAIL


def test_too_few_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        [check] = doctor.open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert check.verdict is Verdict.FAIL


# A pooler in the small: it tells each client a process number of its own, as PgBouncer does.


async def pooled(postgres: Postgres) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, down = await asyncio.open_connection("127.0.0.1", postgres.port)
        requests = asyncio.create_task(copy(reader, down))
        try:
            while True:
                head = await up.readexactly(5)
                body = await up.readexactly(int.from_bytes(head[1:]) - 4)
                if head[:1] == b"K":
                    body = os.urandom(1).rjust(4, b"\0") + body[4:]
                writer.write(head + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
        finally:
            requests.cancel()
            down.close()

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await source.read(65_536):
                target.write(chunk)
                await target.drain()
            target.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield postgres.url().replace(f":{postgres.port}/", f":{server.sockets[0].getsockname()[1]}/")
    server.close()


async def test_a_pooler_is_noticed(postgres: Postgres, database: object, folder: Path) -> None:
    async for url in pooled(postgres):
        found = await examined(Subject(url, roles=[APP], migrations=folder))
        assert found["pooler"].finding == "PgBouncer or alike, pooling sessions"


async def test_the_probe(postgres: Postgres) -> None:
    async def reachable() -> None:
        if away:
            raise ConnectionError

    away = False
    health = Health(["s"], probe=reachable, interval_s=60)
    await health.start()
    server = grpc.aio.server()
    health.add_to(server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    assert await asyncio.to_thread(healthy, address)
    assert await asyncio.to_thread(healthy, address, service="s")
    health.drain()
    assert await asyncio.to_thread(healthy, address)
    assert not await asyncio.to_thread(healthy, address, service="s")
    assert not await asyncio.to_thread(healthy, address, service="unknown")
    await health.stop()
    await server.stop(0)
    assert not await asyncio.to_thread(healthy, address, timeout_s=1.0)
