"""trunklined: the daemon and its operations. Parents of processes never import grpc."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from trunkline_server import __version__
from trunkline_server.config import CommonSettings, ServeSettings, WorkerSettings, shown
from trunkline_server.supervisor import EXIT_CONFIG, Parent, Supervisor, reserve

S = TypeVar("S", bound=CommonSettings)
T = TypeVar("T")

CLOSE_TIMEOUT_S = 15.0
ROLES = ("AGENT", "TRAINER", "REGISTRAR", "ADMIN", "SYSTEM")


class Refused(click.ClickException):
    """One line on what is wrong and what to do; nothing of a traceback."""

    exit_code = EXIT_CONFIG


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """The Trunkline server and its operations."""


@main.command()
@click.option("--processes", type=click.IntRange(1, 256), help="Default: the number of cores.")
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), help="0 takes a free port.")
@click.option("--child", is_flag=True, hidden=True)
def serve(processes: int | None, host: str | None, port: int | None, child: bool) -> None:
    """Serve gRPC on one port with supervised processes."""
    settings = _settings(ServeSettings, processes=processes, host=host, port=port)
    if child:
        sys.exit(_run(_serve_child(settings)))
    count = settings.processes or os.cpu_count() or 1
    reservation = reserve(settings.host, settings.port)
    command = [
        sys.executable, "-m", "trunkline_server", "serve", "--child",
        "--host", settings.host, "--port", str(reservation.port), "--processes", str(count),
    ]  # fmt: skip
    address = f"{settings.host}:{reservation.port}"
    supervisor = Supervisor(
        command,
        processes=count,
        reservation=reservation,
        # What the drain may take, and then some for buffers, pools and telemetry.
        drain_timeout_s=settings.drain_wait_s + settings.drain_grace_s + CLOSE_TIMEOUT_S,
        on_ready=lambda: click.echo(f"serving on {address} with {count} processes"),
    )
    sys.exit(_supervise(supervisor, "trunkline-serve", settings.log_level))


@main.command()
@click.option("--processes", type=click.IntRange(1, 256), help="Default: the number of cores.")
@click.option("--child", is_flag=True, hidden=True)
def worker(processes: int | None, child: bool) -> None:
    """Work on imports, roll-ups, publishing, retention and sealing."""
    settings = _settings(WorkerSettings, processes=processes)
    if child:
        sys.exit(_run(_work_child(settings)))
    count = settings.processes or os.cpu_count() or 1
    command = [
        sys.executable, "-m", "trunkline_server", "worker", "--child", "--processes", str(count),
    ]  # fmt: skip
    supervisor = Supervisor(
        command,
        processes=count,
        on_ready=lambda: click.echo(f"working with {count} processes"),
    )
    sys.exit(_supervise(supervisor, "trunkline-worker", settings.log_level))


def _supervise(supervisor: Supervisor, service: str, log_level: str) -> int:
    from trunkline_server import logs

    handler = logs.set_up(service, log_level)
    try:
        return asyncio.run(supervisor.run())
    finally:
        handler.close()


async def _serve_child(settings: ServeSettings) -> int:
    from trunkline_server import logs
    from trunkline_server.app import Server

    handler = logs.set_up("trunkline-serve", settings.log_level)
    parent = Parent.from_environment()
    stop = _stop_on_signals()
    index = parent.index if parent else 0
    server = await Server.start(settings, index=index, processes=settings.processes or 1)
    if parent:
        parent.follow()
        parent.ready()
    await stop.wait()
    drained = await server.stop()
    handler.close()
    return 0 if drained else 1


async def _work_child(settings: WorkerSettings) -> int:
    from trunkline_server import logs
    from trunkline_server.app import Worker

    handler = logs.set_up("trunkline-worker", settings.log_level)
    parent = Parent.from_environment()
    stop = _stop_on_signals()
    worker = await Worker.start(settings, index=parent.index if parent else 0)
    running = asyncio.create_task(worker.run())
    if parent:
        parent.follow()
        parent.ready()
    asked = asyncio.create_task(stop.wait())
    await asyncio.wait({running, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    worker.runner.stop()
    await running
    handler.close()
    return 0


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _run(main: Coroutine[Any, Any, int]) -> int:
    import uvloop

    return uvloop.run(main)


# ---- migrations ----


@main.group()
def migrate() -> None:
    """Bring the database's schema up to date."""


