"""Retries, pagers, watches and tokens against services that do as the test says."""

import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from grpc import StatusCode

from tests.client.scripted import MEMBERS, Fault, Scripted, changed, scripted
from tests.client.stage import Thread
from trunkline import AsyncClient, RateLimited, Unavailable
from trunkline._shared import tasks_async as tasks
from trunkline._shared.credentials import MemoryTokens, Tokens

WITHIN_S = 20.0


@pytest.fixture
def stage(thread: Thread) -> Iterator[Scripted]:
    with thread.within(scripted) as found:
        yield found


@pytest.fixture
async def client(stage: Scripted) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(stage.address, api_key="test") as client:
        yield client


async def until(holds: Callable[[], bool]) -> None:
    ends_at_s = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < ends_at_s
        await tasks.sleep(0.01)


# ---- retries


async def test_a_server_says_when_to_try_again(client: AsyncClient, stage: Scripted) -> None:
    stage.script.faults.append(Fault(StatusCode.UNAVAILABLE, pushback_ms=600))
    assert (await client.members.create("A-1")).member_number == "A-1"
    first, second = stage.script.calls
    assert second.at_s - first.at_s >= 0.6  # by itself it would wait for 0.1 s
    assert second.request.request_id == first.request.request_id != ""
    assert second.call_id == first.call_id


async def test_a_server_may_ask_not_to_be_tried_again(client: AsyncClient, stage: Scripted) -> None:
    stage.script.faults.append(Fault(StatusCode.UNAVAILABLE, pushback_ms=-1, retry_after_s=7))
    with pytest.raises(Unavailable) as caught:
        await client.members.create("A-1")
    assert caught.value.retry_after_s == 7
    assert len(stage.script.calls) == 1


async def test_retries_end(client: AsyncClient, stage: Scripted) -> None:
    stage.script.faults.extend([Fault(StatusCode.UNAVAILABLE, pushback_ms=1)] * 10)
    with pytest.raises(Unavailable):
        await client.members.create("A-1")
    assert len(stage.script.calls) == 4


async def test_too_many_requests_are_told_not_repeated(
    client: AsyncClient, stage: Scripted
) -> None:
    stage.script.faults.append(Fault(StatusCode.RESOURCE_EXHAUSTED, retry_after_s=3))
    with pytest.raises(RateLimited) as caught:
        await client.members.create("A-1")
    assert caught.value.retry_after_s == 3
    assert len(stage.script.calls) == 1


# ---- pagers


async def test_pages_are_fetched_as_they_are_needed(client: AsyncClient, stage: Scripted) -> None:
    listed = client.members.list(page_size=10, plans=["gold"])
    seen = []
    async for member in listed:
        seen.append(member.member_number)
        assert len(stage.script.calls) == (len(seen) + 9) // 10
    assert seen == [str(number) for number in range(MEMBERS)]
    tokens = [call.request.page_token for call in stage.script.calls]
    assert tokens == ["", "10", "20"]
    assert {tuple(call.request.filter.plans) for call in stage.script.calls} == {("gold",)}

    stage.script.calls.clear()
    assert len(await listed.first(12)) == 12
    assert len(stage.script.calls) == 2
    second = await listed.page("10")
    assert [member.member_number for member in second.items][:2] == ["10", "11"]
    assert second.next_page_token == "20"


async def test_a_page_that_fails_is_asked_for_again(client: AsyncClient, stage: Scripted) -> None:
    seen = []
    async for page in client.members.list(page_size=10).pages():
        seen.append(len(page.items))
        if len(seen) == 1:
            stage.script.faults.append(Fault(StatusCode.UNAVAILABLE, pushback_ms=1))
    assert seen == [10, 10, 5]
    tokens = [call.request.page_token for call in stage.script.calls]
    assert tokens == ["", "10", "10", "20"]


# ---- watches


async def test_a_watch_goes_on_at_its_checkpoint(client: AsyncClient, stage: Scripted) -> None:
    stage.script.streams.extend(
        [
            [changed("A", "after-a"), Fault(StatusCode.UNAVAILABLE)],
            [changed("B", "after-b", go_away=True)],
            # What a server that stops makes of a call that is open.
            [changed("C", "after-c"), Fault(StatusCode.CANCELLED)],
            [changed("D", "after-d"), Fault(StatusCode.DEADLINE_EXCEEDED)],
            [changed("E", "after-e")],
            [changed("F", "after-f"), Fault(StatusCode.PERMISSION_DENIED)],
        ]
    )
    watch = client.members.watch("after-z")
    told = []
    async for change in watch:
        told.append(change.member.member_number)
        if len(told) == 6:
            break
    assert told == ["A", "B", "C", "D", "E", "F"]
    asked = [call.request.checkpoint for call in stage.script.calls]
    assert asked == ["after-z", "after-a", "after-b", "after-c", "after-d", "after-e"]
    # What was handed out may not have been dealt with: it would come again.
    assert watch.checkpoint == "after-e"


# ---- tokens


def old_tokens() -> MemoryTokens:
    """Good for some minutes more, and due to be renewed."""
    now_s = time.time()
    return MemoryTokens(Tokens("access-0", "refresh-0", now_s - 800, now_s + 100))


async def test_calls_do_not_wait_for_the_next_token(stage: Scripted, thread: Thread) -> None:
    store = old_tokens()
    first = store.load()
    async with AsyncClient(stage.address, tokens=store) as client:
        for _ in range(5):
            await client.identity.who_am_i()
        await until(lambda: stage.script.refreshes != [])
        await client.identity.who_am_i()
        assert stage.script.refreshes == ["refresh-0"]  # and has no answer yet
        assert {call.authorization for call in stage.script.calls} == {"Bearer access-0"}
        thread.run(stage.script.let_refresh())
        await until(lambda: store.load() != first)
        await client.identity.who_am_i()
        assert stage.script.calls[-1].authorization == "Bearer access-1"
        assert stage.script.refreshes == ["refresh-0"]


async def test_a_renewal_that_fails_costs_no_call(stage: Scripted, thread: Thread) -> None:
    stage.script.refresh_fault = Fault(StatusCode.UNAVAILABLE)
    thread.run(stage.script.let_refresh())
    async with AsyncClient(stage.address, tokens=old_tokens()) as client:
        for _ in range(2):  # the first takes what is stored, the second finds that it is due
            await client.identity.who_am_i()
        await until(lambda: stage.script.refreshes != [])
        for _ in range(20):
            await client.identity.who_am_i()
            await tasks.sleep(0.01)
    assert {call.authorization for call in stage.script.calls} == {"Bearer access-0"}
    assert stage.script.refreshes == ["refresh-0"]
