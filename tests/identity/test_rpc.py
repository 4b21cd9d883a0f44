"""IdentityService through a real channel: users, keys, organisation, what repeats get."""

import asyncio
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from tests.identity.conftest import PASSWORD, House, MakeOrg, Org, Process, bearer, refusal
from trunkline.api.identity.v1 import identity_service_pb2 as pb
from trunkline.api.options.v1 import policy_pb2
from trunkline_server.identity import admin
from trunkline_server.rpc.caller import Role

Code = grpc.StatusCode
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


def new_user(org: Org, name: str = "bob", **given: Any) -> pb.CreateUserRequest:
    given.setdefault("role", policy_pb2.ROLE_AGENT)
    given.setdefault("password", PASSWORD)
    return pb.CreateUserRequest(email=f"{name}@{org.slug}.example", display_name=name, **given)


def login(org: Org, email: str, password: str = PASSWORD) -> pb.LoginRequest:
    return pb.LoginRequest(org_slug=org.slug, email=email, password=password)


async def test_who_am_i_for_a_user_and_for_a_key(process: Process, org: Org) -> None:
    me = await process.stub.WhoAmI(pb.WhoAmIRequest(), metadata=org.auth)
    assert (me.org_id, me.actor_id) == (str(org.org_id), str(org.admin_id))
    assert (me.org_slug, me.actor_name, me.role) == (org.slug, "Ada", policy_pb2.ROLE_ADMIN)
    for role, key in org.keys.items():
        me = await process.stub.WhoAmI(pb.WhoAmIRequest(), metadata=bearer(key))
        assert me.actor_kind == pb.ACTOR_KIND_KEY
        assert me.role == int(role)
        assert not me.HasField("expire_time")


async def test_a_created_user_logs_in_and_is_listed(process: Process, org: Org) -> None:
    reply = await process.stub.CreateUser(new_user(org, "Bob"), metadata=org.auth)
    assert reply.user.email == f"bob@{org.slug}.example"
    assert not reply.generated_password
    got = await process.stub.Login(login(org, f"BOB@{org.slug}.example"))
    assert got.user.user_id == reply.user.user_id
    assert got.user.HasField("last_login_time")
    users = (await process.stub.ListUsers(pb.ListUsersRequest(), metadata=org.auth)).users
    assert [user.display_name for user in users] == ["Ada", "Bob"]


async def test_a_taken_address_a_weak_password_and_the_role_for_keys(
    process: Process, org: Org
) -> None:
    await process.stub.CreateUser(new_user(org), metadata=org.auth)
    taken = await refusal(process.stub.CreateUser(new_user(org), metadata=org.auth))
    assert (taken.code, taken.reason) == (Code.ALREADY_EXISTS, "USER_EMAIL_TAKEN")
    weak = new_user(org, "eve", password="aaaaaaaaaaaaaaaa")
    refused = await refusal(process.stub.CreateUser(weak, metadata=org.auth))
    assert (refused.code, refused.fields) == (Code.INVALID_ARGUMENT, ["password"])
    system = new_user(org, "eve", role=policy_pb2.ROLE_SYSTEM)
    refused = await refusal(process.stub.CreateUser(system, metadata=org.auth))
    assert (refused.code, refused.fields) == (Code.INVALID_ARGUMENT, ["role"])


async def test_a_generated_password_is_shown_once_and_works(process: Process, org: Org) -> None:
    request = new_user(org, password="", request_id=str(uuid4()))
    first = await process.stub.CreateUser(request, metadata=org.auth)
    again = await process.stub.CreateUser(request, metadata=org.auth)
    assert first.generated_password
    assert not again.generated_password
    assert again.user == first.user
    await process.stub.Login(login(org, first.user.email, first.generated_password))


