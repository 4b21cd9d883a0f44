"""Lists and searches: what they find, in which order, page by page."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given
from hypothesis import strategies as st

from tests.members.desk import Desk, refused
from tests.running import Running
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.members import search
from trunkline_server.rpc.caller import Role

PEOPLE = {
    "M-1001": ("Anna Maria", "Müller", "anna.mueller@example.org", "+493012345678"),
    "M-1002": ("Jean-Luc", "O'Brien", "jl@example.org", "+353861234567"),
    "M-1003": ("Katarzyna", "Kowalska", "kasia@example.org", "+48221234567"),
    "M-1004": ("Johannes", "Schmidt", "joe.schmidt@example.org", "+493087654321"),
    "M-1005": ("Anna", "Schmitt", "", ""),
    "M-2001": ("Евгений", "Петров", "petrov@example.org", ""),
}


@pytest.fixture
async def people(desk: Desk) -> Desk:
    for number, (given_name, family_name, email, phone) in PEOPLE.items():
        await desk.create(
            number, given_name=given_name, family_name=family_name, email=email, phone=phone
        )
    return desk


@pytest.mark.parametrize(
    ("text", "best"),
    [
        ("M-1003", "M-1003"), ("m-1003", None), ("M-1030", "M-1003"), ("M-103", "M-1003"),
        ("muller", "M-1001"), ("Müller", "M-1001"), ("Muler", "M-1001"), ("anna muller", "M-1001"),
        ("mull", "M-1001"), ("müller, anna maria", "M-1001"), ("Johanes", "M-1004"),
        ("Joahnnes Schimdt", "M-1004"), ("Kowalski", "M-1003"), ("katrzina", "M-1003"),
        ("obrien", "M-1002"), ("O’Brien jean", "M-1002"), ("петров", "M-2001"),
        ("петроф", "M-2001"), ("030 12345678", "M-1001"), ("+49 30 1234 5678", "M-1001"),
        ("12345678", "M-1001"), ("030 12354678", "M-1001"), ("kasia@example.org", "M-1003"),
        ("kasai@example.org", "M-1003"), ("KASIA@EXAMPLE.ORG", "M-1003"), ("joe.sch@", None),
        ("joe.schmidt@", "M-1004"), ("xyzzy", None), ("anna kowalska", None), ("%", None),
        ("_" * 5, None), ("' OR 1=1 --", None),
    ],
)  # fmt: skip
async def test_who_is_found_first(people: Desk, text: str, best: str | None) -> None:
    found = await people.search(text)
    assert (found[0] if found else None) == best


async def test_the_exact_come_before_the_near(people: Desk) -> None:
    assert await people.search("schmitt") == ["M-1005", "M-1004"]
    reply = await people.call("SearchMembers", pb.SearchMembersRequest(query="schmidt"))
    assert [(m.score, m.matched_field) for m in reply.matches] == [
        (1.0, pb.MATCHED_FIELD_NAME), (0.75, pb.MATCHED_FIELD_NAME)
    ]  # fmt: skip


async def test_a_changed_and_a_deleted_member(people: Desk) -> None:
    member = await people.get(member_number="M-1005")
    member = await people.update(member, family_name="Wagner")
    assert await people.search("schmitt") == ["M-1004"]
    assert await people.search("wagner") == ["M-1005"]
    await people.delete(member)
    assert await people.search("wagner") == []
    shown = pb.MemberFilter(show_deleted=True)
    assert await people.search("wagner", filter=shown) == ["M-1005"]


async def test_another_organisation_finds_nothing(people: Desk, server: Running) -> None:
    theirs = Desk(server.channel, await server.org("south"), people.database_url)
    await theirs.create("Z-9999", given_name="Hugo")
    for text in ("muller", "M-1003", "kasia@example.org", "12345678"):
        assert await theirs.search(text) == []
    assert await theirs.search("Z-9999") == ["Z-9999"]


async def test_pages_of_a_search_are_complete_and_bound_to_it(desk: Desk) -> None:
    for number in range(25):
        await desk.create(f"N-{number:03}", given_name="Ida", family_name=f"Berg{number % 3 * 'h'}")
    request = pb.SearchMembersRequest(query="ida berg", page_size=10)
    seen: list[str] = []
    while True:
        reply = await desk.call("SearchMembers", request)
        seen.extend(match.member.member_number for match in reply.matches)
        if not reply.next_page_token:
            break
        request.page_token = reply.next_page_token
    assert sorted(seen) == [f"N-{number:03}" for number in range(25)]
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        other = pb.SearchMembersRequest(query="other", page_token=request.page_token)
        await desk.call("SearchMembers", other)


async def test_agents_search_masked(people: Desk) -> None:
    request = pb.SearchMembersRequest(query="muller")
    match = (await people.call("SearchMembers", request, Role.AGENT)).matches[0]
    assert (match.member.family_name, match.member.masked) == ("M.", True)


async def all_pages(desk: Desk, request: pb.ListMembersRequest) -> list[str]:
    numbers: list[str] = []
    while True:
        reply = await desk.call("ListMembers", request)
        numbers.extend(member.member_number for member in reply.members)
        if not reply.next_page_token:
            return numbers
        request.page_token = reply.next_page_token


async def test_lists_in_both_orders(people: Desk) -> None:
    numbers = sorted(PEOPLE)
    assert await all_pages(people, pb.ListMembersRequest(page_size=2)) == numbers
    await people.update(await people.get(member_number="M-1001"), plan="gold")
    by_time = pb.ListMembersRequest(page_size=2, order=pb.MEMBER_ORDER_UPDATE_TIME_DESC)
    assert await all_pages(people, by_time) == ["M-1001", *reversed(numbers[1:])]


async def test_filters(people: Desk) -> None:
    gold = await people.update(await people.get(member_number="M-1004"), plan="gold")
    suspended = await people.get(member_number="M-1005")
    await people.update(suspended, status=pb.MEMBER_STATUS_SUSPENDED, effective_to="2024-06-30")
    for wanted, numbers in (
        (pb.MemberFilter(plans=["gold"]), ["M-1004"]),
        (pb.MemberFilter(statuses=[pb.MEMBER_STATUS_SUSPENDED]), ["M-1005"]),
        (pb.MemberFilter(effective_on="2024-07-01"), sorted(set(PEOPLE) - {"M-1005"})),
        (pb.MemberFilter(updated_from_time=gold.update_time), ["M-1004", "M-1005"]),
        (
            pb.MemberFilter(updated_to_time=gold.update_time),
            sorted(set(PEOPLE) - {"M-1004", "M-1005"}),
        ),
        (pb.MemberFilter(last_import_id="00000000-0000-4000-8000-000000000000"), []),
    ):  # fmt: skip
        for order in (pb.MEMBER_ORDER_MEMBER_NUMBER, pb.MEMBER_ORDER_UPDATE_TIME_DESC):
            request = pb.ListMembersRequest(filter=wanted, page_size=2, order=order)
            assert sorted(await all_pages(people, request)) == numbers


@pytest.mark.parametrize("token", ["x", "A" * 40, "\U0001f600", "=" * 5000])
async def test_tokens_of_the_wrong_kind(people: Desk, token: str) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        await people.call("ListMembers", pb.ListMembersRequest(page_token=token))


async def test_a_token_is_good_for_one_list(people: Desk, server: Running) -> None:
    first = await people.call("ListMembers", pb.ListMembersRequest(page_size=2))
    theirs = Desk(server.channel, await server.org("south"), people.database_url)
    token = first.next_page_token
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        await theirs.call("ListMembers", pb.ListMembersRequest(page_token=token))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        wanted = pb.MemberFilter(plans=["gold"])
        await people.call("ListMembers", pb.ListMembersRequest(page_token=token, filter=wanted))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        await people.call("SearchMembers", pb.SearchMembersRequest(query="anna", page_token=token))


async def test_bad_pages(people: Desk) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await people.call("ListMembers", pb.ListMembersRequest(page_size=-1))
    reply = await people.call("ListMembers", pb.ListMembersRequest(page_size=5000))
    assert len(reply.members) == len(PEOPLE)
    masked = pb.ListMembersRequest(page_size=1, read_mask=FieldMask(paths=["member_number"]))
    reply = await people.call("ListMembers", masked)
    assert reply.members[0] == pb.Member(member_number="M-1001")


ONE_KIND = st.text("abc", min_size=5, max_size=8) | st.text("123", min_size=5, max_size=8)


@given(ONE_KIND, st.integers(0, 9), st.booleans())
def test_a_typing_error_is_undone_by_another(code: str, place: int, is_left_out: bool) -> None:
    at = place % (len(code) - 1)  # what lacks its last character is found as a beginning
    other = "z" if code[at].isalpha() else "9"
    wrong = code[:at] + ("" if is_left_out else other) + code[at + 1 :]
    assert code in set(search.typos(wrong))
    assert search.distance(code, wrong, 2) == 1
