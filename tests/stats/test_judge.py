"""The check by columns and the check by the contract's rules agree on every event."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.api.stats.v1 import stats_service_pb2 as pb
from trunkline_server.rpc.caller import Caller, Role
from trunkline_server.stats.record import Judge, _sound

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
ME = "0197f3a0-0000-7000-8000-00000000000a"
OTHER = "0197F3A0-0000-7000-8000-00000000000B"
JUDGE = Judge()

ids = st.uuids().map(str) | st.uuids().map(lambda u: str(u).upper()) | st.sampled_from(["", "x"])
seconds = st.sampled_from(
    [
        int((NOW + timedelta(days=d, seconds=s)).timestamp())
        for d in (-36, -35, -34, 0)
        for s in (-1, 0, 1, 299, 300, 301)
    ]
)
nanos = st.sampled_from([0, 1, 500_000_000, 999_999_999])


@st.composite
def events(draw: st.DrawFn) -> pb.Event:
    event = pb.Event(
        event_id=draw(ids),
        kind=draw(st.sampled_from([1, 1, 1, 1, 0, 2, 9])),  # type: ignore[arg-type]
        agent_id=draw(st.sampled_from(["", "", ME, OTHER, "agent"])),
        outcome=draw(st.sampled_from(["", "ok", "a.b-c_9", "a b", "x" * 64, "x" * 65, "ok\n"])),
        quantity=draw(st.sampled_from([0, 1, 1_000_000_000, 1_000_000_001, -1])),
    )
    if draw(st.integers(0, 9)):
        event.occurred_at.seconds = draw(seconds)
        event.occurred_at.nanos = draw(nanos)
    if draw(st.booleans()):
        event.duration.seconds = draw(st.sampled_from([0, 1, 604_799, 604_800, 604_801, -1]))
        event.duration.nanos = draw(nanos)
    return event


def caller(role: Role) -> Caller:
    return Caller(UUID(int=1), UUID(ME), "key", role, UUID(int=2), "")


@settings(max_examples=500)
@given(events(), st.sampled_from([Role.AGENT, Role.SYSTEM]))
def test_both_ways_agree(event: pb.Event, role: Role) -> None:
    who = caller(role)
    quick = _sound([event], who, NOW)
    slow = JUDGE._examined([event], who, NOW)
    if quick is None:
        # The quick way may doubt what the slow way accepts, at the very edges only.
        edge = event.duration.seconds == 604_800 or event.occurred_at.nanos
        assert slow.problems or edge
    else:
        assert not slow.problems
        assert quick.columns == slow.columns
        assert list(quick.places) == list(slow.places)


@given(st.lists(events(), min_size=1, max_size=8))
def test_each_event_gets_a_status_or_is_to_be_inserted(batch: list[pb.Event]) -> None:
    judged = JUDGE.batch(batch, caller(Role.SYSTEM), NOW)
    judged.settle(None, set())
    assert all(judged.statuses)
    assert len(judged.statuses) == len(batch)
    refused = [p.index for p in judged.problems]
    assert len(set(refused)) == len(refused)