@migrate.command()
@click.option("--dry-run", is_flag=True, help="Say what would be applied.")
def up(dry_run: bool) -> None:
    """Apply what is pending, one runner at a time."""
    from trunkline_server.migrate import MigrationError, migrate_up

    try:
        applied = asyncio.run(migrate_up(_owner_url(), dry_run=dry_run))
    except MigrationError as error:
        raise Refused(str(error)) from None
    if not dry_run:
        from trunkline_server.upkeep import make_partitions

        asyncio.run(make_partitions(_owner_url()))
    for migration in applied:
        word = "would apply" if dry_run else "applied"
        click.echo(f"{word} {migration.number:04d}_{migration.name}")
    if not applied:
        click.echo("nothing to do")


@migrate.command()
def status() -> None:
    """List the migrations and which of them are applied."""
    from trunkline_server.migrate import status as read_status

    for line in asyncio.run(read_status(_owner_url())):
        click.echo(f"{line.number:04d}_{line.name:<30} {line.state}")


@migrate.command()
def verify() -> None:
    """Check that what was applied is what the files say. Exit 1 where it is not."""
    from trunkline_server.migrate import verify as find_problems

    problems = asyncio.run(find_problems(_owner_url()))
    for problem in problems:
        click.echo(problem)
    sys.exit(1 if problems else 0)


def _owner_url() -> str:
    """Migrations run as the owner of the schema, who is not the role that serves."""
    url = os.environ.get("MIGRATE_DATABASE_URL") or os.environ.get("DATABASE_URL")
    if not url:
        raise Refused("Set MIGRATE_DATABASE_URL or DATABASE_URL to the database to migrate.")
    return url


# ---- looking after it ----


@main.command()
def doctor() -> None:
    """Look for what is wrong and say what to do about it. Exit 1 when something is."""
    from trunkline_server import doctor as checks
    from trunkline_server.app import subject

    subject_of = subject(_settings(ServeSettings), _settings(WorkerSettings))
    findings = asyncio.run(checks.run_checks(subject_of))
    click.echo(checks.render(findings))
    sys.exit(checks.exit_code(findings))


@main.group()
def config() -> None:
    """Look at the settings."""


@config.command("show")
@click.option("--origin", is_flag=True, help="Say where each value came from.")
@click.option("--command", type=click.Choice(["serve", "worker"]), default="serve")
def config_show(origin: bool, command: str) -> None:
    """Print every setting in force; secrets as stars."""
    kind = ServeSettings if command == "serve" else WorkerSettings
    for row in shown(_settings(kind)):
        click.echo(f"{row.name} = {row.value}" + (f"  ({row.origin})" if origin else ""))


@main.command()
@click.option("--address", help="Default: the address that `serve` would listen on.")
@click.option("--service", default="", help="A service's full name; empty asks for the process.")
@click.option("--ca", type=click.Path(path_type=Path), help="Authority to trust, for TLS.")
def healthcheck(address: str | None, service: str, ca: Path | None) -> None:
    """Ask a server for its health. Exit 0 when it serves, 1 when it does not."""
    from trunkline_server.healthcheck import ProbeTls, healthy

    if address is None:
        port = os.environ.get("TRUNKLINE_PORT", str(ServeSettings.model_fields["port"].default))
        address = f"127.0.0.1:{port}"
    well = healthy(address, service=service, tls=ProbeTls(ca) if ca else None)
    click.echo("serving" if well else "not serving")
    sys.exit(0 if well else 1)


# ---- administration ----


