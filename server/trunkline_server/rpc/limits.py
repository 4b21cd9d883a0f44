"""Quotas: how much an organisation and a credential may ask for.

`Limits` guards every call. It spends from local buckets and settles with Valkey in the background,
so a call pays for arithmetic only. `RareLimit` guards log-ins and the creation of imports: one
round trip each, exact, counted over all processes (docs/adr/0007).
"""

import asyncio
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

from trunkline_server.errors import QuotaViolation, RateLimited
from trunkline_server.rpc.caller import Caller
from trunkline_server.valkey import PREFIX, Script, Valkey, ValkeyUnavailable

SETTLE_S = 0.1
# A credential that asks now and then is settled this seldom.
SETTLE_QUIET_S = 1.0
IDLE_S = 5.0
QUOTA_LIFE_S = 30.0
CREDENTIALS_MAX = 50_000
RARE_KEYS_MAX = 10_000
RARE_LIMIT_MAX = 1_000
SLICE = 200

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_s` cost units a second, and `burst` of them at once. Infinite: no limit."""

    per_s: float
    burst: float

    def __post_init__(self) -> None:
        if not self.per_s > 0 or not self.burst >= 1:
            raise ValueError("a rate must let something through")


@dataclass(frozen=True, slots=True)
class Quota:
    """What an organisation may ask for, as a whole and by each of its credentials."""

    org: Rate
    credential: Rate


UNLIMITED = Rate(math.inf, math.inf)

# A generic cell rate: the key holds the time, in microseconds, up to which allowance is spent.
# Per key: micros of allowance a unit takes, burst, units spent on credit, units wanted beyond that
# (negative: given back). Answers per key: units granted, micros until one more is free.
# Valkey's clock counts: one process with a wrong clock must not widen anybody's quota.
_SETTLE = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local answers = {}
for i, key in ipairs(KEYS) do
  local unit, burst = tonumber(ARGV[i*4-3]), tonumber(ARGV[i*4-2])
  local spent, wanted = tonumber(ARGV[i*4-1]), tonumber(ARGV[i*4])
  local tat = math.max(tonumber(redis.call('GET', key) or 0), now) + spent * unit
  local free = math.floor(burst - (tat - now) / unit)
  local granted = math.min(wanted, math.max(free, 0))
  tat = tat + granted * unit
  if tat > now then
    redis.call('SET', key, string.format('%.0f', tat), 'PX', math.ceil((tat - now) / 1000) + 1000)
  else
    redis.call('DEL', key)
  end
  answers[i*2-1] = granted
  answers[i*2] = math.max(0, math.ceil(tat - now - (burst - 1) * unit))
end
return answers
""")


class _Bucket:
    """What this process may still spend, and what it owes Valkey."""

    __slots__ = (
        "exhausted", "floor", "key", "rate", "retry_at", "settled_at", "spent_at", "tokens",
        "tokens_before", "used_lately",
    )  # fmt: skip

    def __init__(self, key: str, rate: Rate, processes: int, now: float) -> None:
        self.key = key
        self.tokens = 0.0
        self.tokens_before = 0.0
        self.used_lately = 0.0
        self.exhausted = False
        self.retry_at = 0.0
        self.settled_at = self.spent_at = now
        self.set_rate(rate, processes)

    def set_rate(self, rate: Rate, processes: int) -> None:
        self.rate = rate
        # On credit: this process's share of the burst, until Valkey says there is no more.
        self.floor = -rate.burst / processes
        if math.isinf(rate.per_s):
            self.tokens = self.tokens_before = math.inf


class _Org:
    __slots__ = ("bucket", "org_id", "quota", "quota_until")

    def __init__(self, org_id: UUID, quota: Quota, bucket: _Bucket) -> None:
        self.org_id = org_id
        self.quota = quota
        self.quota_until = 0.0
        self.bucket = bucket


class _Pair:
    """The two buckets a call spends from, found with one look-up."""

    __slots__ = ("credential", "org", "owner")

    def __init__(self, owner: _Org, credential: _Bucket) -> None:
        self.owner = owner
        self.org = owner.bucket
        self.credential = credential


class Limits:
    """`take` on every call; `run` beside the server settles with Valkey.

    Over any time T all processes together spend at most burst + per_s * T, plus `slack` units:
    each process may spend its share of one burst on credit, and the last call that it lets through
    may cost more than was left. What is spent on credit is charged, so it delays later calls.
    """

    def __init__(
        self,
        valkey: Valkey,
        quotas: Callable[[UUID], Awaitable[Quota]],
        *,
        default: Quota,
        processes: int = 1,
        settle_s: float = SETTLE_S,
        clock: Callable[[], float] = time.monotonic,
        name: str = "limit",
    ) -> None:
        self._name = name  # keys of their own for quotas of their own
        self._valkey = valkey
        self._quotas = quotas
        self._default = default
        self._processes = max(1, processes)
        self._settle_s = settle_s
        self._clock = clock
        self._pairs: OrderedDict[int, _Pair] = OrderedDict()
        self._orgs: dict[int, _Org] = {}
        self._task: asyncio.Task[None] | None = None
        self._sweep_at = 0.0
        self.local = False  # without Valkey: each process gives its share of the quota
        self.refused = 0
        self.settled = 0

    def take(self, caller: Caller, cost: int) -> None:
        """Spends `cost`, or raises RateLimited."""
        pair = self._pairs.get(caller.credential_id.int)
        if pair is None:
            pair = self._meet(caller)
        org = pair.org
        credential = pair.credential
        if org.tokens > org.floor and credential.tokens > credential.floor:
            org.tokens -= cost
            credential.tokens -= cost
            return
        self._refuse(pair)

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="limits-settle")

    async def close(self) -> None:
        """Settles once more, so that what was leased and not spent is free for the others."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._settle_all(self._clock(), closing=True)

    def forget_quota(self, org_id: UUID) -> None:
        """For the invalidation link: the organisation's quota was changed."""
        org = self._orgs.get(org_id.int)
        if org is not None:
            org.quota_until = 0.0

    @property
    def buckets(self) -> int:
        return len(self._pairs) + len(self._orgs)

    async def settle(self) -> None:
        """One round: read quotas that are due, settle what was spent, drop what is idle."""
        now = self._clock()
        await self._read_quotas(now)
        await self._settle_all(now)
        if now >= self._sweep_at:
            self._sweep_at = now + SETTLE_QUIET_S
            self._drop_idle(now)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._settle_s)
            try:
                await self.settle()
            except Exception:
                log.exception("limits: a round of settling failed")

    # -- buckets

    def _meet(self, caller: Caller) -> _Pair:
        now = self._clock()
        org = self._orgs.get(caller.org_id.int)
        tag = f"{PREFIX}{self._name}:{{{caller.org_id}}}"
        if org is None:
            bucket = _Bucket(tag, self._default.org, self._processes, now)
            self._start(bucket)
            org = self._orgs[caller.org_id.int] = _Org(caller.org_id, self._default, bucket)
        if len(self._pairs) >= CREDENTIALS_MAX:
            self._pairs.popitem(last=False)
        bucket = _Bucket(
            f"{tag}:{caller.credential_id}", org.quota.credential, self._processes, now
        )
        self._start(bucket)
        pair = self._pairs[caller.credential_id.int] = _Pair(org, bucket)
        return pair

    def _start(self, bucket: _Bucket) -> None:
        """Without Valkey nobody would charge the credit: the share is given, once."""
        if self.local and not math.isinf(bucket.tokens):
            bucket.tokens = bucket.tokens_before = -bucket.floor
            bucket.floor = 0.0

    def _refuse(self, pair: _Pair) -> None:
        self.refused += 1
        bucket, subject = pair.org, "organisation"
        if bucket.tokens > bucket.floor:
            bucket, subject = pair.credential, "credential"
        rate = bucket.rate
        raise RateLimited(
            retry_after_s=max(self._settle_s, bucket.retry_at - self._clock()),
            quota=[
                QuotaViolation(
                    subject, f"{rate.per_s:g} cost units a second, at most {rate.burst:g} at once"
                )
            ],
        )

    def _drop_idle(self, now: float) -> None:
        for number, pair in list(self._pairs.items()):
            bucket = pair.credential
            settled = self.local or bucket.tokens == 0 or math.isinf(bucket.tokens)
            if settled and now - bucket.spent_at > IDLE_S:
                del self._pairs[number]
        if len(self._orgs) > CREDENTIALS_MAX // 10:
            used = {id(pair.owner) for pair in self._pairs.values()}
            self._orgs = {n: org for n, org in self._orgs.items() if id(org) in used}

    # -- quotas

    async def _read_quotas(self, now: float) -> None:
        due = [org for org in self._orgs.values() if org.quota_until <= now][:50]
        for org in due:
            org.quota_until = now + QUOTA_LIFE_S
            try:
                quota = await self._quotas(org.org_id)
            except Exception as error:
                # The last known quota holds; it is asked for again soon.
                org.quota_until = now + SETTLE_QUIET_S
                log.warning("limits: a quota could not be read: %s", type(error).__name__)
                continue
            if quota != org.quota:
                self._apply(org, quota)

    def _apply(self, org: _Org, quota: Quota) -> None:
        org.quota = quota
        now = self._clock()
        self._change(org.bucket, quota.org, now)
        for pair in self._pairs.values():
            if pair.owner is org:
                self._change(pair.credential, quota.credential, now)

    def _change(self, bucket: _Bucket, rate: Rate, now: float) -> None:
        if math.isinf(bucket.tokens):
            bucket.tokens = bucket.tokens_before = 0.0
        bucket.set_rate(rate, self._processes)
        if bucket.exhausted or self.local:
            bucket.floor = 0.0
            bucket.retry_at = now

    # -- settling

    async def _settle_all(self, now: float, *, closing: bool = False) -> None:
        """In slices: calls are served between them."""
        every = [(org.org_id, org.bucket) for org in self._orgs.values()]
        every += [(pair.owner.org_id, pair.credential) for pair in self._pairs.values()]
        for i in range(0, len(every), SLICE):
            # By organisation, because its keys live on one node of a cluster.
            due: dict[UUID, list[_Bucket]] = {}
            for org_id, bucket in every[i : i + SLICE]:
                if self._is_due(bucket, now, closing):
                    due.setdefault(org_id, []).append(bucket)
            if due:
                await self._settle(list(due.values()), closing)
            else:
                await asyncio.sleep(0)

    def _is_due(self, bucket: _Bucket, now: float, closing: bool) -> bool:
        tokens = bucket.tokens
        if math.isinf(tokens):
            return False
        if tokens != bucket.tokens_before:
            bucket.spent_at = now
        if closing or bucket.exhausted or self.local:
            return tokens != 0 or not closing
        if tokens == bucket.tokens_before == 0:
            return False
        return tokens < bucket.floor / 2 or now - bucket.settled_at >= SETTLE_QUIET_S

    async def _settle(self, chunks: list[list[_Bucket]], closing: bool) -> None:
        now = self._clock()
        asks = [[self._ask(bucket, now, closing) for bucket in chunk] for chunk in chunks]
        calls = [
            (
                [bucket.key for bucket in chunk],
                [word for bucket, ask in zip(chunk, ask_each, strict=True)
                 for word in (1e6 / bucket.rate.per_s, bucket.rate.burst, *ask)],
            )
            for chunk, ask_each in zip(chunks, asks, strict=True)
        ]  # fmt: skip
        try:
            answers = await self._valkey.run_each(_SETTLE, calls)
        except ValkeyUnavailable:
            self._go_local(chunks)
            return
        self._come_back()
        for chunk, ask_each, answer in zip(chunks, asks, answers, strict=True):
            for i, (bucket, ask) in enumerate(zip(chunk, ask_each, strict=True)):
                self._apply_answer(bucket, ask, float(answer[i * 2]), answer[i * 2 + 1] / 1e6)

    def _ask(self, bucket: _Bucket, now: float, closing: bool) -> tuple[float, float]:
        """What was spent on credit, and what to lease: two rounds of the recent use."""
        elapsed_s = max(now - bucket.settled_at, self._settle_s)
        used = max(0.0, bucket.tokens_before - bucket.tokens)
        bucket.used_lately = (bucket.used_lately + used * self._settle_s / elapsed_s) / 2
        spent = max(0.0, -bucket.tokens)
        target = min(round(bucket.used_lately * 2), bucket.rate.burst / self._processes)
        if bucket.exhausted:
            target = max(target, 1.0)
        if closing:
            target = 0.0
        wanted = math.floor(target - max(0.0, bucket.tokens))
        return spent, float(wanted)

    def _apply_answer(
        self, bucket: _Bucket, ask: tuple[float, float], granted: float, wait_s: float
    ) -> None:
        spent, wanted = ask
        now = self._clock()
        bucket.tokens += spent + granted
        bucket.tokens_before = bucket.tokens
        bucket.settled_at = now
        bucket.exhausted = wait_s > 0 or granted < wanted
        bucket.retry_at = now + wait_s
        bucket.floor = 0.0 if bucket.exhausted else -bucket.rate.burst / self._processes
        self.settled += 1

    # -- without Valkey

    def _go_local(self, chunks: list[list[_Bucket]]) -> None:
        """Each process gives its share of the rate; together they keep to the quota."""
        first, self.local = not self.local, True
        if first:
            log.warning("limits: Valkey does not answer; each process gives its share")
        now = self._clock()
        if first:
            every = [org.bucket for org in self._orgs.values()]
            every += [pair.credential for pair in self._pairs.values()]
            for bucket in every:
                bucket.floor = 0.0 if not math.isinf(bucket.tokens) else bucket.floor
        for bucket in (bucket for chunk in chunks for bucket in chunk):
            share = bucket.rate.per_s / self._processes
            filled = bucket.tokens + share * (now - bucket.settled_at)
            bucket.tokens = min(filled, bucket.rate.burst / self._processes)
            bucket.tokens_before = bucket.tokens
            bucket.settled_at = now
            bucket.retry_at = now + max(0.0, (1 - bucket.tokens) / share)

    def _come_back(self) -> None:
        if self.local:
            self.local = False
            log.info("limits: Valkey answers again")


# -- rare calls

# The times of the last hits, newest first: exact for small limits, where a bucket would let through
# a burst and its refill within one period. Answers: allowed, left, micros to wait.
_RARE = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local limit, period, count = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local hits = redis.call('LRANGE', KEYS[1], 0, limit - 1)
local live = 0
for i, hit in ipairs(hits) do
  if tonumber(hit) > now - period then live = i else break end
end
if live >= limit then return {0, 0, hits[limit] + period - now} end
if count == 1 then
  redis.call('LPUSH', KEYS[1], string.format('%.0f', now))
  redis.call('LTRIM', KEYS[1], 0, limit - 1)
  redis.call('PEXPIRE', KEYS[1], math.ceil(period / 1000))
end
return {1, limit - live - count, 0}
""")


@dataclass(frozen=True, slots=True)
class Verdict:
    allowed: bool
    left: int
    retry_after_s: float


class RareLimit:
    """At most `limit` hits in any period of `period_s`, over all processes.

    Without Valkey each process counts by itself and gives its share, at least one. It also counts
    while Valkey answers, so the loss of Valkey gives nobody a fresh start in the process he used.
    """

    def __init__(
        self,
        valkey: Valkey,
        *,
        processes: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._valkey = valkey
        self._processes = max(1, processes)
        self._clock = clock
        self._hits: OrderedDict[str, deque[float]] = OrderedDict()
        self.refused = 0
        self.answered_locally = 0

    async def hit(self, key: str, limit: int, period_s: float) -> Verdict:
        """Counts if it is allowed. Keys of one organisation carry its id in braces."""
        verdict = await self._ask(key, limit, period_s, count=True)
        self.refused += not verdict.allowed
        return verdict

    async def peek(self, key: str, limit: int, period_s: float) -> Verdict:
        """What a hit would be told now, without counting."""
        return await self._ask(key, limit, period_s, count=False)

    async def require(self, key: str, limit: int, period_s: float, *, subject: str) -> None:
        """A hit that raises RateLimited, with the exact time to wait."""
        verdict = await self.hit(key, limit, period_s)
        if not verdict.allowed:
            text = f"at most {limit} in {period_s:g} s"
            raise RateLimited(
                retry_after_s=verdict.retry_after_s, quota=[QuotaViolation(subject, text)]
            )

    async def reset(self, key: str) -> None:
        """Forgets the hits: after a log-in that succeeded, or on an administrator's word."""
        self._hits.pop(key, None)
        try:
            await self._valkey.command("DEL", f"{PREFIX}rare:{key}")
        except ValkeyUnavailable:
            pass  # it expires by itself

    async def _ask(self, key: str, limit: int, period_s: float, *, count: bool) -> Verdict:
        if not 1 <= limit <= RARE_LIMIT_MAX:
            raise ValueError(f"a rare limit is 1 to {RARE_LIMIT_MAX}, not {limit}")
        try:
            answer = await self._valkey.run(
                _RARE, [f"{PREFIX}rare:{key}"], [limit, int(period_s * 1e6), int(count)]
            )
        except ValkeyUnavailable:
            self.answered_locally += 1
            return self._ask_locally(key, max(1, limit // self._processes), period_s, count)
        allowed, left, wait = (int(number) for number in answer)
        if allowed and count:
            self._note(key, limit)
        return Verdict(bool(allowed), left, wait / 1e6)

    def _ask_locally(self, key: str, limit: int, period_s: float, count: bool) -> Verdict:
        now = self._clock()
        hits = self._hits.get(key, ())
        live = [hit for hit in hits if hit > now - period_s][:limit]
        if len(live) >= limit:
            return Verdict(False, 0, live[limit - 1] + period_s - now)
        if count:
            self._note(key, limit)
        return Verdict(True, limit - len(live) - count, 0.0)

    def _note(self, key: str, limit: int) -> None:
        hits = self._hits.pop(key, None)
        if hits is None or (hits.maxlen or 0) < limit:
            hits = deque(hits or (), maxlen=limit)
        hits.appendleft(self._clock())
        self._hits[key] = hits
        if len(self._hits) > RARE_KEYS_MAX:
            self._hits.popitem(last=False)
