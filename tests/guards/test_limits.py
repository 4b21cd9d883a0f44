"""Quotas over several processes: their sum holds, with Valkey and without."""

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.guards.conftest import Server
from trunkline_server.breaker import Breaker
from trunkline_server.errors import RateLimited
from trunkline_server.rpc.caller import Caller, Role
from trunkline_server.rpc.limits import UNLIMITED, Limits, Quota, RareLimit, Rate
from trunkline_server.valkey import FAILURES, Valkey

WIDE = Rate(1e6, 1e6)


def someone(org: UUID | None = None) -> Caller:
    return Caller(org or uuid4(), uuid4(), "user", Role.AGENT, uuid4(), "someone")


_OPEN: list[Valkey] = []


def connect(url: str) -> Valkey:
    _OPEN.append(Valkey(url, breaker=Breaker("valkey", failures=FAILURES, rest_s=0.1)))
    return _OPEN[-1]


@pytest.fixture(autouse=True)
async def _closed() -> AsyncIterator[None]:
    yield
    while _OPEN:
        await _OPEN.pop().close()


def make(valkey: Valkey, quota: Quota, processes: int = 2) -> Limits:
    async def read(org_id: UUID) -> Quota:
        return quota

    return Limits(valkey, read, default=quota, processes=processes)


def take_all(limits: Limits, who: Caller, cost: int = 1, tries: int = 10_000) -> int:
    """How many calls go through until one is refused."""
    for number in range(tries):
        try:
            limits.take(who, cost)
        except RateLimited:
            return number
    return tries


async def press(limits: list[Limits], who: Caller, cost: int, seconds: float) -> int:
    """All processes ask for as much as they get, and settle as they would in the background."""
    spent = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for each in limits:
            spent += cost * take_all(each, who, cost, tries=20)
        await asyncio.gather(*(each.settle() for each in limits))
        await asyncio.sleep(0.02)
    return spent


@pytest.mark.parametrize("cost", [1, 7])
@pytest.mark.parametrize("of_org", [True, False], ids=["organisation", "credential"])
async def test_two_processes_together_keep_to_the_quota(
    valkey_url: str, cost: int, of_org: bool
) -> None:
    rate = Rate(per_s=100, burst=40)
    quota = Quota(rate, WIDE) if of_org else Quota(WIDE, rate)
    both = [make(connect(valkey_url), quota) for _ in range(2)]
    who = someone()
    since = time.monotonic()
    spent = await press(both, who, cost, 2.0)
    elapsed = time.monotonic() - since
    allowed = rate.burst + rate.per_s * elapsed
    slack = rate.burst + 2 * (cost - 1)
    assert spent <= allowed + slack
    assert spent >= 0.8 * rate.per_s * elapsed  # and the quota can be used
    for limits in both:
        await limits.close()


async def test_what_is_spent_on_credit_is_charged(valkey_url: str) -> None:
    """The slack is granted once, not once per round: over time the rate is exact."""
    rate = Rate(per_s=50, burst=20)
    limits = make(connect(valkey_url), Quota(rate, WIDE), processes=1)
    who = someone()
    await press([limits], who, 1, 0.7)
    since = time.monotonic()
    spent = await press([limits], who, 1, 1.5)
    assert spent <= rate.per_s * (time.monotonic() - since) * 1.05 + 3


async def test_a_first_call_needs_no_valkey_and_a_refusal_says_why_and_when(
    valkey_url: str,
) -> None:
    limits = make(connect(valkey_url), Quota(WIDE, Rate(per_s=2, burst=4)), processes=1)
    who = someone()
    assert take_all(limits, who) == 4
    await limits.settle()
    with pytest.raises(RateLimited) as refused:
        limits.take(who, 1)
    assert refused.value.retry_after_s == pytest.approx(0.5, abs=0.1)
    assert refused.value.quota[0].subject == "credential"
    other = someone(who.org_id)
    limits.take(other, 1)  # the organisation has more
    await asyncio.sleep(refused.value.retry_after_s or 0)
    await limits.settle()
    limits.take(who, 1)


async def test_organisations_do_not_feel_each_other(valkey_url: str) -> None:
    limits = make(connect(valkey_url), Quota(Rate(10, 10), WIDE), processes=1)
    loud, quiet = someone(), someone()
    assert take_all(limits, loud) == 10
    await limits.settle()
    assert take_all(limits, loud) <= 1
    assert take_all(limits, quiet) == 10