@main.group()
def admin() -> None:
    """Create what no RPC can: organisations and their first users and keys."""


@admin.command("create-org")
@click.option("--slug", required=True, help="The short name people log in with.")
@click.option("--name", required=True, help="The organisation's name.")
def create_org(slug: str, name: str) -> None:
    """Create an organisation."""
    from trunkline_server.identity import admin as identity_admin

    click.echo(_with_database(lambda db: identity_admin.create_org(db, slug, name)))


@admin.command("create-user")
@click.option("--org", required=True, help="The organisation's slug.")
@click.option("--email", required=True)
@click.option("--name", required=True, help="The user's name.")
@click.option("--role", type=click.Choice(ROLES[:4]), required=True)
def create_user(org: str, email: str, name: str, role: str) -> None:
    """Create a user; prints the password, once."""
    from trunkline_server.identity import admin as identity_admin
    from trunkline_server.identity.passwords import Passwords
    from trunkline_server.rpc.caller import Role

    new = _with_database(
        lambda db: identity_admin.create_user(
            db, Passwords(threads=1), org, email=email, display_name=name, role=Role[role]
        )
    )
    click.echo(f"user_id = {new.user_id}\npassword = {new.password}")


@admin.command("create-key")
@click.option("--org", required=True, help="The organisation's slug.")
@click.option("--name", required=True, help="What the key is for.")
@click.option("--role", type=click.Choice(ROLES), required=True)
def create_key(org: str, name: str, role: str) -> None:
    """Create an API key; prints the secret, once."""
    from trunkline_server.app import peppers
    from trunkline_server.identity import admin as identity_admin
    from trunkline_server.rpc.caller import Role

    settings = _settings(ServeSettings)
    new = _with_database(
        lambda db: identity_admin.create_key(
            db, peppers(settings), org, display_name=name, role=Role[role]
        )
    )
    click.echo(f"key_id = {new.key_id}\nsecret = {new.secret}")


@admin.command("suspend-org")
@click.option("--org", required=True, help="The organisation's slug.")
def suspend_org(org: str) -> None:
    """Refuse all calls of an organisation, within a second."""
    _set_org_state(org, suspended=True)


@admin.command("resume-org")
@click.option("--org", required=True, help="The organisation's slug.")
def resume_org(org: str) -> None:
    """Serve a suspended organisation again."""
    _set_org_state(org, suspended=False)


def _set_org_state(org: str, *, suspended: bool) -> None:
    from trunkline_server.identity import admin as identity_admin
    from trunkline_server.link import Link

    link = Link(_settings(ServeSettings).redis_url.get_secret_value())
    _with_database(lambda db: identity_admin.set_org_state(db, link, org, suspended=suspended))


def _with_database(work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    from trunkline_server.db import Database
    from trunkline_server.identity.admin import AdminRefused

    settings = _settings(ServeSettings)

    async def run() -> T:
        db = await Database.open(
            settings.database_url.get_secret_value(), pool_size=1, readers=1,
            application="trunklined-admin",
        )  # fmt: skip
        try:
            return await work(db)
        finally:
            await db.close()

    try:
        return asyncio.run(run())
    except AdminRefused as refused:
        raise Refused(str(refused)) from None


# ---- trying it out ----


@main.command()
@click.option("--directory", type=click.Path(path_type=Path), default=Path(".trunkline"))
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="0 takes a free port.")
def dev(directory: Path, port: int) -> None:
    """Start everything on this machine and leave it running. Not for production."""
    from trunkline_server.local import dev as local_dev

    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(local_dev.run(directory, port))


@main.command()
def demo() -> None:
    """Start everything, take a tour through a real client, stop everything."""
    from trunkline_server.local import demo as local_demo

    sys.exit(local_demo.run())


def _settings(kind: type[S], **given: object) -> S:
    """The settings in force; what is wrong with them as one line each."""
    try:
        return kind(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors()
        ]
        raise Refused("\n".join(lines)) from None


if __name__ == "__main__":
    main()
