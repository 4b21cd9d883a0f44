"""PostgreSQL and Valkey together, as `make dev`, `make demo` and the tests use them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from trunkline_server.local.postgres import Postgres
from trunkline_server.local.valkey import Valkey

DATABASE = "trunkline"


@dataclass(frozen=True, slots=True)
class StackUrls:
    """Where the two servers answer."""

    database_url: str
    redis_url: str


class LocalStack:
    """Servers of our own in a directory, unless DATABASE_URL or REDIS_URL name others.

    The servers end with this process, however it ends. A second stack in the same directory is
    refused with DirectoryBusy; in another directory it does not notice the first.
    """

    def __init__(
        self,
        directory: Path,
        *,
        durable: bool = True,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._database_url = environment.get("DATABASE_URL", "")
        self._redis_url = environment.get("REDIS_URL", "")
        self.postgres = None if self._database_url else Postgres(directory / "pg", durable=durable)
        self.valkey = None if self._redis_url else Valkey(directory / "valkey", durable=durable)

    def __enter__(self) -> StackUrls:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> StackUrls:
        """Start what is not running and say where it answers."""
        try:
            return StackUrls(database_url=self._start_postgres(), redis_url=self._start_valkey())
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop what was started here."""
        if self.valkey is not None:
            self.valkey.stop()
        if self.postgres is not None:
            self.postgres.stop()

    def _start_postgres(self) -> str:
        if self.postgres is None:
            return self._database_url
        self.postgres.start()
        return self.postgres.ensure_database(DATABASE)

    def _start_valkey(self) -> str:
        if self.valkey is None:
            return self._redis_url
        self.valkey.start()
        return self.valkey.url()