async def test_unlimited_and_a_quota_that_changes(valkey_url: str) -> None:
    quota = [Quota(UNLIMITED, UNLIMITED)]

    async def read(org_id: UUID) -> Quota:
        return quota[0]

    limits = Limits(connect(valkey_url), read, default=quota[0], processes=1)
    who = someone()
    assert take_all(limits, who) == 10_000
    quota[0] = Quota(Rate(10, 5), UNLIMITED)
    await limits.settle()
    assert take_all(limits, who) == 5
    quota[0] = Quota(UNLIMITED, UNLIMITED)
    limits.forget_quota(who.org_id)
    await limits.settle()
    assert take_all(limits, who) == 10_000


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_without_valkey_each_process_gives_its_share(server: Server, fault: str) -> None:
    rate = Rate(per_s=100, burst=40)
    both = [make(connect(server.url), Quota(rate, WIDE)) for _ in range(2)]
    who = someone()
    await press(both, who, 1, 0.3)
    getattr(server, fault)()
    for limits in both:
        take_all(limits, who)
        await limits.settle()
    assert all(limits.local for limits in both)
    since = time.monotonic()
    spent = await press(both, who, 1, 1.5)
    elapsed = time.monotonic() - since
    assert spent <= rate.burst + rate.per_s * elapsed + 2
    assert spent >= 0.7 * rate.per_s * elapsed
    server.thaw() if fault == "freeze" else server.start()
    async with asyncio.timeout(3):
        while any(limits.local for limits in both):
            await press(both, who, 1, 0.05)
    since = time.monotonic()
    spent = await press(both, who, 1, 1.0)
    assert spent <= 2 * rate.burst + rate.per_s * (time.monotonic() - since)


async def test_a_new_caller_during_the_outage_gets_a_share_too(server: Server) -> None:
    limits = make(connect(server.url), Quota(Rate(10, 40), WIDE), processes=2)
    limits.take(someone(), 1)
    server.kill()
    await asyncio.sleep(0)
    for _ in range(20):
        limits.take(someone(), 15)
        await limits.settle()
        if limits.local:
            break
    assert limits.local
    assert take_all(limits, someone()) == 20


async def test_flushall_costs_at_most_another_burst(valkey_url: str) -> None:
    rate = Rate(per_s=100, burst=20)
    limits = make(connect(valkey_url), Quota(rate, WIDE), processes=1)
    who = someone()
    since = time.monotonic()
    spent = await press([limits], who, 1, 0.4)
    await limits._valkey.command("FLUSHALL")
    await limits._valkey.command("SCRIPT", "FLUSH")
    spent += await press([limits], who, 1, 0.4)
    assert spent <= 3 * rate.burst + rate.per_s * (time.monotonic() - since)
    assert not limits.local


async def test_what_was_leased_and_not_spent_is_given_back(valkey_url: str) -> None:
    limits = make(connect(valkey_url), Quota(Rate(0.001, 1000), WIDE), processes=1)
    who = someone()
    bucket_key = f"trunkline:limit:{{{who.org_id}}}"
    spent = 0
    for _ in range(6):
        spent += take_all(limits, who, tries=60)
        limits._orgs[who.org_id.int].bucket.settled_at -= 1  # due at once
        await limits.settle()
    assert limits._orgs[who.org_id.int].bucket.tokens > 0  # leased ahead
    await limits.close()
    tat = float(await limits._valkey.command("GET", bucket_key))
    now = await limits._valkey.command("TIME")
    charged = (tat - int(now[0]) * 1e6 - int(now[1])) / 1e6 * 0.001
    assert charged == pytest.approx(spent, abs=1)


async def test_a_quota_that_cannot_be_read_leaves_the_last_one(valkey_url: str) -> None:
    async def fail(org_id: UUID) -> Quota:
        raise OSError

    limits = Limits(connect(valkey_url), fail, default=Quota(Rate(10, 5), WIDE), processes=1)
    who = someone()
    limits.take(who, 1)
    await limits.settle()
    assert take_all(limits, who) == 4


# -- rare calls


