"""A worker process for the tests to kill, freeze and stop: `python -m tests.jobs.worker_program`.

Each job adds its steps to `effects`, one fenced transaction a step, and resumes at its checkpoint.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

from tests.jobs.conftest import FAST
from trunkline_server.db import Database
from trunkline_server.jobs import Done, Lease, Outcome, Runner, Yield

_EFFECT = "INSERT INTO effects (job_id, step, pid) VALUES ($1, $2, $3)"


class Steps:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def __call__(self, lease: Lease) -> Outcome:
        if lease.payload.get("exit"):
            os._exit(9)
        steps = lease.payload.get("steps", 1)
        for step in range(lease.saved.get("step", 0), steps):
            if lease.should_yield():
                return Yield()
            await self._step(lease, step, last=step == steps - 1)
        return Done()

    async def _step(self, lease: Lease, step: int, *, last: bool) -> None:
        await asyncio.sleep(lease.payload.get("step_s", 0.0))
        async with self._db.tenant_tx(lease.org_id) as tx:
            await lease.fence(tx)
            await tx.execute(_EFFECT, lease.job_id, step, os.getpid())
            if stop_s := lease.payload.get("block_loop_s"):
                time.sleep(stop_s)
            await (lease.complete(tx) if last else lease.checkpoint(tx, {"step": step + 1}))


async def main(dsn: str, slots: int) -> None:
    db = await Database.open(dsn, role="trunkline_worker", pool_size=slots + 3, readers=0)
    runner = Runner(db, dsn, {"test": Steps(db)}, slots=slots, timings=FAST)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, runner.stop)
    print("ready", flush=True)
    await runner.run()
    await db.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
