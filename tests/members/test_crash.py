"""A process that is killed: what its log of validations loses, and what it does not."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import asyncpg
import grpc.aio

from tests.daemons import Daemon, environment
from tests.members.desk import Desk
from tests.running import make_org
from trunkline_server.members.lookups import FLUSH_INTERVAL_S
from trunkline_server.rpc.caller import Role

LOGGED = "SELECT coalesce(sum(validations), 0) FROM validation_log"
# A flush that was under way, and a machine that others use.
SLACK_S = 0.5


async def test_a_killed_process_loses_at_most_its_last_interval(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    org = await make_org(database_url, "north")
    variables = environment(database_url, redis_url)
    command = ("serve", "--processes", "1", "--port", "0")
    answered: list[float] = []
    with Daemon(tmp_path / "log", variables, *command) as daemon:
        async with grpc.aio.insecure_channel(daemon.address) as channel:
            desk = Desk(channel, org, database_url)
            until = time.monotonic() + 2 * FLUSH_INTERVAL_S + SLACK_S
            while time.monotonic() < until:
                await desk.validate("M-404", Role.ADMIN)
                answered.append(time.monotonic())
        (child,) = daemon.children()
        killed = time.monotonic()
        os.kill(child, signal.SIGKILL)
    safe = sum(at < killed - FLUSH_INTERVAL_S - SLACK_S for at in answered)
    connection = await asyncpg.connect(database_url)
    logged = await connection.fetchval(LOGGED)
    await connection.close()
    assert 0 < safe <= logged <= len(answered)