async def test_rare_limits_are_exact_over_processes(valkey_url: str) -> None:
    two = [RareLimit(connect(valkey_url)) for _ in range(2)]
    verdicts = await asyncio.gather(*(two[i % 2].hit("{o}:import", 10, 300) for i in range(40)))
    assert sum(verdict.allowed for verdict in verdicts) == 10
    refused = await two[0].hit("{o}:import", 10, 300)
    assert refused.retry_after_s == pytest.approx(300, abs=1)
    assert (await two[0].hit("{other}:import", 10, 300)).left == 9


async def test_retry_after_is_exact_and_peek_counts_nothing(valkey_url: str) -> None:
    rare = RareLimit(connect(valkey_url))
    assert (await rare.peek("k", 1, 0.3)).left == 1
    assert (await rare.hit("k", 1, 0.3)).allowed
    verdict = await rare.peek("k", 1, 0.3)
    assert not verdict.allowed and 0.2 < verdict.retry_after_s <= 0.3
    await asyncio.sleep(verdict.retry_after_s - 0.03)
    assert not (await rare.hit("k", 1, 0.3)).allowed  # and a refusal does not prolong it
    await asyncio.sleep(0.04)
    await rare.require("k", 1, 0.3, subject="organisation")
    with pytest.raises(RateLimited) as refused:
        await rare.require("k", 1, 0.3, subject="organisation")
    assert refused.value.quota[0].subject == "organisation"
    await rare.reset("k")
    assert (await rare.hit("k", 1, 0.3)).allowed


async def test_rare_limits_go_on_without_valkey_and_no_fresh_start(server: Server) -> None:
    rare = RareLimit(connect(server.url), processes=2)
    for _ in range(5):
        assert (await rare.hit("k", 10, 60)).allowed
    server.kill()
    verdict = await rare.hit("k", 10, 60)
    assert not verdict.allowed  # a share of 5, all of it spent in this process
    assert verdict.retry_after_s == pytest.approx(60, abs=2)
    assert (await rare.hit("new", 1, 60)).allowed  # at least one
    assert not (await rare.hit("new", 1, 60)).allowed
    assert rare.answered_locally == 3


@settings(max_examples=60, deadline=None)
@given(
    limit=st.integers(1, 5),
    pauses=st.lists(st.floats(0, 30), max_size=40),
    local=st.booleans(),
)
def test_never_more_than_the_limit_in_any_period(
    limit: int, pauses: list[float], local: bool
) -> None:
    """The local count against the definition, hit by hit."""
    clock = [100.0]
    rare = RareLimit(Valkey("redis://127.0.0.1:1"), clock=lambda: clock[0])
    log: deque[float] = deque()
    for pause in pauses:
        clock[0] += pause
        live = [hit for hit in log if hit > clock[0] - 20]
        verdict = rare._ask_locally("k", limit, 20, True)
        assert verdict.allowed == (len(live) < limit)
        if verdict.allowed:
            log.append(clock[0])
        else:
            assert verdict.retry_after_s == pytest.approx(live[-limit] + 20 - clock[0])


async def test_the_lease_script_against_a_model(valkey_url: str) -> None:
    """Random spending, leasing and giving back: what is out never exceeds the definition."""
    valkey = connect(valkey_url)
    draw = random.Random(7)
    from trunkline_server.rpc.limits import _SETTLE

    per_s, burst = 200.0, 30
    since, out, held = time.monotonic(), 0.0, 0.0
    for _ in range(300):
        wanted = draw.randint(-int(held), 40) if held >= 1 else draw.randint(0, 40)
        answer = await valkey.run(
            _SETTLE, ["trunkline:limit:{model}"], [1e6 / per_s, burst, 0, wanted]
        )
        granted = answer[0]
        assert granted <= max(wanted, 0) or granted == wanted
        held += granted
        spend = draw.uniform(0, held)
        held -= spend
        out += spend
        assert out + held <= burst + per_s * (time.monotonic() - since) + 1
    assert out >= 0.5 * per_s * (time.monotonic() - since)


def test_a_rate_lets_something_through() -> None:
    for per_s, burst in ((0.0, 1.0), (1.0, 0.0), (math.nan, 1.0)):
        with pytest.raises(ValueError):
            Rate(per_s, burst)
