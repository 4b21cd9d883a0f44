"""Runs a supervisor the way a command does; prints what the tests wait for."""

import asyncio
import os
import sys
from pathlib import Path

from trunkline_server.supervisor import Supervisor, reserve

CHILD = Path(__file__).with_name("child_program.py")


async def main(behaviour: str, processes: int, *rest: str) -> int:
    reservation = reserve("127.0.0.1", 0)
    print("port", reservation.port, "grpc" in sys.modules, flush=True)
    supervisor = Supervisor(
        [sys.executable, str(CHILD), behaviour, *rest],
        processes=processes,
        reservation=reservation,
        environment=os.environ,
        ready_timeout_s=float(os.environ.get("TEST_READY_TIMEOUT_S", "20")),
        drain_timeout_s=float(os.environ.get("TEST_DRAIN_TIMEOUT_S", "10")),
        back_off_s=0.01,
        on_ready=lambda: print("ready", flush=True),
    )
    return await supervisor.run()


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])))
