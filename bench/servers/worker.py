"""The product's worker as its composition root starts it, one process."""

from __future__ import annotations

import asyncio
import signal

import uvloop

from trunkline_server.app import Worker
from trunkline_server.config import WorkerSettings


async def _main() -> None:
    # All of it comes from the environment.
    worker = await Worker.start(WorkerSettings.model_validate({}))
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, worker.runner.stop)
    print("ready", flush=True)
    await worker.run()


if __name__ == "__main__":
    uvloop.run(_main())
