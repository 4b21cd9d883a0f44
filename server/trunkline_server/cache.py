"""A bounded in-process cache: seconds of life, one load at a time, invalidation that wins races.

A hit is a plain call that costs about 0.2 us; only a miss is awaited. Two generations of entries
stand in for an LRU list: what is used survives when the old half is dropped, and a hit on the
young half moves nothing.
"""

import asyncio
import copy
import random
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Final, Generic, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

ENTRIES_MAX = 100_000
TTL_S = 10.0
NEGATIVE_TTL_S = 2.0
SHORT_TTL_S = 0.5
# Entries loaded in the same instant must not expire in the same instant.
_JITTER = 0.1

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Missing:
    """What `get` answers when there is no entry; None is an answer of its own: "not there"."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISS"


MISS: Final = Missing()


class _Epoch:
    """Shared by all entries of an organisation; when it ends, all of them end."""

    __slots__ = ("__weakref__", "alive")

    def __init__(self) -> None:
        self.alive = True


class _Flight(Generic[V]):
    """One load that is under way, and those who wait for it."""

    __slots__ = ("epoch", "stale", "waiters")

    def __init__(self, epoch: _Epoch) -> None:
        self.epoch = epoch
        self.stale = False
        self.waiters: list[asyncio.Future[V | Missing | None]] = []


class Cache(Generic[K, V]):
    """`get` first, `load` on MISS. Keys must name the organisation; values must not be changed.

    Prefer keys of str, int and bytes: a UUID hashes in Python code, at twice the price of a hit.
    """

    def __init__(
        self,
        name: str,
        *,
        entries_max: int = ENTRIES_MAX,
        ttl_s: float = TTL_S,
        negative_ttl_s: float = NEGATIVE_TTL_S,
        short_ttl_s: float = SHORT_TTL_S,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self._half = max(1, entries_max // 2)
        self._full_ttl_s = self._ttl_s = ttl_s
        self._negative_ttl_s = negative_ttl_s
        self._short_ttl_s = short_ttl_s
        self._clock = clock
        self._jitter = jitter
        # value, when it expires, the epoch it belongs to
        self._young: dict[K, tuple[V | None, float, _Epoch]] = {}
        self._old: dict[K, tuple[V | None, float, _Epoch]] = {}
        self._epochs: WeakValueDictionary[UUID, _Epoch] = WeakValueDictionary()
        self._flights: dict[K, _Flight[V]] = {}
        self.hits = 0
        self.misses = 0
        self.loads = 0
        self.failures = 0
        self.joined = 0
        self.evicted = 0
        self.invalidated = 0
        self.flushes = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    @property
    def ttl_s(self) -> float:
        return self._ttl_s

    @property
    def loading(self) -> int:
        return len(self._flights)

    def get(self, key: K) -> V | Missing | None:
        entry = self._young.get(key)
        if entry is None:
            entry = self._old.pop(key, None)
            if entry is None:
                self.misses += 1
                return MISS
            self._keep(key, entry)
        if entry[1] > self._clock() and entry[2].alive:
            self.hits += 1
            return entry[0]
        self._young.pop(key, None)
        self.misses += 1
        return MISS

    async def load(
        self, org_id: UUID, key: K, loader: Callable[[], Awaitable[V | None]]
    ) -> V | None:
        """The value from `loader`, which runs once for all who ask while it runs.

        It runs within the first caller's task: a task of its own would cost a tenth of a call. When
        that caller is cancelled, the next of those who wait takes over.
        """
        while True:
            flight = self._flights.get(key)
            # A load that began before an invalidation may bring what was true before it.
            if flight is None or not flight.epoch.alive:
                return await self._lead(org_id, key, loader)
            self.joined += 1
            waiter: asyncio.Future[V | Missing | None] = asyncio.get_running_loop().create_future()
            flight.waiters.append(waiter)
            value = await waiter
            if not isinstance(value, Missing):
                return value

    async def get_or_load(
        self, org_id: UUID, key: K, loader: Callable[[], Awaitable[V | None]]
    ) -> V | None:
        value = self.get(key)
        return await self.load(org_id, key, loader) if isinstance(value, Missing) else value

    async def load_many(
        self,
        org_id: UUID,
        keys: Sequence[K],
        loader: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
    ) -> None:
        """One read for all keys that nobody is loading; what it does not bring is kept as None."""
        began = self._clock()
        epoch = self._epoch(org_id)
        flights: dict[K, _Flight[V]] = {}
        for key in keys:
            flight = self._flights.get(key)
            if flight is None or not flight.epoch.alive:
                self._flights[key] = flights[key] = _Flight(epoch)
        if not flights:
            return
        self.loads += 1
        try:
            values = await loader(list(flights))
        except BaseException as error:
            self.failures += isinstance(error, Exception)
            for key, flight in flights.items():
                self._land(key, flight)
                _answer(flight.waiters, MISS)  # one of them leads the next attempt
            raise
        for key, flight in flights.items():
            value = values.get(key)
            self._land(key, flight)
            if not flight.stale and epoch.alive:
                self._keep(key, (value, began + self._life_s(value), epoch))
            _answer(flight.waiters, value)

    def invalidate(self, key: K) -> None:
        """After the commit. Loads under way answer those who wait, and are not kept."""
        self.invalidated += 1
        self._young.pop(key, None)
        self._old.pop(key, None)
        flight = self._flights.pop(key, None)
        if flight is not None:
            flight.stale = True

    def bump(self, org_id: UUID) -> None:
        """Ends all entries of the organisation, in the time of one."""
        self.invalidated += 1
        epoch = self._epochs.pop(org_id, None)
        if epoch is not None:
            epoch.alive = False

    def flush(self) -> None:
        self.flushes += 1
        self._young.clear()
        self._old.clear()
        for flight in self._flights.values():
            flight.stale = True
        self._flights.clear()

    def shorten(self, ttl_s: float) -> None:
        """From now on; entries that may live longer are dropped."""
        self.flush()
        self._ttl_s = min(ttl_s, self._full_ttl_s)

    def restore(self) -> None:
        """The full life again, but not for what was cached meanwhile."""
        self.flush()
        self._ttl_s = self._full_ttl_s

    def distrust(self) -> None:
        """For `Link.on_loss`."""
        self.shorten(self._short_ttl_s)

    # -- loading

    async def _lead(
        self, org_id: UUID, key: K, loader: Callable[[], Awaitable[V | None]]
    ) -> V | None:
        began = self._clock()  # life counts from the read, not from its answer
        epoch = self._epoch(org_id)
        flight: _Flight[V] = _Flight(epoch)
        self._flights[key] = flight
        self.loads += 1
        try:
            value = await loader()
        except Exception as error:
            self.failures += 1
            self._land(key, flight)
            for waiter in flight.waiters:
                if not waiter.done():
                    waiter.set_exception(_fresh(error))
            raise
        except BaseException:
            self._land(key, flight)
            _answer(flight.waiters, MISS)  # one of them leads the next attempt
            raise
        self._land(key, flight)
        if not flight.stale and epoch.alive:
            self._keep(key, (value, began + self._life_s(value), epoch))
        if flight.waiters:
            _answer(flight.waiters, value)
        return value

    def _land(self, key: K, flight: _Flight[V]) -> None:
        # After an invalidation another flight may be on its way under the same key.
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _keep(self, key: K, entry: tuple[V | None, float, _Epoch]) -> None:
        if len(self._young) >= self._half:
            self.evicted += len(self._old)
            self._old = self._young
            self._young = {}
        self._young[key] = entry
        if self._old:
            self._old.pop(key, None)

    def _life_s(self, value: V | None) -> float:
        life_s = self._ttl_s if value is not None else min(self._negative_ttl_s, self._ttl_s)
        return life_s * (1 - _JITTER * self._jitter())

    def _epoch(self, org_id: UUID) -> _Epoch:
        epoch = self._epochs.get(org_id)
        if epoch is None:
            epoch = self._epochs[org_id] = _Epoch()
        return epoch


def _answer(waiters: "list[asyncio.Future[V | Missing | None]]", value: V | Missing | None) -> None:
    for waiter in waiters:
        if not waiter.done():  # cancelled
            waiter.set_result(value)


def _fresh(error: Exception) -> Exception:
    """An exception of its own for each: one that many raise collects all their tracebacks."""
    try:
        twin = copy.copy(error)
    except Exception:
        return error
    return twin.with_traceback(None) if type(twin) is type(error) else error
