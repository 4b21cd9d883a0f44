"""Concurrency for the blocking client; the same names as in `tasks_async`."""

import threading
import time
from collections.abc import Callable, Generator
from typing import ParamSpec, TypeAlias, TypeVar, TypeVarTuple

Arguments = ParamSpec("Arguments")
Item = TypeVar("Item")
Positional = TypeVarTuple("Positional")

# What server streams and watches are to their reader; close it to end the call early.
Stream: TypeAlias = Generator[Item, None, None]

Lock = threading.Lock

STOP_TIMEOUT_S = 5.0


def sleep(seconds: float) -> None:
    time.sleep(seconds)


class Event:
    """threading.Event as the asynchronous one is written."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def clear(self) -> None:
        self._event.clear()

    def wait(self, timeout_s: float | None = None) -> bool:
        return self._event.wait(timeout_s)


class Task:
    """Something that runs beside the caller."""

    def __init__(self, thread: threading.Thread) -> None:
        self._thread = thread

    def stop(self) -> None:
        """Waits for its end; who started it has made it end, by closing what it reads from."""
        if self._thread is not threading.current_thread():
            self._thread.join(STOP_TIMEOUT_S)


def spawn(work: Callable[Arguments, None], *args: Arguments.args, **kw: Arguments.kwargs) -> Task:
    thread = threading.Thread(
        target=work, args=args, kwargs=kw, daemon=True, name=f"trunkline-{work.__name__}"
    )
    thread.start()
    return Task(thread)


def unblocked(work: Callable[[*Positional], Item], *args: *Positional) -> Item:
    """A call that may wait for a disk."""
    return work(*args)
