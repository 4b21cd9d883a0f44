"""`trunkline stats` as a process, against a real server."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.running import Running
from tests.stats.conftest import Stats, call, count_everything
from trunkline_server.db import Database
from trunkline_server.rpc.caller import Role

WITHIN_S = 60


async def started(server: Running, stats: Stats, *words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "trunkline.cli", "stats", *words),
        env={
            **os.environ,
            "TRUNKLINE_ADDRESS": server.address,
            "TRUNKLINE_API_KEY": stats.org.keys[Role.ADMIN],
            "PYTHONUNBUFFERED": "1",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def said(server: Running, stats: Stats, *words: str) -> str:
    process = await started(server, stats, *words)
    out, err = await asyncio.wait_for(process.communicate(), WITHIN_S)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_series_are_drawn(
    server: Running, stats: Stats, worker_db: Database, tmp_path: Path
) -> None:
    now = datetime.now(UTC)
    await stats.record(*(call(now - timedelta(hours=n)) for n in (1, 1, 1, 20, 40)))
    await count_everything(worker_db, stats.org.org_id)
    drawn = await said(server, stats, "plot", "calls", "--interval", "hour")
    assert drawn.startswith("calls: count (count)")
    assert "█" in drawn and "not final: 0 late events" in drawn
    target = tmp_path / "calls.svg"
    await said(server, stats, "plot", "calls", "--value", "duration_p90", "--svg", str(target))
    assert "<polyline" in target.read_text(encoding="utf-8")


async def test_an_overview_is_watched(server: Running, stats: Stats, worker_db: Database) -> None:
    process = await started(server, stats, "overview", "--watch", "-o", "json")
    assert process.stdout is not None
    try:
        first = await asyncio.wait_for(process.stdout.readline(), WITHIN_S)
        assert b"finality" in first
        await stats.record(call(datetime.now(UTC)))
        await count_everything(worker_db, stats.org.org_id)
        server.server.stats.overviews._changed(str(stats.org.org_id))
        server.server.stats._wake_watchers(str(stats.org.org_id))
        second = await asyncio.wait_for(process.stdout.readline(), WITHIN_S)
        assert b'"active_agents"' in second or b'"activeAgents"' in second
    finally:
        process.kill()
        await process.communicate()