async def test_a_repeat_gets_the_first_answer_and_another_payload_is_refused(
    process: Process, org: Org
) -> None:
    request = new_user(org, request_id=str(uuid4()))
    replies = await asyncio.gather(
        *(process.stub.CreateUser(request, metadata=org.auth) for _ in range(5))
    )
    assert len({reply.user.user_id for reply in replies}) == 1
    request.display_name = "other"
    refused = await refusal(process.stub.CreateUser(request, metadata=org.auth))
    assert (refused.code, refused.reason) == (Code.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    # The same id is free in another method.
    key = pb.CreateApiKeyRequest(
        request_id=request.request_id, display_name="k", role=policy_pb2.ROLE_AGENT
    )
    await process.stub.CreateApiKey(key, metadata=org.auth)


async def test_what_is_remembered_of_a_request_holds_no_secret(
    process: Process, org: Org, superuser: Any
) -> None:
    request = pb.CreateApiKeyRequest(
        request_id=str(uuid4()), display_name="nightly", role=policy_pb2.ROLE_SYSTEM
    )
    reply = await process.stub.CreateApiKey(request, metadata=org.auth)
    stored = await superuser.fetchval("SELECT response FROM requests WHERE org_id = $1", org.org_id)
    assert b"nightly" in stored
    assert reply.secret.encode() not in stored
    assert not (await process.stub.CreateApiKey(request, metadata=org.auth)).secret


async def test_update_user_checks_the_etag_and_changes_only_the_mask(
    process: Process, org: Org
) -> None:
    user = (await process.stub.CreateUser(new_user(org), metadata=org.auth)).user
    wanted = pb.User(
        user_id=user.user_id, display_name="Robert", role=policy_pb2.ROLE_TRAINER, etag=user.etag
    )
    request = pb.UpdateUserRequest(user=wanted, update_mask=FieldMask(paths=["display_name"]))
    changed = (await process.stub.UpdateUser(request, metadata=org.auth)).user
    assert (changed.display_name, changed.role) == ("Robert", policy_pb2.ROLE_AGENT)
    stale = await refusal(process.stub.UpdateUser(request, metadata=org.auth))
    assert (stale.code, stale.reason) == (Code.ABORTED, "ETAG_MISMATCH")
    request.update_mask.paths[:] = ["*"]
    star = await refusal(process.stub.UpdateUser(request, metadata=org.auth))
    assert star.code is Code.INVALID_ARGUMENT


async def test_the_last_administrator_stays(process: Process, org: Org) -> None:
    wanted = pb.User(user_id=str(org.admin_id), role=policy_pb2.ROLE_AGENT)
    request = pb.UpdateUserRequest(user=wanted, update_mask=FieldMask(paths=["role"]))
    refused = await refusal(process.stub.UpdateUser(request, metadata=org.auth))
    assert (refused.code, refused.reason) == (Code.FAILED_PRECONDITION, "LAST_ADMIN")
    second = new_user(org, role=policy_pb2.ROLE_ADMIN)
    await process.stub.CreateUser(second, metadata=org.auth)
    await process.stub.UpdateUser(request, metadata=org.auth)


async def test_two_administrators_cannot_demote_each_other(
    process: Process, org: Org, superuser: Any
) -> None:
    created = await process.stub.CreateUser(
        new_user(org, role=policy_pb2.ROLE_ADMIN), metadata=org.auth
    )
    requests = [
        pb.UpdateUserRequest(
            user=pb.User(user_id=user_id, role=policy_pb2.ROLE_AGENT),
            update_mask=FieldMask(paths=["role"]),
        )
        for user_id in (str(org.admin_id), created.user.user_id)
    ]
    key = bearer(org.keys[Role.ADMIN])
    await process.stub.WhoAmI(pb.WhoAmIRequest(), metadata=key)
    # Both are held up at the users' rows, and let go at the same moment.
    async with superuser.transaction():
        await superuser.execute("SELECT FROM users WHERE org_id = $1 FOR UPDATE", org.org_id)
        calls = [
            asyncio.ensure_future(process.stub.UpdateUser(request, metadata=key))
            for request in requests
        ]
        async with asyncio.timeout(1):
            while await superuser.fetchval(WAITING) < len(calls):
                await asyncio.sleep(0.01)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(result, grpc.aio.AioRpcError) for result in results) == 1


async def test_a_suspended_user_is_out_at_once(process: Process, org: Org) -> None:
    user = (await process.stub.CreateUser(new_user(org), metadata=org.auth)).user
    tokens = (await process.stub.Login(login(org, user.email))).tokens
    await process.stub.WhoAmI(pb.WhoAmIRequest(), metadata=bearer(tokens.access_token))
    request = pb.UpdateUserRequest(
        user=pb.User(user_id=user.user_id, state=pb.USER_STATE_SUSPENDED),
        update_mask=FieldMask(paths=["state"]),
    )
    await process.stub.UpdateUser(request, metadata=org.auth)
    refused = await refusal(
        process.stub.WhoAmI(pb.WhoAmIRequest(), metadata=bearer(tokens.access_token))
    )
    assert refused.code is Code.UNAUTHENTICATED
    refused = await refusal(process.stub.Login(login(org, user.email)))
    assert (refused.code, refused.reason) == (Code.PERMISSION_DENIED, "USER_SUSPENDED")
    # A wrong password does not learn that the account is suspended.
    refused = await refusal(process.stub.Login(login(org, user.email, "wrong password")))
    assert refused.reason == "LOGIN_FAILED"


