"""ValidateMember and its batch through a real channel: decisions, disclosure, bad input."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from tests.members.desk import Desk, reasons, refused
from tests.running import Running
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.rpc.caller import Role

ANNA: dict[str, Any] = {
    "given_name": "Anna", "family_name": "Nowak", "email": "anna@nowak.example",
    "phone": "+493012345678", "date_of_birth": "1980-05-17", "plan": "gold",
}  # fmt: skip


async def test_a_member_is_eligible_with_its_origin(desk: Desk) -> None:
    await desk.create("M-1", **ANNA)
    reply = await desk.validate("M-1")
    validation = reply.validation
    assert validation.decision == pb.DECISION_ELIGIBLE
    assert not validation.reasons
    assert validation.plan == "gold"
    assert validation.provenance.summary == "registered by key north ADMIN"
    assert validation.checked_at.seconds > 0
    assert reply.guard_level == pb.GUARD_LEVEL_UNSPECIFIED


async def test_the_second_answer_is_the_first_from_memory(desk: Desk, server: Running) -> None:
    await desk.create("M-1", **ANNA)
    first = await desk.validate("M-1")
    loads = server.server.members.cache.loads
    assert await desk.validate("M-1") == first
    assert server.server.members.cache.loads == loads


@pytest.mark.parametrize(
    ("fields", "decision", "reason"),
    [
        ({"status": pb.MEMBER_STATUS_PENDING}, "NOT_ELIGIBLE", "PENDING"),
        ({"status": pb.MEMBER_STATUS_SUSPENDED}, "NOT_ELIGIBLE", "SUSPENDED"),
        ({"status": pb.MEMBER_STATUS_TERMINATED}, "NOT_ELIGIBLE", "TERMINATED"),
        ({"effective_from": "2999-01-01"}, "NOT_ELIGIBLE", "NOT_YET_EFFECTIVE"),
        ({"effective_to": "2001-01-01"}, "NOT_ELIGIBLE", "EXPIRED"),
    ],
)
async def test_reasons(desk: Desk, fields: dict[str, Any], decision: str, reason: str) -> None:
    await desk.create("M-1", **fields)
    reply = await desk.validate("M-1")
    assert reply.validation.decision == pb.Decision.Value(f"DECISION_{decision}")
    assert reasons(reply) == [reason]
    assert reply.validation.reasons[0].text
    assert reply.validation.reasons[0].next_step


async def test_nobody_has_this_number(desk: Desk) -> None:
    reply = await desk.validate("M-404")
    assert reply.validation.decision == pb.DECISION_NOT_FOUND
    assert not reply.validation.HasField("member")


async def test_another_organisations_member_is_not_found(desk: Desk, server: Running) -> None:
    theirs = Desk(server.channel, await server.org("south"), desk.database_url)
    member = await theirs.create("M-1", **ANNA)
    assert await desk.decision("M-1") == "NOT_FOUND"
    assert await theirs.decision("M-1") == "ELIGIBLE"
    assert await desk.decision("M-1") == "NOT_FOUND"
    with refused(grpc.StatusCode.NOT_FOUND, "MEMBER_NOT_FOUND"):
        await desk.get(member_id=member.member_id)


async def test_second_factors(desk: Desk) -> None:
    await desk.create("M-1", **ANNA)
    assert await desk.decision("M-1", date_of_birth="1980-05-17") == "ELIGIBLE"
    assert await desk.decision("M-1", family_name=" nowak") == "ELIGIBLE"
    reply = await desk.validate("M-1", date_of_birth="1980-05-18", family_name="Novak")
    assert reply.validation.decision == pb.DECISION_NEEDS_CHECK
    assert reasons(reply) == ["DATE_OF_BIRTH_MISMATCH", "FAMILY_NAME_MISMATCH"]
    assert not reply.validation.HasField("member")
    assert reply.validation.plan == ""


async def test_what_an_agent_sees(desk: Desk) -> None:
    await desk.create("M-1", **ANNA, attributes={"note": "x"})
    seen = (await desk.validate("M-1")).validation.member
    assert (seen.family_name, seen.email, seen.phone) == (
        "N.",
        "a***@nowak.example",
        "*********678",
    )
    assert (seen.date_of_birth, dict(seen.attributes), seen.masked) == ("", {}, True)
    whole = (await desk.validate("M-1", Role.ADMIN)).validation.member
    assert (whole.email, whole.date_of_birth) == ("anna@nowak.example", "1980-05-17")
    assert not whole.masked


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"member_number": ""}, "member_number"),
        ({"member_number": "x" * 65}, "member_number"),
        ({"member_number": "M\x00-1"}, "member_number"),
        ({"member_number": "M\n1"}, "member_number"),
        ({"member_number": "M-1", "date_of_birth": "17.05.1980"}, "date_of_birth"),
        ({"member_number": "M-1", "date_of_birth": "2023-02-30"}, "date_of_birth"),
        ({"member_number": "M-1", "as_of": "2023-02-30"}, "as_of"),
        ({"member_number": "M-1", "family_name": "x" * 201}, "family_name"),
        ({"member_number": "M-1", "consistency": 9}, "consistency"),
    ],
)
async def test_bad_questions(desk: Desk, given: dict[str, Any], field: str) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        await desk.call("ValidateMember", pb.ValidateMemberRequest(**given), Role.AGENT)
    assert field in refusal.fields()


@pytest.mark.parametrize("number", ["М-1", "M\u200b-1", "Ⓜ-1", "M-1\u202e"])
async def test_look_alikes_are_told_from_numbers(desk: Desk, number: str) -> None:
    await desk.create("M-1")
    reply = await desk.validate(number)
    assert reply.validation.decision == pb.DECISION_NOT_FOUND
    assert reasons(reply) == ["NUMBER_CHARACTERS"]


async def test_a_wrong_check_digit_is_told_without_looking(desk: Desk, server: Running) -> None:
    await desk.set_rules(check_digit="CHECK_DIGIT_LUHN", number_pattern="[0-9]{8}")
    asked = server.server.members.cache.misses
    assert reasons(await desk.validate("12345678")) == ["CHECK_DIGIT"]
    assert reasons(await desk.validate("123")) == ["NUMBER_FORMAT"]
    assert server.server.members.cache.misses == asked + 2  # the look in memory, and no more
    assert server.server.members.cache.loads == 0


async def test_the_far_future_is_out_of_range(desk: Desk) -> None:
    with refused(grpc.StatusCode.OUT_OF_RANGE, "AS_OF_OUT_OF_RANGE"):
        await desk.validate("M-1", as_of="2999-01-01")


async def test_a_day_before_the_history_is_not_judged(desk: Desk) -> None:
    await desk.create("M-1")
    assert reasons(await desk.validate("M-1", as_of="1999-01-01")) == ["HISTORY_NOT_KEPT"]


async def test_a_mixed_batch_answers_each(desk: Desk) -> None:
    await desk.create("M-1", **ANNA)
    await desk.create("M-2", status=pb.MEMBER_STATUS_SUSPENDED)
    questions = [
        pb.MemberQuery(key="good", member_number="M-1"),
        pb.MemberQuery(key="long", member_number="9" * 65),
        pb.MemberQuery(member_number="M-2"),
        pb.MemberQuery(key="empty"),
        pb.MemberQuery(key="born", member_number="M-1", date_of_birth="1980-05-18"),
        pb.MemberQuery(key="day", member_number="M-1", as_of="2023-02-30"),
        pb.MemberQuery(key="good", member_number="M-2"),
        pb.MemberQuery(key="nobody", member_number="M-404"),
        pb.MemberQuery(key="k" * 65, member_number="M-1"),
        pb.MemberQuery(key="nul", member_number="M\x00-1"),
    ]
    for consistency in (pb.CONSISTENCY_CACHED, pb.CONSISTENCY_FRESH, pb.CONSISTENCY_CACHED):
        reply = await desk.call(
            "BatchValidateMembers",
            pb.BatchValidateMembersRequest(queries=questions, consistency=consistency),
            Role.SYSTEM,
        )
        told = [
            pb.Decision.Name(a.validation.decision).removeprefix("DECISION_")
            if a.HasField("validation") else (a.error.code, [f.field for f in a.error.fields])
            for a in reply.answers
        ]  # fmt: skip
        invalid = grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert told == [
            "ELIGIBLE", (invalid, ["member_number"]), "NOT_ELIGIBLE",
            (invalid, ["member_number"]), "NEEDS_CHECK", (invalid, ["as_of"]), (invalid, []),
            "NOT_FOUND", (invalid, ["key"]), (invalid, ["member_number"]),
        ]  # fmt: skip
        assert [a.key for a in reply.answers][:3] == ["good", "long", ""]


async def test_a_batch_reads_once_for_all_it_does_not_know(desk: Desk, server: Running) -> None:
    for number in range(20):
        await desk.create(f"M-{number}")
    questions = [pb.MemberQuery(member_number=f"M-{number}") for number in range(30)]
    request = pb.BatchValidateMembersRequest(queries=questions)
    reply = await desk.call("BatchValidateMembers", request, Role.SYSTEM)
    found = [answer.validation.decision for answer in reply.answers]
    assert found == [pb.DECISION_ELIGIBLE] * 20 + [pb.DECISION_NOT_FOUND] * 10
    assert server.server.members.cache.loads == 1
    assert await desk.call("BatchValidateMembers", request, Role.SYSTEM)
    assert server.server.members.cache.loads == 1


@pytest.mark.parametrize("count", [0, 1001])
async def test_batches_are_bounded(desk: Desk, count: int) -> None:
    questions = [pb.MemberQuery(member_number="M-1")] * count
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        await desk.call(
            "BatchValidateMembers", pb.BatchValidateMembersRequest(queries=questions), Role.ADMIN
        )
    assert refusal.fields() == ["queries"]


async def test_a_stream_answers_all_under_their_keys(desk: Desk) -> None:
    for number in range(50):
        await desk.create(f"M-{number}")

    async def questions() -> Any:
        for number in range(400):
            query = pb.MemberQuery(key=str(number), member_number=f"M-{number % 60}")
            yield pb.StreamValidateMembersRequest(query=query)
        yield pb.StreamValidateMembersRequest(query=pb.MemberQuery(key="bad"))

    replies = desk.stub.StreamValidateMembers(questions(), **desk.options(Role.SYSTEM))
    answers = {reply.answer.key: reply.answer async for reply in replies}
    assert len(answers) == 401
    assert answers.pop("bad").error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    for key, answer in answers.items():
        expected = pb.DECISION_ELIGIBLE if int(key) % 60 < 50 else pb.DECISION_NOT_FOUND
        assert answer.validation.decision == expected


async def test_a_stream_says_go_away_when_the_server_drains(desk: Desk, start_server: Any) -> None:
    async with start_server() as other:
        stub = Desk(other.channel, desk.org, desk.database_url).stub
        call = stub.StreamValidateMembers(**desk.options(Role.SYSTEM))
        query = pb.MemberQuery(key="1", member_number="M-1")
        await call.write(pb.StreamValidateMembersRequest(query=query))
        assert (await call.read()).answer.key == "1"
        stopping = asyncio.create_task(other.server.stop())
        assert (await call.read()).go_away
        await call.write(pb.StreamValidateMembersRequest(query=query))
        assert (await call.read()).answer.key == "1"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        assert await stopping
