"""Creates and drops databases on a PostgreSQL server, from code with or without an event loop."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg

CONNECT_TIMEOUT_S = 10.0

_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_EXISTS = "SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)"


def with_database(url: str, name: str) -> str:
    """The URL of another database on the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{_checked(name)}"))


def create_database(url: str, name: str, template: str | None = None) -> str:
    """Create a database, a copy of the template when one is named; returns its URL."""
    source = f" TEMPLATE {_checked(template)}" if template else ""
    _fetchval(url, f"CREATE DATABASE {_checked(name)}{source}")
    return with_database(url, name)


def ensure_database(url: str, name: str) -> str:
    """Create a database unless it is there; returns its URL."""
    if not _fetchval(url, _EXISTS, _checked(name)):
        return create_database(url, name)
    return with_database(url, name)


def drop_database(url: str, name: str) -> None:
    """Drop a database, whoever is connected to it."""
    _fetchval(url, f"DROP DATABASE IF EXISTS {_checked(name)} WITH (FORCE)")


def _checked(name: str) -> str:
    # These names become part of a statement: PostgreSQL takes no parameter there.
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a plain database name: {name!r}")
    return name


def _fetchval(url: str, statement: str, *arguments: str) -> Any:
    async def run() -> Any:
        connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT_S)
        try:
            return await connection.fetchval(statement, *arguments)
        finally:
            await connection.close()

    # A thread of its own: the caller's may be running an event loop.
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, run()).result()