async def test_reset_password_ends_all_log_ins(process: Process, org: Org) -> None:
    user = (await process.stub.CreateUser(new_user(org), metadata=org.auth)).user
    tokens = (await process.stub.Login(login(org, user.email))).tokens
    mine = bearer(tokens.access_token)
    wrong = pb.ResetPasswordRequest(current_password="wrong", new_password="emerald 55 staircase")
    refused = await refusal(process.stub.ResetPassword(wrong, metadata=mine))
    assert (refused.code, refused.reason) == (Code.PERMISSION_DENIED, "PASSWORD_MISMATCH")
    others = pb.ResetPasswordRequest(user_id=str(org.admin_id), new_password="emerald 55 staircase")
    refused = await refusal(process.stub.ResetPassword(others, metadata=mine))
    assert refused.code is Code.PERMISSION_DENIED
    right = pb.ResetPasswordRequest(current_password=PASSWORD, new_password="emerald 55 staircase")
    reply = await process.stub.ResetPassword(right, metadata=mine)
    assert reply.sessions_ended == 1
    refused = await refusal(process.stub.WhoAmI(pb.WhoAmIRequest(), metadata=mine))
    assert refused.code is Code.UNAUTHENTICATED
    refresh = pb.RefreshRequest(refresh_token=tokens.refresh_token)
    refused = await refusal(process.stub.Refresh(refresh))
    assert refused.reason == "REFRESH_TOKEN_INVALID"
    assert (await refusal(process.stub.Login(login(org, user.email)))).reason == "LOGIN_FAILED"
    await process.stub.Login(login(org, user.email, "emerald 55 staircase"))


async def test_an_administrator_resets_anybodys_password(process: Process, org: Org) -> None:
    user = (await process.stub.CreateUser(new_user(org), metadata=org.auth)).user
    reply = await process.stub.ResetPassword(
        pb.ResetPasswordRequest(user_id=user.user_id), metadata=org.auth
    )
    await process.stub.Login(login(org, user.email, reply.generated_password))


async def test_logout_ends_this_log_in_or_all(process: Process, org: Org) -> None:
    request = login(org, org.email)
    first, second = [(await process.stub.Login(request)).tokens for _ in range(2)]
    one = await process.stub.Logout(pb.LogoutRequest(), metadata=bearer(first.access_token))
    assert one.sessions_ended == 1
    who = pb.WhoAmIRequest()
    gone = await refusal(process.stub.WhoAmI(who, metadata=bearer(first.access_token)))
    assert gone.code is Code.UNAUTHENTICATED
    await process.stub.WhoAmI(who, metadata=bearer(second.access_token))
    rest = await process.stub.Logout(
        pb.LogoutRequest(all_sessions=True), metadata=bearer(second.access_token)
    )
    assert rest.sessions_ended == 2
    gone = await refusal(process.stub.WhoAmI(who, metadata=org.auth))
    assert gone.code is Code.UNAUTHENTICATED


async def test_lists_page_and_their_tokens_are_bound(
    process: Process, org: Org, make_org: MakeOrg
) -> None:
    """Bad input 85 to 89, and page sizes."""
    for name in ("carl", "dora", "emil"):
        await process.stub.CreateUser(new_user(org, name, password=""), metadata=org.auth)
    names, token = [], ""
    while True:
        page = await process.stub.ListUsers(
            pb.ListUsersRequest(page_size=3, page_token=token), metadata=org.auth
        )
        names += [user.display_name for user in page.users]
        token = page.next_page_token
        if not token:
            break
        kept = token
    assert names == ["Ada", "carl", "dora", "emil"]
    other = await make_org()
    broken = kept[:-2] + ("AA" if kept[-2:] != "AA" else "BB")
    attempts = [
        process.stub.ListUsers(pb.ListUsersRequest(page_token=bad), metadata=auth)
        for bad, auth in [("garbage", org.auth), (broken, org.auth), (kept, other.auth)]
    ]
    attempts.append(
        process.stub.ListUsers(pb.ListUsersRequest(page_token=kept, prefix="c"), metadata=org.auth)
    )
    attempts.append(
        process.stub.ListApiKeys(pb.ListApiKeysRequest(page_token=kept), metadata=org.auth)
    )
    refused = [await refusal(attempt) for attempt in attempts]
    assert {r.code for r in refused} == {Code.INVALID_ARGUMENT}
    assert len({(r.text, r.reason) for r in refused}) == 1
    negative = process.stub.ListUsers(pb.ListUsersRequest(page_size=-1), metadata=org.auth)
    assert (await refusal(negative)).code is Code.INVALID_ARGUMENT
    everything = await process.stub.ListUsers(
        pb.ListUsersRequest(page_size=5_000), metadata=org.auth
    )
    assert len(everything.users) == 4


