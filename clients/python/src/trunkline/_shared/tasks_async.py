"""Concurrency for the asynchronous client; `tasks_sync` has the same names for the blocking one."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import ParamSpec, TypeAlias, TypeVar, TypeVarTuple

Arguments = ParamSpec("Arguments")
Item = TypeVar("Item")
Positional = TypeVarTuple("Positional")

# What server streams and watches are to their reader; close it to end the call early.
Stream: TypeAlias = AsyncGenerator[Item, None]

Lock = asyncio.Lock


async def sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


class Event:
    """asyncio.Event with a time-out."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    def clear(self) -> None:
        self._event.clear()

    async def wait(self, timeout_s: float | None = None) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._event.wait()
        except TimeoutError:
            return False


class Task:
    """Something that runs beside the caller."""

    def __init__(self, task: "asyncio.Task[None]") -> None:
        self._task = task

    async def stop(self) -> None:
        """Ends it and waits for its end. What it raised is not of interest any more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def spawn(
    work: Callable[Arguments, Awaitable[None]], *args: Arguments.args, **kw: Arguments.kwargs
) -> Task:
    async def run() -> None:
        await work(*args, **kw)

    return Task(asyncio.get_running_loop().create_task(run()))


async def unblocked(work: Callable[[*Positional], Item], *args: *Positional) -> Item:
    """A call that may wait for a disk, out of the event loop's way."""
    return await asyncio.to_thread(work, *args)
