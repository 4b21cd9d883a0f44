"""Guessing is slowed down per (account or key prefix, address): elsewhere nobody feels it."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable

from trunkline_server.identity import rules
from trunkline_server.identity.errors import LoginLocked
from trunkline_server.valkey import PREFIX, Script, Valkey, ValkeyUnavailable

PAIRS_MAX = 50_000

# GCRA on the server's clock. Returns the milliseconds to wait, 0 when the attempt was taken.
_TAKE = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local arrival = tonumber(redis.call('GET', KEYS[1]) or now)
if arrival < now then arrival = now end
local wait = arrival - (burst - 1) * interval - now
if wait > 0 then return wait end
arrival = arrival + interval
redis.call('SET', KEYS[1], string.format('%.0f', arrival), 'PX', arrival - now)
return 0
""")


class Lockout:
    """Counts attempts before they are judged, so that many at once gain nothing."""

    def __init__(
        self,
        valkey: Valkey | None,
        *,
        burst: int = rules.ATTEMPTS_BURST,
        interval_s: float = rules.ATTEMPT_INTERVAL_S,
        burst_alone: int = rules.ATTEMPTS_BURST_ALONE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._valkey = valkey
        self._burst = burst
        self._interval_s = interval_s
        self._burst_alone = burst_alone
        self._clock = clock
        self._arrivals: OrderedDict[str, float] = OrderedDict()
        self._locked_until: OrderedDict[str, float] = OrderedDict()

    def check(self, kind: str, account: str, address: str) -> None:
        """Raises while the pair is locked, as far as this process knows. Takes nothing."""
        until = self._locked_until.get(_pair(kind, account, address))
        if until is not None and until > self._clock():
            raise LoginLocked(retry_after_s=until - self._clock())

    async def attempt(self, kind: str, account: str, address: str) -> None:
        """Takes one attempt, or raises LoginLocked."""
        pair = _pair(kind, account, address)
        wait_s = await self._take(pair)
        if wait_s > 0:
            _put(self._locked_until, pair, self._clock() + wait_s)
            raise LoginLocked(retry_after_s=wait_s)

    async def succeeded(self, kind: str, account: str, address: str) -> None:
        """The rightful user: earlier slips are forgotten."""
        pair = _pair(kind, account, address)
        self._arrivals.pop(pair, None)
        self._locked_until.pop(pair, None)
        if self._valkey is not None:
            try:
                await self._valkey.command("DEL", _key(pair))
            except ValkeyUnavailable:
                return  # it ends by itself

    async def _take(self, pair: str) -> float:
        if self._valkey is not None:
            try:
                interval_ms = int(self._interval_s * 1000)
                waited = await self._valkey.run(_TAKE, [_key(pair)], [interval_ms, self._burst])
                return float(waited) / 1000
            except ValkeyUnavailable:
                pass
        return self._take_alone(pair)

    def _take_alone(self, pair: str) -> float:
        arrival, wait_s = rules.gcra(
            self._arrivals.get(pair),
            self._clock(),
            interval_s=self._interval_s,
            burst=self._burst_alone,
        )
        _put(self._arrivals, pair, arrival)
        return wait_s


def _put(pairs: OrderedDict[str, float], pair: str, value: float) -> None:
    pairs[pair] = value
    pairs.move_to_end(pair)
    if len(pairs) > PAIRS_MAX:
        pairs.popitem(last=False)


def _pair(kind: str, account: str, address: str) -> str:
    """A digest: neither addresses nor accounts are to be read in memory dumps or in Valkey."""
    text = f"{kind}\0{account}\0{rules.address_scope(address)}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _key(pair: str) -> str:
    return f"{PREFIX}lockout:{pair}"