async def test_a_key_rotates_with_an_overlap(process: Process, org: Org) -> None:
    """Bad input 94."""
    created = await process.stub.CreateApiKey(
        pb.CreateApiKeyRequest(display_name="nightly", role=policy_pb2.ROLE_SYSTEM),
        metadata=org.auth,
    )
    key_id, who = created.api_key.key_id, pb.WhoAmIRequest()
    await process.stub.WhoAmI(who, metadata=bearer(created.secret))
    rotated = await process.stub.RotateApiKey(
        pb.RotateApiKeyRequest(key_id=key_id, overlap=Duration(nanos=700_000_000)),
        metadata=org.auth,
    )
    assert len(rotated.api_key.secrets) == 2
    assert rotated.api_key.prefix == rotated.api_key.secrets[0].prefix
    for secret in (created.secret, rotated.secret):
        me = await process.stub.WhoAmI(who, metadata=bearer(secret))
        assert me.actor_id == key_id
    third = process.stub.RotateApiKey(pb.RotateApiKeyRequest(key_id=key_id), metadata=org.auth)
    assert (await refusal(third)).reason == "API_KEY_ROTATING"
    async with asyncio.timeout(2):
        while True:
            try:
                await process.stub.WhoAmI(who, metadata=bearer(created.secret))
            except grpc.aio.AioRpcError as error:
                assert error.code() is Code.UNAUTHENTICATED
                break
    await process.stub.WhoAmI(who, metadata=bearer(rotated.secret))
    at_once = await process.stub.RotateApiKey(
        pb.RotateApiKeyRequest(key_id=key_id, overlap=Duration()), metadata=org.auth
    )
    assert len(at_once.api_key.secrets) == 1
    gone = await refusal(process.stub.WhoAmI(who, metadata=bearer(rotated.secret)))
    assert gone.code is Code.UNAUTHENTICATED


async def test_revoked_keys_are_gone_from_lists_and_revoking_is_repeatable(
    process: Process, org: Org
) -> None:
    created = await process.stub.CreateApiKey(
        pb.CreateApiKeyRequest(display_name="k", role=policy_pb2.ROLE_AGENT), metadata=org.auth
    )
    request = pb.RevokeApiKeyRequest(key_id=created.api_key.key_id)
    first = await process.stub.RevokeApiKey(request, metadata=org.auth)
    assert await process.stub.RevokeApiKey(request, metadata=org.auth) == first
    listed = await process.stub.ListApiKeys(pb.ListApiKeysRequest(), metadata=org.auth)
    assert created.api_key.key_id not in [key.key_id for key in listed.api_keys]
    listed = await process.stub.ListApiKeys(
        pb.ListApiKeysRequest(show_revoked=True), metadata=org.auth
    )
    assert created.api_key.key_id in [key.key_id for key in listed.api_keys]
    rotate = pb.RotateApiKeyRequest(key_id=created.api_key.key_id)
    refused = await refusal(process.stub.RotateApiKey(rotate, metadata=org.auth))
    assert refused.reason == "API_KEY_REVOKED"


