"""The whole of Trunkline on this machine: servers, worker, an organisation with credentials."""

from __future__ import annotations

import asyncio
import os
import secrets
import select
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import click

from trunkline_server.db import Database
from trunkline_server.local.stack import LocalStack

ORG = "demo"
SERVE_PROCESSES = 2
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
_BANNER = """
    Trunkline, on this machine only. NOT FOR PRODUCTION:
    the secrets are in {directory}, the databases are tuned for trying things out.
"""


@dataclass(slots=True)
class House:
    """Starts everything in a directory and stops it again; the next start finds what lasts."""

    directory: Path
    port: int = 0
    address: str = ""
    credentials: dict[str, str] = field(default_factory=dict)  # by role
    _stack: LocalStack | None = None
    _environment: dict[str, str] = field(default_factory=dict)
    _children: list[subprocess.Popen[str]] = field(default_factory=list)

    def __enter__(self) -> House:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _start(self) -> None:
        from trunkline_server.migrate import migrate_up
        from trunkline_server.upkeep import make_partitions

        self.directory.mkdir(parents=True, exist_ok=True)
        self._stack = LocalStack(self.directory)
        urls = self._stack.start()
        self._environment = {
            **os.environ,
            "DATABASE_URL": urls.database_url,
            "REDIS_URL": urls.redis_url,
            "TRUNKLINE_ENVIRONMENT": "dev",
            "TRUNKLINE_LOG_LEVEL": os.environ.get("TRUNKLINE_LOG_LEVEL", "warning"),
            "TRUNKLINE_DRAIN_WAIT_S": "0",
            **self._secrets(),
        }
        asyncio.run(migrate_up(urls.database_url))
        asyncio.run(make_partitions(urls.database_url))
        self.credentials = asyncio.run(self._credentials(urls.database_url))
        self.address = self._serve()
        self._spawn("worker", "--processes", "1")

    def stop(self) -> None:
        for child in reversed(self._children):
            child.send_signal(signal.SIGTERM)
        for child in self._children:
            try:
                child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._children.clear()
        if self._stack is not None:
            self._stack.stop()

    def wait(self) -> int:
        """Until a part ends by itself; its exit code."""
        while True:
            for child in self._children:
                if (code := child.poll()) is not None:
                    return code
            time.sleep(0.2)

    def _serve(self) -> str:
        line = self._spawn(
            "serve", "--processes", str(SERVE_PROCESSES), "--host", "127.0.0.1",
            "--port", str(self.port),
        )  # fmt: skip
        return line.split()[2]  # serving on ADDRESS with N processes

    def _spawn(self, *command: str) -> str:
        """Starts a command and waits for the line that says it is ready."""
        child = subprocess.Popen(
            [sys.executable, "-m", "trunkline_server", *command],
            env=self._environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._children.append(child)
        assert child.stdout is not None
        ready, _, _ = select.select([child.stdout], [], [], READY_TIMEOUT_S)
        line = child.stdout.readline() if ready else ""
        if not line:
            raise RuntimeError(f"`trunklined {command[0]}` did not get ready; see its log above")
        return line

    def _secrets(self) -> Mapping[str, str]:
        """Made once and kept, readable by the owner alone."""
        path = self.directory / "secrets.toml"
        if not path.exists():
            from trunkline_server.identity.tokens import new_signing_key

            lines = {
                "TRUNKLINE_KEY_PEPPER": secrets.token_hex(32),
                "TRUNKLINE_PAGE_SECRET": secrets.token_hex(32),
                "TRUNKLINE_TOKEN_KEY": new_signing_key(),
            }
            content = "".join(f'{name} = """{value}"""\n' for name, value in lines.items())
            _write_private(path, content)
        return {name: str(value) for name, value in tomllib.loads(path.read_text()).items()}

    async def _credentials(self, database_url: str) -> dict[str, str]:
        """The demo organisation with one API key for each role."""
        from trunkline_server.identity import admin
        from trunkline_server.identity.rules import Peppers
        from trunkline_server.rpc.caller import Role

        path = self.directory / "credentials.toml"
        peppers = Peppers([bytes.fromhex(self._environment["TRUNKLINE_KEY_PEPPER"])])
        db = await Database.open(database_url, pool_size=1, readers=1, application="trunkline-dev")
        try:
            if not await _has_org(db):
                await admin.create_org(db, ORG, "Demo Mutual")
            elif path.exists():
                return {name: str(key) for name, key in tomllib.loads(path.read_text()).items()}
            keys = {
                role.name: (
                    await admin.create_key(
                        db, peppers, ORG, display_name=f"demo {role.name.lower()}", role=role
                    )
                ).secret
                for role in Role
            }
        finally:
            await db.close()
        _write_private(path, "".join(f'{name} = "{key}"\n' for name, key in keys.items()))
        return keys


_HAS_ORG = "SELECT auth_org($1) IS NOT NULL"


async def _has_org(db: Database) -> bool:
    async with db.system_tx() as tx:
        return bool(await tx.fetchval(_HAS_ORG, ORG))


def _write_private(path: Path, content: str) -> None:
    """All of it or nothing: a crash half-way must not leave half a file."""
    draft = path.with_suffix(".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content)
    draft.replace(path)


def run(directory: Path, port: int) -> int:
    signal.signal(signal.SIGTERM, _interrupt)
    click.echo(_BANNER.format(directory=directory))
    with House(directory, port) as house:
        click.echo(f"    address     {house.address}")
        for role, key in house.credentials.items():
            click.echo(f"    {role.lower():<11} {key}")
        click.echo("\n    Ctrl-C ends it; what was written stays.")
        return house.wait()


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
