"""Create, read, change, delete, restore, history: through a real channel."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from tests.members.desk import Desk, refused
from tests.members.test_validate import ANNA
from tests.running import Running
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.rpc.caller import Role


async def test_a_member_is_stored_as_given(desk: Desk) -> None:
    created = await desk.create("M-1", **ANNA, attributes={"shoe_size": "44"})
    assert created == await desk.get(member_id=created.member_id)
    assert created == await desk.get(member_number=" M-1 ")
    assert (created.version, created.etag, dict(created.attributes)) == (
        1,
        "1",
        {"shoe_size": "44"},
    )
    assert created.provenance.cause == pb.CHANGE_CAUSE_CREATED


async def test_a_registrar_may_create_and_sees_it_masked(desk: Desk) -> None:
    created = await desk.create("M-1", Role.REGISTRAR, **ANNA)
    assert created.masked
    assert created.email == "a***@nowak.example"
    with refused(grpc.StatusCode.PERMISSION_DENIED):
        await desk.get(Role.REGISTRAR, member_id=created.member_id)


async def test_a_number_is_taken_once_even_by_the_deleted(desk: Desk, server: Running) -> None:
    member = await desk.create("M-1")
    with refused(grpc.StatusCode.ALREADY_EXISTS, "MEMBER_NUMBER_TAKEN"):
        await desk.create("M-1")
    await desk.delete(member)
    with refused(grpc.StatusCode.ALREADY_EXISTS, "MEMBER_NUMBER_TAKEN"):
        await desk.create("M-1")
    theirs = Desk(server.channel, await server.org("south"), desk.database_url)
    await theirs.create("M-1")


async def test_a_repeated_request_gets_the_first_answer(desk: Desk) -> None:
    request = pb.CreateMemberRequest(
        request_id=str(uuid.uuid4()), member=pb.Member(member_number="M-1")
    )
    first = await desk.call("CreateMember", request)
    assert await desk.call("CreateMember", request) == first
    request.member.given_name = "Other"
    with refused(grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        await desk.call("CreateMember", request)


async def test_an_update_changes_what_the_mask_names(desk: Desk) -> None:
    created = await desk.create("M-1", **ANNA)
    changed = await desk.update(created, plan="basic", family_name="Kowalska")
    assert (changed.plan, changed.family_name, changed.given_name) == ("basic", "Kowalska", "Anna")
    assert changed.version == 2
    again = await desk.update(changed, plan="basic")
    assert again.version == 2  # nothing to change, so no version
    with refused(grpc.StatusCode.ABORTED, "ETAG_MISMATCH") as refusal:
        await desk.update(created, plan="gold")
    assert refusal.details is not None
    assert refusal.details["ErrorInfo"].metadata["etag"] == "2"


@pytest.mark.parametrize("paths", [[], ["*"], ["etag"], ["nonsense"], ["member_id"]])
async def test_masks_that_are_refused(desk: Desk, paths: list[str]) -> None:
    created = await desk.create("M-1")
    request = pb.UpdateMemberRequest(
        member=pb.Member(member_id=created.member_id), update_mask=FieldMask(paths=paths)
    )
    with refused(grpc.StatusCode.INVALID_ARGUMENT):
        await desk.call("UpdateMember", request)


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"email": "nobody"}, "MEMBER_FIELD_INVALID", "member.email"),
        ({"phone": "12"}, "MEMBER_FIELD_INVALID", "member.phone"),
        ({"date_of_birth": "1980-02-30"}, "MEMBER_FIELD_INVALID", "member.date_of_birth"),
        ({"given_name": "a\u202eb"}, "MEMBER_FIELD_INVALID", "member.given_name"),
        ({"effective_from": "2024-02-01", "effective_to": "2024-01-01"},
         "MEMBER_DATES_INVERTED", "member.effective_to"),
        ({"attributes": {f"a{n}": "x" for n in range(40)}},
         "MEMBER_FIELD_INVALID", "member.attributes"),
        ({"attributes": {f"a{n}": "x" * 499 for n in range(32)} | {"b": "ß" * 400}},
         "MEMBER_FIELD_INVALID", "member.attributes"),
    ],
)  # fmt: skip
async def test_fields_that_are_refused(
    desk: Desk, fields: dict[str, Any], reason: str, field: str
) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, reason) as refusal:
        await desk.create("M-1", **fields)
    assert refusal.fields() == [field]


@pytest.mark.parametrize("number", ["", "М-1", "M\u200b1", "-1", "9" * 65, "M\x001"])
async def test_numbers_that_are_refused(desk: Desk, number: str) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT) as refusal:
        await desk.create(number)
    assert refusal.fields() == ["member.member_number"]


async def test_delete_and_undelete(desk: Desk) -> None:
    member = await desk.create("M-1")
    assert await desk.decision("M-1") == "ELIGIBLE"
    gone = await desk.delete(member)
    assert gone.purge_time.seconds - gone.delete_time.seconds == 30 * 86_400
    assert await desk.decision("M-1") == "NOT_ELIGIBLE"
    with refused(grpc.StatusCode.NOT_FOUND, "MEMBER_NOT_FOUND"):
        await desk.get(member_id=member.member_id)
    assert (await desk.get(member_id=member.member_id, show_deleted=True)).version == 2
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "MEMBER_DELETED"):
        await desk.update(gone, plan="gold")
    request = pb.UndeleteMemberRequest(member_id=member.member_id)
    assert (await desk.call("UndeleteMember", request)).member.version == 3
    assert await desk.decision("M-1") == "ELIGIBLE"
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "NOT_UNDELETABLE"):
        await desk.call("UndeleteMember", request)


async def test_an_agent_gets_it_masked_and_a_mask_keeps_the_rest_out(desk: Desk) -> None:
    await desk.create("M-1", **ANNA)
    seen = await desk.get(Role.AGENT, member_number="M-1")
    assert (seen.family_name, seen.date_of_birth) == ("N.", "")
    masked = await desk.get(member_number="M-1", read_mask=FieldMask(paths=["plan", "etag"]))
    assert masked == pb.Member(plan="gold", etag="1")


async def test_history_is_newest_first_with_what_changed(desk: Desk) -> None:
    member = await desk.create("M-1", **ANNA)
    for plan in ("a", "b", "c"):
        member = await desk.update(member, plan=plan)
    await desk.delete(member)
    request = pb.ListMemberHistoryRequest(member_id=member.member_id, page_size=2)
    versions = []
    while True:
        reply = await desk.call("ListMemberHistory", request)
        versions.extend(reply.versions)
        if not reply.next_page_token:
            break
        assert len(reply.versions) == 2
        request.page_token = reply.next_page_token
    assert [v.version for v in versions] == [5, 4, 3, 2, 1]
    assert [list(v.changed_fields) for v in versions] == [
        ["delete_time"], ["plan"], ["plan"], ["plan"], []
    ]  # fmt: skip
    assert [v.member.plan for v in versions] == ["c", "c", "b", "a", "gold"]
    assert [pb.ChangeCause.Name(v.cause) for v in versions[-2:]] == [
        "CHANGE_CAUSE_UPDATED", "CHANGE_CAUSE_CREATED"
    ]  # fmt: skip
    assert not versions[0].HasField("end_time")
    for newer, older in itertools.pairwise(versions):
        assert older.end_time == newer.start_time
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"):
        await desk.call(
            "ListMemberHistory",
            pb.ListMemberHistoryRequest(member_id=str(uuid.uuid4()), page_token=request.page_token),
        )


async def test_another_organisations_history_is_not_found(desk: Desk, server: Running) -> None:
    member = await desk.create("M-1")
    theirs = Desk(server.channel, await server.org("south"), desk.database_url)
    for method, request in (
        ("ListMemberHistory", pb.ListMemberHistoryRequest(member_id=member.member_id)),
        ("DeleteMember", pb.DeleteMemberRequest(member_id=member.member_id)),
        ("UndeleteMember", pb.UndeleteMemberRequest(member_id=member.member_id)),
        ("UpdateMember", pb.UpdateMemberRequest(
            member=member, update_mask=FieldMask(paths=["plan"]))),
        ("GetMember", pb.GetMemberRequest(member_number="M-1")),
    ):  # fmt: skip
        with refused(grpc.StatusCode.NOT_FOUND, "MEMBER_NOT_FOUND"):
            await theirs.call(method, request)


async def test_the_quota_is_kept(desk: Desk) -> None:
    async with desk.database() as database:
        await database.execute(
            'UPDATE orgs SET quotas = \'{"members": "2"}\' WHERE org_id = $1', desk.org.org_id
        )
    await desk.create("M-1")
    await desk.create("M-2")
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "MEMBER_QUOTA_REACHED"):
        await desk.create("M-3")


async def test_every_write_is_audited(desk: Desk) -> None:
    member = await desk.create("M-1", **ANNA)
    member = await desk.update(member, email="other@nowak.example")
    await desk.delete(member)
    async with desk.database() as database:
        rows = await database.fetch(
            "SELECT action, details::text FROM audit_log WHERE org_id = $1"
            " AND action LIKE 'member.%' ORDER BY at",
            desk.org.org_id,
        )
    assert [row["action"] for row in rows] == ["member.create", "member.update", "member.delete"]
    assert not any("nowak" in row["details"] for row in rows)
