"""A supervised process for the supervisor's tests: listens on the shared port, answers its pid."""

import asyncio
import os
import signal
import socket
import sys
import time

from trunkline_server.supervisor import Parent


async def main(behaviour: str) -> int:
    parent = Parent.from_environment()
    assert parent is not None
    assert parent.port is not None
    if behaviour == "bad-config":
        return 78
    if behaviour == "crash":
        return 3
    parent.follow(exit_after_s=2.0)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    if behaviour == "hang-on-term":
        signal.signal(signal.SIGTERM, lambda *_: time.sleep(60))
    else:
        loop.add_signal_handler(signal.SIGTERM, stop.set)

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"{parent.index} {os.getpid()} {'grpc' in sys.modules}\n".encode())
        await writer.drain()
        writer.close()

    if behaviour == "ready-once" and os.path.exists(sys.argv[2]):  # noqa: PTH110
        await stop.wait()  # the replacement never gets ready
        return 0
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", parent.port))
    server = await asyncio.start_server(answer, sock=listener)
    parent.ready()
    await stop.wait()
    server.close()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1])))
