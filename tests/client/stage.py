"""Servers for the client's tests, in a thread of their own: the blocking client blocks its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, TypeVar

import grpc.aio

from tests.client.imports_servicer import Imports
from trunkline.api.imports.v1.imports_service_pb2_grpc import add_ImportServiceServicer_to_server
from trunkline_server.rpc.options import SERVER_OPTIONS

Thing = TypeVar("Thing")


class Thread:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Thing]) -> Thing:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    @contextmanager
    def within(self, make: Callable[[], AbstractAsyncContextManager[Thing]]) -> Iterator[Thing]:
        context = make()
        thing = self.run(context.__aenter__())
        try:
            yield thing
        finally:
            self.run(context.__aexit__(None, None, None))

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Stage:
    """An import service that keeps the protocol, with faults where a test wants them."""

    def __init__(self, imports: Imports, address: str) -> None:
        self.imports = imports
        self.address = address


@asynccontextmanager
async def stage(port: int = 0) -> AsyncIterator[Stage]:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    imports = Imports()  # type: ignore[abstract]
    add_ImportServiceServicer_to_server(imports, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield Stage(imports, f"127.0.0.1:{port}")
    finally:
        await server.stop(0)
