"""`trunklined doctor`: what would stop this deployment from working, each with its remedy."""

from __future__ import annotations

import asyncio
import importlib.metadata
import resource
import shutil
import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import redis.asyncio
import redis.exceptions

from trunkline_server import doctor_database
from trunkline_server.findings import Check, Subject, Verdict, fail, kind, ok, warn

PYTHON_MIN = (3, 11)
GRPCIO_SERIES = "1.83."  # 1.84 and later do work for every registered method on each call
FILES_MIN = 2_048  # 1,000 connections, the pools, the files of the program
FILES_GOOD = 16_384
DISK_FREE_MIN = 1 << 30
DISK_FREE_GOOD_SHARE = 0.10
CHECK_TIMEOUT_S = 10.0
VALKEY_TIMEOUT_S = 2.0
VALKEY_SLOW_S = 0.05
CERTIFICATE_DAYS_GOOD = 14


async def run_checks(subject: Subject) -> list[Check]:
    """All checks, side by side; a check that breaks is a finding, not a crash."""
    groups: dict[str, Callable[[], Awaitable[Iterable[Check]]]] = {
        "versions": lambda: asyncio.to_thread(versions),
        "open files": lambda: asyncio.to_thread(open_files),
        "disk": lambda: asyncio.to_thread(disks, subject.disks),
        "ports": lambda: asyncio.to_thread(ports, subject.ports),
        "certificates": lambda: asyncio.to_thread(certificates, subject.certificates),
        "database": lambda: doctor_database.examine(subject),
        "valkey": lambda: valkey(subject.redis_url),
    }
    found = await asyncio.gather(*(_group(name, look) for name, look in groups.items()))
    return [check for group in found for check in group]


def exit_code(checks: Sequence[Check]) -> int:
    return 1 if any(check.verdict is Verdict.FAIL for check in checks) else 0


def render(checks: Sequence[Check]) -> str:
    width = max((len(check.name) for check in checks), default=0)
    lines: list[str] = []
    for check in checks:
        lines.append(f"{check.verdict.upper():<4}  {check.name:<{width}}  {check.finding}")
        if check.remedy:
            lines.append(f"      {'':<{width}}  -> {check.remedy}")
    return "\n".join(lines)


async def _group(name: str, look: Callable[[], Awaitable[Iterable[Check]]]) -> list[Check]:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return list(await look())
    except TimeoutError:
        return [
            fail(name, f"no answer in {CHECK_TIMEOUT_S:.0f} s", "Look whether it hangs, or what"
                 " stands between it and this machine.")
        ]  # fmt: skip
    except Exception as error:
        return [fail(name, f"could not be examined: {kind(error)}", "Report this as a defect.")]


def versions() -> list[Check]:
    running = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON_MIN:
        wanted = ".".join(map(str, PYTHON_MIN))
        python = fail("python", running, f"Run Trunkline on Python {wanted} or newer.")
    else:
        python = ok("python", running)
    grpcio = importlib.metadata.version("grpcio")
    if grpcio.startswith(GRPCIO_SERIES):
        return [python, ok("grpcio", grpcio)]
    return [
        python,
        warn("grpcio", grpcio, f"Install grpcio {GRPCIO_SERIES}x: other series serve fewer calls."),
    ]


def open_files() -> list[Check]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    finding = f"{soft} files may be open (at most {hard})"
    remedy = f"Raise it with `ulimit -n {FILES_GOOD}` or LimitNOFILE={FILES_GOOD} in the unit."
    if soft < FILES_MIN:
        return [fail("open files", finding, remedy)]
    return [warn("open files", finding, remedy) if soft < FILES_GOOD else ok("open files", finding)]


def disks(paths: Sequence[Path]) -> list[Check]:
    return [_disk(path) for path in paths]


def _disk(path: Path) -> Check:
    name = f"disk {path}"
    if not path.exists():
        return fail(name, "the directory does not exist", "Create it, or correct its setting.")
    usage = shutil.disk_usage(path)
    share = usage.free / usage.total
    finding = f"{usage.free / (1 << 30):.1f} GiB free ({share:.0%})"
    if usage.free < DISK_FREE_MIN:
        return fail(name, finding, "Free some space before PostgreSQL stops writing.")
    if share < DISK_FREE_GOOD_SHARE:
        return warn(name, finding, "Free some space, or add some.")
    return ok(name, finding)


def ports(addresses: Sequence[tuple[str, int]]) -> list[Check]:
    return [_port(host, port) for host, port in addresses if port]


def _port(host: str, port: int) -> Check:
    name = f"port {port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return warn(
            name,
            f"{host}:{port} cannot be bound: {kind(error)}",
            "Fine when trunklined runs already; else stop what holds it, or choose another port.",
        )
    return ok(name, f"{host}:{port} is free")


def certificates(paths: Sequence[Path]) -> list[Check]:
    return [_certificate(path) for path in paths]


def _certificate(path: Path) -> Check:
    from cryptography import x509

    name = f"certificate {path.name}"
    try:
        leaf = x509.load_pem_x509_certificates(path.read_bytes())[0]
    except (OSError, ValueError, IndexError) as error:
        return fail(name, f"cannot be read: {kind(error)}", "Give the path of a PEM chain.")
    days = (leaf.not_valid_after_utc - datetime.now(UTC)).total_seconds() / 86_400
    finding = f"valid for {days:.0f} more days"
    if days <= 0:
        return fail(name, "expired", "Renew it; a running server takes the new file by itself.")
    if days < CERTIFICATE_DAYS_GOOD:
        return warn(name, finding, "Renew it; a running server takes the new file by itself.")
    return ok(name, finding)


async def valkey(url: str | None) -> list[Check]:
    if url is None:
        return [
            warn("valkey", "not configured", "Set TRUNKLINE_REDIS_URL: without it limits and"
                 " revocations hold for one process only.")
        ]  # fmt: skip
    client = redis.asyncio.Redis.from_url(
        url, socket_timeout=VALKEY_TIMEOUT_S, socket_connect_timeout=VALKEY_TIMEOUT_S
    )
    try:
        started = time.perf_counter()
        await client.ping()
        took_s = time.perf_counter() - started
        server = await client.info("server")
        memory = await client.info("memory")
    except (redis.exceptions.RedisError, OSError, ssl.SSLError) as error:
        return [
            fail("valkey", f"no answer: {kind(error)}", "Start Valkey, or correct"
                 " TRUNKLINE_REDIS_URL; validation is served without it, limits are local.")
        ]  # fmt: skip
    finally:
        await client.aclose()
    return list(_valkey(took_s, server, memory))


def _valkey(
    took_s: float, server: Mapping[str, object], memory: Mapping[str, object]
) -> Iterable[Check]:
    version = server.get("valkey_version") or server.get("redis_version") or "unknown"
    finding = f"version {version}, answered in {took_s * 1000:.1f} ms"
    if took_s > VALKEY_SLOW_S:
        yield warn("valkey", finding, "Bring it nearer: calls give up on it early.")
    else:
        yield ok("valkey", finding)
    policy, limit = memory.get("maxmemory_policy"), memory.get("maxmemory")
    if limit and policy == "noeviction":
        yield warn(
            "valkey memory",
            "full memory refuses writes (noeviction)",
            "Set maxmemory-policy to volatile-lru: every key that Trunkline keeps may be lost.",
        )