async def test_another_organisations_ids_are_not_found(
    process: Process, org: Org, make_org: MakeOrg
) -> None:
    other = await make_org()
    keys = (await process.stub.ListApiKeys(pb.ListApiKeysRequest(), metadata=other.auth)).api_keys
    user = pb.User(user_id=str(other.admin_id), display_name="x")
    mask = FieldMask(paths=["display_name"])
    for foreign, nothing in [
        (
            process.stub.RevokeApiKey(pb.RevokeApiKeyRequest(key_id=key_id), metadata=org.auth)
            for key_id in (keys[0].key_id, str(uuid4()))
        ),
        (
            process.stub.UpdateUser(
                pb.UpdateUserRequest(
                    user=pb.User(user_id=user_id, display_name="x"), update_mask=mask
                ),
                metadata=org.auth,
            )
            for user_id in (user.user_id, str(uuid4()))
        ),
        (
            process.stub.ResetPassword(
                pb.ResetPasswordRequest(user_id=user_id, new_password=PASSWORD), metadata=org.auth
            )
            for user_id in (user.user_id, str(uuid4()))
        ),
    ]:
        theirs, none = await refusal(foreign), await refusal(nothing)
        assert theirs.code is Code.NOT_FOUND
        assert (theirs.text, theirs.raw) == (none.text, none.raw)


async def test_update_org_sets_what_is_in_force(process: Process, org: Org) -> None:
    before = (await process.stub.GetOrg(pb.GetOrgRequest(), metadata=org.auth)).org
    assert before.quotas.import_columns == 200
    wanted = pb.Org(
        etag=before.etag,
        time_zone="Europe/Berlin",
        quotas=pb.Quotas(users=2),
        retention=pb.Retention(events_days=30),
    )
    mask = FieldMask(paths=["time_zone", "quotas", "retention"])
    after = (
        await process.stub.UpdateOrg(
            pb.UpdateOrgRequest(org=wanted, update_mask=mask), metadata=org.auth
        )
    ).org
    assert (after.time_zone, after.quotas.users, after.quotas.import_columns) == (
        "Europe/Berlin",
        2,
        200,
    )
    assert (after.retention.events_days, after.display_name) == (30, "Acme")
    await process.stub.CreateUser(new_user(org), metadata=org.auth)
    full = await refusal(process.stub.CreateUser(new_user(org, "eve"), metadata=org.auth))
    assert (full.code, full.reason) == (Code.RESOURCE_EXHAUSTED, "USER_QUOTA_REACHED")


@pytest.mark.parametrize(
    ("wanted", "field", "reason"),
    [
        (pb.Org(time_zone="Mars/Olympus"), "time_zone", "ORG_SETTING_INVALID"),
        (pb.Org(display_name=" "), "display_name", "ORG_SETTING_INVALID"),
        (
            pb.Org(member_rules=pb.MemberRules(number_pattern="(")),
            "member_rules",
            "ORG_SETTING_INVALID",
        ),
        (pb.Org(quotas=pb.Quotas(users=10**9)), "quotas", "QUOTA_NOT_RAISABLE"),
    ],
)
async def test_settings_that_are_refused(
    process: Process, org: Org, wanted: pb.Org, field: str, reason: str
) -> None:
    request = pb.UpdateOrgRequest(org=wanted, update_mask=FieldMask(paths=[field]))
    assert (await refusal(process.stub.UpdateOrg(request, metadata=org.auth))).reason == reason


async def test_a_role_too_weak_and_a_suspended_organisation(
    house: House, process: Process, org: Org
) -> None:
    """Bad input 103 and 104; the second process learns of it as well."""
    for role in (Role.AGENT, Role.TRAINER, Role.REGISTRAR, Role.SYSTEM):
        call = process.stub.ListUsers(pb.ListUsersRequest(), metadata=bearer(org.keys[role]))
        refused = await refusal(call)
        assert (refused.code, refused.reason) == (Code.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")
    second, who = await house.process(), pb.WhoAmIRequest()
    await second.stub.WhoAmI(who, metadata=org.auth)
    await admin.set_org_state(process.db, process.link, org.slug, suspended=True)
    for stub in (process.stub, second.stub):
        async with asyncio.timeout(1):
            while True:
                try:
                    await stub.WhoAmI(who, metadata=org.auth)
                except grpc.aio.AioRpcError as error:
                    assert error.code() is Code.PERMISSION_DENIED
                    break
    refused = await refusal(process.stub.Login(login(org, org.email)))
    assert (refused.code, refused.reason) == (Code.PERMISSION_DENIED, "ORG_SUSPENDED")
    await admin.set_org_state(process.db, process.link, org.slug, suspended=False)
    await process.stub.WhoAmI(who, metadata=bearer(org.keys[Role.AGENT]))
