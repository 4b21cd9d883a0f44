"""The product as a bench needs it: PostgreSQL and Valkey of its own, migrated, with a tenant."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import asyncpg
from argon2 import PasswordHasher
from argon2.low_level import Type
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench import load
from bench.histogram import Histogram
from bench.process import READY, Server, ask, running
from trunkline_server.identity import rules
from trunkline_server.identity.authenticator import PURPOSE_API_KEY
from trunkline_server.identity.passwords import LANES, MEMORY_KIB, PASSES
from trunkline_server.ids import uuid7
from trunkline_server.local import LocalStack
from trunkline_server.migrate import migrate_up
from trunkline_server.rpc.caller import Role

ORG = "bench"
# Finite, so that buckets are counted and settled as ever, and never reached by a bench.
AMPLE = {"cost_per_second": 1_000_000, "actor_cost_per_second": 1_000_000}
QUOTA_READ_S = 0.5
PASSWORD = "Nine-Lives-Of-Benches"


@dataclass(frozen=True, slots=True)
class Stack:
    """Both engines and what a server process needs in its environment."""

    database_url: str
    redis_url: str
    postgres_pid: int | None  # None where DATABASE_URL named a server that is not ours
    valkey_pid: int | None
    environment: Mapping[str, str]
    pepper: bytes

    @property
    def pids(self) -> list[int]:
        return [pid for pid in (self.postgres_pid, self.valkey_pid) if pid is not None]


@dataclass(frozen=True, slots=True)
class Tenant:
    org_id: UUID
    slug: str
    api_keys: Mapping[Role, str]
    emails: tuple[str, ...]

    def bearer(self, role: Role = Role.AGENT) -> dict[str, str]:
        return {"authorization": f"Bearer {self.api_keys[role]}"}


@contextmanager
def stack() -> Iterator[Stack]:
    """A short path: a unix socket's name has 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="tl-bench-"))
    try:
        local = LocalStack(directory)
        with local as urls:
            asyncio.run(migrate_up(urls.database_url))
            pepper = secrets.token_bytes(32)
            yield Stack(
                database_url=urls.database_url,
                redis_url=urls.redis_url,
                postgres_pid=local.postgres.pid if local.postgres else None,
                valkey_pid=local.valkey.pid if local.valkey else None,
                environment=_environment(urls.database_url, urls.redis_url, pepper),
                pepper=pepper,
            )
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _environment(database_url: str, redis_url: str, pepper: bytes) -> dict[str, str]:
    signing_key = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return {
        "TRUNKLINE_ENVIRONMENT": "production",
        "TRUNKLINE_DATABASE_URL": database_url,
        "TRUNKLINE_REDIS_URL": redis_url,
        "TRUNKLINE_KEY_PEPPER": pepper.hex(),
        "TRUNKLINE_TOKEN_KEY": signing_key.decode(),
        "TRUNKLINE_PAGE_SECRET": secrets.token_hex(32),
        "TRUNKLINE_LOG_LEVEL": "warning",
    }


@contextmanager
def server(on: Stack, module: str, *args: str, **settings: str) -> Iterator[Server]:
    """A process of `module` with the stack's settings; `settings` overrides TRUNKLINE_ ones."""
    with _started(on, [sys.executable, "-m", module, *args], module, settings) as (_, started):
        yield started


@contextmanager
def _started(
    on: Stack, command: list[str], name: str, settings: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[str], Server]]:
    given = {f"TRUNKLINE_{key.upper()}": value for key, value in settings.items()}
    with running(command, name, env={**on.environment, **given}) as (child, line):
        yield child, Server(name, child.pid, line.removeprefix(READY).strip())


def greet(server: Server, call: load.Call) -> None:
    """The first calls of a credential: a server reads an organisation's quota after them."""
    load.run(server.address, call, calls=50)
    time.sleep(QUOTA_READ_S)


@dataclass(frozen=True, slots=True)
class Watched:
    """A server process of the product with a probe of its event loop's lag inside."""

    server: Server
    child: subprocess.Popen[str]

    def start_lag(self) -> None:
        ask(self.child, "lag")

    def stop_lag(self) -> Histogram:
        """What was sampled since `start_lag`."""
        buckets = json.loads(ask(self.child, "stop"))
        return Histogram({int(bucket): count for bucket, count in buckets.items()})


@contextmanager
def watched(on: Stack, **settings: str) -> Iterator[Watched]:
    """The product's own server, one process."""
    module = "bench.servers.product"
    with _started(on, [sys.executable, "-m", module], module, settings) as (child, server):
        yield Watched(server, child)


_ORG = "INSERT INTO orgs (org_id, slug, display_name, quotas) VALUES ($1, $2, $2, $3)"
_KEY = "INSERT INTO api_keys (org_id, key_id, display_name, role) VALUES ($1, $2, 'Bench', $3)"
_SECRET = "INSERT INTO api_key_secrets (org_id, prefix, key_id, digest) VALUES ($1, $2, $3, $4)"
_USER = """
INSERT INTO users (org_id, user_id, email, display_name, role, password_hash)
VALUES ($1, $2, $3, 'Bench', 'AGENT', $4)
"""


def seed(
    on: Stack, *, slug: str = ORG, users: int = 0, quotas: Mapping[str, int] | None = None
) -> Tenant:
    """An organisation with an API key per role and users that share one password."""
    return asyncio.run(_seed(on, slug, users, {**AMPLE, **(quotas or {})}))


async def _seed(on: Stack, slug: str, users: int, quotas: Mapping[str, int]) -> Tenant:
    org_id, peppers = uuid7(), rules.Peppers([on.pepper])
    emails = tuple(f"agent{number}@{slug}.example" for number in range(users))
    hasher = PasswordHasher(
        time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES, type=Type.ID
    )
    stored = hasher.hash(rules.normalised_password(PASSWORD))
    api_keys = {}
    database = await asyncpg.connect(on.database_url)
    try:
        await database.execute(_ORG, org_id, slug, json.dumps(quotas))
        for role in Role:
            prefix, key = rules.api_key(secrets.token_bytes(48))
            key_id, digest = uuid7(), peppers.digest(PURPOSE_API_KEY, key.encode())
            await database.execute(_KEY, org_id, key_id, role.name)
            await database.execute(_SECRET, org_id, prefix, key_id, digest)
            api_keys[role] = key
        await database.executemany(_USER, [(org_id, uuid7(), email, stored) for email in emails])
    finally:
        await database.close()
    return Tenant(org_id, slug, api_keys, emails)
