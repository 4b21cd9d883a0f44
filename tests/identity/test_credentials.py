"""Bad input 90 to 106: what is no credential, what is one no longer, and who is slowed down."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from typing import Any
from uuid import uuid4

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from tests.identity.conftest import PASSWORD, House, MakeOrg, Org, Process, bearer, refusal
from trunkline.api.identity.v1 import identity_service_pb2 as pb
from trunkline.api.options.v1 import policy_pb2
from trunkline_server.identity import rules, tokens
from trunkline_server.identity.errors import LoginLocked
from trunkline_server.identity.lockout import Lockout
from trunkline_server.local import Valkey as LocalValkey
from trunkline_server.rpc.caller import Role
from trunkline_server.valkey import Valkey

Code = grpc.StatusCode
WHO = pb.WhoAmIRequest()


async def until_refused(stub: Any, credential: str, within_s: float) -> float:
    """Seconds until the credential is refused as unauthenticated."""
    started = time.monotonic()
    async with asyncio.timeout(within_s):
        while True:
            try:
                await stub.WhoAmI(WHO, metadata=bearer(credential))
            except grpc.aio.AioRpcError as error:
                assert error.code() is Code.UNAUTHENTICATED
                return time.monotonic() - started


async def test_none_or_not_a_credential_touches_no_database(process: Process, org: Org) -> None:
    """90 and 91."""
    good = org.keys[Role.AGENT]
    process.readers.asked = 0
    texts = set()
    for metadata in [
        None,
        (("authorization", good),),
        (("authorization", f"Basic {good}"),),
        bearer("garbage"),
        bearer("a.b.c"),
        bearer("tlx_" + good[4:]),
        bearer(good[:-1] + ("a" if good[-1] != "a" else "b")),
        bearer("tlk_"),
        bearer("x" * 5_000),
    ]:
        refused = await refusal(process.stub.WhoAmI(WHO, metadata=metadata))
        assert (refused.code, refused.reason) == (Code.UNAUTHENTICATED, "CREDENTIAL_INVALID")
        texts.add(refused.text)
    assert process.readers.asked == 0
    # 92: well formed, but of nobody; the text is the same.
    _, unknown = rules.api_key(bytes(range(48)))
    refused = await refusal(process.stub.WhoAmI(WHO, metadata=bearer(unknown)))
    assert process.readers.asked == 1
    assert texts == {refused.text}


def forged(house: House, header: dict[str, Any], claims: dict[str, Any], key: Any = None) -> str:
    """Signed with the real key unless another way is given."""
    pem = house.secrets.signing_keys[0]
    private = serialization.load_pem_private_key(pem.encode(), None)
    public = private.public_key()
    full = {"alg": "EdDSA", "typ": "at+jwt", "kid": tokens.kid(public)} | header  # type: ignore[arg-type]

    def part(content: dict[str, Any]) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=")

    signed = part(full) + b"." + part(claims)
    if key == "none":
        signature = b""
    elif key == "hs256":
        raw = public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        signature = hmac.digest(raw, signed, hashlib.sha256)
    else:
        signature = private.sign(signed)  # type: ignore[union-attr,call-arg]
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def real_claims(org: Org) -> dict[str, Any]:
    return dict(jwt.decode(org.access, options={"verify_signature": False}))


async def test_the_forger_of_these_tests_makes_good_tokens(
    house: House, process: Process, org: Org
) -> None:
    token = forged(house, {}, real_claims(org))
    await process.stub.WhoAmI(WHO, metadata=bearer(token))


@pytest.mark.parametrize(
    ("header", "changed", "key"),
    [
        ({"alg": "none"}, {}, "none"),
        ({"alg": "HS256"}, {}, "hs256"),
        ({}, {}, "hs256"),
        ({"kid": "0123456789abcdef"}, {}, None),
        ({"kid": "../../etc/passwd"}, {}, None),
        ({"jku": "https://evil.example/jwks"}, {}, None),
        ({"crit": ["exp"], "exp": 1}, {}, None),
        ({"crit": ["b64"], "b64": False}, {}, None),
        ({"typ": "JWT"}, {}, None),
        ({}, {"aud": "trunkline-admin"}, None),
        ({}, {"aud": ["trunkline", "x"]}, None),
        ({}, {"iss": "trunk"}, None),
        ({}, {"iss": "https://trunkline"}, None),
        ({}, {"exp": -61}, None),
        ({}, {"nbf": 70}, None),
        ({}, {"exp": 10_000}, None),
        ({}, {"sid": str(uuid4())}, None),
        ({}, {"org": str(uuid4())}, None),
    ],
)
async def test_forged_tokens(
    house: House,
    process: Process,
    org: Org,
    header: dict[str, Any],
    changed: dict[str, Any],
    key: str | None,
) -> None:
    """95 to 102."""
    now = int(time.time())
    for name in ("exp", "nbf"):
        if name in changed:
            changed = changed | {name: now + changed[name]}
    token = forged(house, header, real_claims(org) | changed, key)
    refused = await refusal(process.stub.WhoAmI(WHO, metadata=bearer(token)))
    assert refused.code is Code.UNAUTHENTICATED
    assert refused.text in (
        "The credential is missing or not valid.",
        "The access token has expired; call Refresh.",
    )


async def test_an_unknown_key_id_costs_no_look_up(house: House, process: Process, org: Org) -> None:
    """97: there is nothing to fetch, so there is no storm."""
    token = forged(house, {"kid": "0123456789abcdef"}, real_claims(org))
    process.readers.asked = 0
    for _ in range(20):
        await refusal(process.stub.WhoAmI(WHO, metadata=bearer(token)))
    assert process.readers.asked == 0


async def test_signing_keys_rotate_without_a_refused_token(house: House, org: Org) -> None:
    """Both processes of a rolling restart accept both keys."""
    old, new = house.secrets.signing_keys[0], tokens.new_signing_key()
    house.secrets.signing_keys = [old, new]
    prepared = await house.process()
    house.secrets.signing_keys = [new, old]
    rotated = await house.process()
    fresh = (await rotated.stub.Login(_login(org))).tokens.access_token
    assert jwt.get_unverified_header(fresh) != jwt.get_unverified_header(org.access)
    for process in (prepared, rotated):
        for token in (org.access, fresh):
            await process.stub.WhoAmI(WHO, metadata=bearer(token))
    house.secrets.signing_keys = [new]
    after = await house.process()
    await after.stub.WhoAmI(WHO, metadata=bearer(fresh))
    gone = await refusal(after.stub.WhoAmI(WHO, metadata=bearer(org.access)))
    assert gone.code is Code.UNAUTHENTICATED


async def test_peppers_rotate_and_used_keys_move_to_the_new_one(
    house: House, org: Org, superuser: Any
) -> None:
    old, new = house.secrets.peppers[0], b"n" * 32
    house.secrets.peppers = [new, old]
    rotating = await house.process()
    key = org.keys[Role.AGENT]
    await rotating.stub.WhoAmI(WHO, metadata=bearer(key))
    await rotating.authenticator.close()
    refreshed = await rotating.stub.Refresh(pb.RefreshRequest(refresh_token=org.refresh))
    house.secrets.peppers = [new]
    after = await house.process()
    await after.stub.WhoAmI(WHO, metadata=bearer(key))
    await after.stub.Refresh(pb.RefreshRequest(refresh_token=refreshed.tokens.refresh_token))
    unused = org.keys[Role.TRAINER]
    gone = await refusal(after.stub.WhoAmI(WHO, metadata=bearer(unused)))
    assert gone.code is Code.UNAUTHENTICATED


def _login(org: Org, password: str = PASSWORD) -> pb.LoginRequest:
    return pb.LoginRequest(org_slug=org.slug, email=org.email, password=password)


async def _new_key(process: Process, org: Org) -> tuple[str, str]:
    request = pb.CreateApiKeyRequest(display_name="k", role=policy_pb2.ROLE_AGENT)
    created = await process.stub.CreateApiKey(request, metadata=org.auth)
    return created.api_key.key_id, created.secret


async def test_a_revoked_key_and_a_log_out_reach_all_processes_within_a_second(
    house: House, process: Process, org: Org
) -> None:
    """93."""
    second = await house.process()
    key_id, secret = await _new_key(process, org)
    for stub in (process.stub, second.stub):
        await stub.WhoAmI(WHO, metadata=bearer(secret))
    # Remembered: another call asks nobody.
    second.readers.asked = 0
    await second.stub.WhoAmI(WHO, metadata=bearer(secret))
    assert second.readers.asked == 0
    await process.stub.RevokeApiKey(pb.RevokeApiKeyRequest(key_id=key_id), metadata=org.auth)
    assert await until_refused(process.stub, secret, 1) < 1
    assert await until_refused(second.stub, secret, 1) < 1
    await second.stub.WhoAmI(WHO, metadata=org.auth)
    await process.stub.Logout(pb.LogoutRequest(), metadata=org.auth)
    assert await until_refused(second.stub, org.access, 1) < 1


async def test_what_is_revoked_while_it_is_read_is_not_remembered(
    process: Process, org: Org
) -> None:
    key_id, secret = await _new_key(process, org)
    request = pb.RevokeApiKeyRequest(key_id=key_id)

    async def revoke() -> None:
        process.readers.after = None
        await process.stub.RevokeApiKey(request, metadata=org.auth)

    process.readers.after = revoke
    # This call had read the key before it was revoked: it may pass, the next one may not.
    await process.stub.WhoAmI(WHO, metadata=bearer(secret))
    refused = await refusal(process.stub.WhoAmI(WHO, metadata=bearer(secret)))
    assert refused.code is Code.UNAUTHENTICATED


async def test_revocation_without_valkey(house: House, org: Org) -> None:
    """No link at all: nothing is remembered for longer than half a second."""
    first, second = [await house.process(without_valkey=True) for _ in range(2)]
    key_id, secret = await _new_key(first, org)
    await second.stub.WhoAmI(WHO, metadata=bearer(secret))
    await first.stub.RevokeApiKey(pb.RevokeApiKeyRequest(key_id=key_id), metadata=org.auth)
    assert await until_refused(second.stub, secret, 1) < 1


async def test_revocation_while_valkey_is_frozen(
    database_url: str, house: House, process: Process, org: Org, valkey: LocalValkey
) -> None:
    house._redis_url = valkey.url()
    first, second = [await house.process() for _ in range(2)]
    key_id, secret = await _new_key(first, org)
    await second.stub.WhoAmI(WHO, metadata=bearer(secret))
    assert second.link is not None
    valkey.freeze()
    try:
        assert await second.link.wait(trusted=False, timeout_s=2)
        await second.stub.WhoAmI(WHO, metadata=bearer(secret))
        await first.stub.RevokeApiKey(pb.RevokeApiKeyRequest(key_id=key_id), metadata=org.auth)
        assert await until_refused(second.stub, secret, 1) < 1
    finally:
        valkey.thaw()


async def test_guessing_is_stopped_and_the_victim_elsewhere_is_not(
    house: House, process: Process, org: Org, make_org: MakeOrg
) -> None:
    """105: the guesser is at 127.0.0.1, the rightful user comes from ::1."""
    elsewhere = await house.process(address="[::1]")
    attempts = [refusal(process.stub.Login(_login(org, f"guess {i} guess"))) for i in range(30)]
    refused = await asyncio.gather(*attempts)
    failed = [r for r in refused if r.reason == "LOGIN_FAILED"]
    locked = [r for r in refused if r.reason == "LOGIN_LOCKED"]
    assert len(failed) == rules.ATTEMPTS_BURST
    assert len(locked) == 30 - rules.ATTEMPTS_BURST
    assert all(r.code is Code.RESOURCE_EXHAUSTED and r.retry_s for r in locked)
    # Even the right password does not tell the guesser anything now.
    right = await refusal(process.stub.Login(_login(org)))
    assert right.reason == "LOGIN_LOCKED"
    await elsewhere.stub.Login(_login(org))
    await process.stub.WhoAmI(WHO, metadata=org.auth)
    # Somebody else behind the same address is not affected either.
    other = await make_org()
    await process.stub.Login(_login(other))


async def test_slips_are_forgotten_after_the_right_password(process: Process, org: Org) -> None:
    for _ in range(3):
        for _ in range(rules.ATTEMPTS_BURST - 1):
            refused = await refusal(process.stub.Login(_login(org, "a slip of the finger")))
            assert refused.reason == "LOGIN_FAILED"
        await process.stub.Login(_login(org))


async def test_guessing_the_secret_of_a_known_key_prefix(
    house: House, process: Process, org: Org
) -> None:
    key = org.keys[Role.AGENT]
    prefix = rules.api_key_prefix(key)
    assert prefix

    def guess(i: int) -> str:
        body = f"tlk_{prefix}_" + rules.base62(bytes([i]) * 40, rules.SECRET_CHARS)
        return body + rules._checksum(body)

    reasons = []
    for i in range(rules.ATTEMPTS_BURST + 3):
        refused = await refusal(process.stub.WhoAmI(WHO, metadata=bearer(guess(i))))
        reasons.append(refused.reason)
    assert reasons[: rules.ATTEMPTS_BURST] == ["CREDENTIAL_INVALID"] * rules.ATTEMPTS_BURST
    assert reasons[-1] == "LOGIN_LOCKED"
    # The rightful holder elsewhere, and the other keys from here, still get in.
    elsewhere = await house.process(address="[::1]")
    await elsewhere.stub.WhoAmI(WHO, metadata=bearer(key))
    await process.stub.WhoAmI(WHO, metadata=bearer(org.keys[Role.TRAINER]))


async def test_lock_out_is_shared_by_processes_and_stricter_without_valkey(redis_url: str) -> None:
    valkey = Valkey(redis_url)
    shared = [Lockout(valkey), Lockout(valkey)]
    taken = 0
    for i in range(30):
        try:
            await shared[i % 2].attempt("login", "a", "192.0.2.1")
            taken += 1
        except LoginLocked as locked:
            assert locked.retry_after_s is not None
            assert 0 < locked.retry_after_s <= rules.ATTEMPT_INTERVAL_S
    assert taken == rules.ATTEMPTS_BURST
    await valkey.close()
    alone = Lockout(None)
    for _ in range(rules.ATTEMPTS_BURST_ALONE):
        await alone.attempt("login", "a", "192.0.2.1")
    with pytest.raises(LoginLocked):
        await alone.attempt("login", "a", "192.0.2.1")
    with pytest.raises(LoginLocked):
        alone.check("login", "a", "192.0.2.1")
    await alone.attempt("login", "a", "192.0.2.2")
    await alone.attempt("login", "b", "192.0.2.1")


async def test_an_attempt_comes_back_after_the_interval() -> None:
    now = [0.0]
    lockout = Lockout(None, clock=lambda: now[0])
    for _ in range(rules.ATTEMPTS_BURST_ALONE):
        await lockout.attempt("login", "a", "192.0.2.1")
    with pytest.raises(LoginLocked):
        await lockout.attempt("login", "a", "192.0.2.1")
    now[0] += rules.ATTEMPT_INTERVAL_S
    await lockout.attempt("login", "a", "192.0.2.1")


async def test_refresh_tokens_work_once_and_reuse_ends_the_log_in(
    process: Process, org: Org, superuser: Any
) -> None:
    first = pb.RefreshRequest(refresh_token=org.refresh)
    second = (await process.stub.Refresh(first)).tokens
    third = (
        await process.stub.Refresh(pb.RefreshRequest(refresh_token=second.refresh_token))
    ).tokens
    await process.stub.WhoAmI(WHO, metadata=bearer(third.access_token))
    # The successor was used, so this is no lost answer, however soon it comes.
    reused = await refusal(process.stub.Refresh(first))
    assert (reused.code, reused.reason) == (Code.UNAUTHENTICATED, "REFRESH_TOKEN_REUSED")
    last = await refusal(process.stub.Refresh(pb.RefreshRequest(refresh_token=third.refresh_token)))
    assert last.reason == "REFRESH_TOKEN_INVALID"
    for access in (org.access, second.access_token, third.access_token):
        gone = await refusal(process.stub.WhoAmI(WHO, metadata=bearer(access)))
        assert gone.code is Code.UNAUTHENTICATED
    noted = await superuser.fetchval(
        "SELECT count(*) FROM audit_log WHERE org_id = $1 AND reason = 'REFRESH_TOKEN_REUSED'",
        org.org_id,
    )
    assert noted == 1


async def test_a_lost_answer_can_be_asked_for_again_and_never_forks(
    process: Process, org: Org, superuser: Any
) -> None:
    request = pb.RefreshRequest(refresh_token=org.refresh)
    replies = await asyncio.gather(*(process.stub.Refresh(request) for _ in range(4)))
    assert len({reply.tokens.refresh_token for reply in replies}) == 1
    await superuser.execute(
        "UPDATE refresh_tokens SET used_at = used_at - interval '11 seconds' WHERE org_id = $1",
        org.org_id,
    )
    late = await refusal(process.stub.Refresh(request))
    assert late.reason == "REFRESH_TOKEN_REUSED"


async def test_a_guessed_refresh_token_does_not_end_the_log_in(process: Process, org: Org) -> None:
    token_id = rules.refresh_token_id(org.refresh)
    assert token_id
    guess = rules.refresh_token(token_id, bytes(36))
    for token in (guess, rules.refresh_token(uuid4(), bytes(36)), "tlr_x", org.refresh + "x"):
        refused = await refusal(process.stub.Refresh(pb.RefreshRequest(refresh_token=token)))
        assert (refused.code, refused.reason) == (Code.UNAUTHENTICATED, "REFRESH_TOKEN_INVALID")
    await process.stub.Refresh(pb.RefreshRequest(refresh_token=org.refresh))


async def test_many_calls_with_a_fresh_credential_ask_once(process: Process, org: Org) -> None:
    process.readers.asked = 0
    key = org.keys[Role.AGENT]
    await asyncio.gather(*(process.stub.WhoAmI(WHO, metadata=bearer(key)) for _ in range(50)))
    assert process.readers.asked == 1


async def test_no_secret_in_logs_errors_or_tables(
    process: Process, org: Org, superuser: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """106."""
    caplog.set_level(logging.DEBUG)
    _, secret = await _new_key(process, org)
    await process.stub.Refresh(pb.RefreshRequest(refresh_token=org.refresh))
    errors = [
        await refusal(process.stub.Login(_login(org, "canary password 4711"))),
        await refusal(process.stub.WhoAmI(WHO, metadata=bearer(secret[:-1] + "~"))),
        await refusal(
            process.stub.CreateUser(
                pb.CreateUserRequest(
                    email=org.email, display_name="x", role=policy_pb2.ROLE_AGENT, password=PASSWORD
                ),
                metadata=org.auth,
            )
        ),
    ]
    seen = caplog.text.encode() + b"".join(error.raw for error in errors)
    tables = ("users", "api_keys", "api_key_secrets", "refresh_tokens", "audit_log", "requests")
    stored = b""
    for table in tables:
        for row in await superuser.fetch(f"SELECT to_jsonb(t)::text AS all FROM {table} t"):
            stored += row["all"].encode()
    for canary in (secret, org.access, org.refresh, PASSWORD, "canary password 4711"):
        assert canary.encode() not in seen
        assert canary.encode() not in stored
        assert canary.encode().hex().encode() not in stored
    assert org.email.encode() not in seen
    log_rows = await superuser.fetch("SELECT to_jsonb(t)::text AS all FROM audit_log t")
    assert not any(org.email in row["all"] or "Ada" in row["all"] for row in log_rows)
