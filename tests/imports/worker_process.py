"""A worker in a process of its own, to be killed: `python -m tests.imports.worker_process`."""

from __future__ import annotations

import asyncio
import os
import sys

from tests.imports.working import working
from trunkline_server.jobs import Timings

TIMINGS = Timings(heartbeat_s=0.5, poll_s=0.05, backoff_s=0.01, backoff_s_max=0.05, grace_s=2.0)


async def _main(batch_rows: int) -> None:
    urls = os.environ["DATABASE_URL"], os.environ["REDIS_URL"]
    async with working(*urls, batch_rows=batch_rows, timings=TIMINGS):
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
