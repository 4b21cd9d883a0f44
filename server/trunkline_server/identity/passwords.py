"""argon2id in a few threads: never on the loop, never more of them than there are cores."""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import Type

from trunkline_server.identity.errors import LoginBusy

# OWASP's floor: 19 MiB, two passes, one lane. docs/adr/0005 has the times.
MEMORY_KIB = 19 * 1024
PASSES = 2
LANES = 1
QUEUE_MAX = 1_000
BUSY_RETRY_S = 2.0
# The loop must get a core back at once, however many hashes are under way.
THREAD_NICENESS = 10

T = TypeVar("T")


class Passwords:
    """Hashes and verifies. Memory is bounded by `threads` x 19 MiB, waiting by `queue_max`."""

    def __init__(self, *, threads: int | None = None, queue_max: int = QUEUE_MAX) -> None:
        count = threads or os.cpu_count() or 1
        self._hasher = PasswordHasher(
            time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES, type=Type.ID
        )
        self._pool = ThreadPoolExecutor(count, "argon2", initializer=_step_back)
        self._free = asyncio.Semaphore(count)
        self._queue_max = queue_max
        # What an unknown user's password is compared with, at the same cost.
        self._nobody = self._hasher.hash(os.urandom(32).hex())
        self.waiting = 0
        self.running = 0

    def refuse_when_full(self) -> None:
        if self.waiting >= self._queue_max:
            raise LoginBusy(retry_after_s=BUSY_RETRY_S)

    async def hash(self, password: str) -> str:
        return await self._in_pool(lambda: self._hasher.hash(password))

    async def verify(self, stored: str | None, password: str) -> bool:
        """Whether it is the password; takes as long where there is none to compare with."""
        matches = await self._in_pool(
            lambda: _matches(self._hasher, stored or self._nobody, password)
        )
        return matches and stored is not None

    def outdated(self, stored: str) -> bool:
        """Whether the hash was made with other parameters than today's."""
        try:
            return self._hasher.check_needs_rehash(stored)
        except InvalidHashError:
            return True

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _in_pool(self, work: Callable[[], T]) -> T:
        self.refuse_when_full()
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        # A caller that goes away leaves its thread busy: the place is free when the thread is.
        future.add_done_callback(self._done)
        return await asyncio.shield(future)

    def _done(self, future: "asyncio.Future[T]") -> None:
        self.running -= 1
        self._free.release()
        if not future.cancelled():
            future.exception()  # nobody may be left to ask for it


def _matches(hasher: PasswordHasher, stored: str, password: str) -> bool:
    try:
        return hasher.verify(stored, password)
    except (VerificationError, InvalidHashError):
        return False


def _step_back() -> None:
    if hasattr(os, "setpriority"):
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), THREAD_NICENESS)
        except OSError:
            return  # some platforms know processes only
