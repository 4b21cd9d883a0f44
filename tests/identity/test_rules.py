"""The pure rules of identity."""

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline_server.audit_chain import CHAIN_START, AuditEntry, chain_hash
from trunkline_server.identity import rules
from trunkline_server.identity.rules import Peppers

NOW = 1_800_000_000.0
IDS = {"org": str(uuid4()), "sub": str(uuid4()), "sid": str(uuid4())}


def claims(**changed: object) -> dict[str, object]:
    now = int(NOW)
    return {"iss": "trunkline", "aud": "trunkline", "iat": now, "nbf": now, "exp": now + 900} | (
        IDS | changed
    )


def read(**changed: object) -> rules.Claims | None:
    return rules.checked_claims(
        claims(**changed), issuer="trunkline", audience="trunkline", now=NOW
    )


@given(st.binary(min_size=48, max_size=48))
def test_an_api_key_carries_its_prefix_and_is_checked_without_a_look_up(random: bytes) -> None:
    prefix, key = rules.api_key(random)
    assert key.startswith(rules.shown_prefix(prefix) + "_")
    assert rules.api_key_prefix(key) == prefix


@given(st.binary(min_size=48, max_size=48), st.data())
def test_one_changed_character_breaks_the_checksum(random: bytes, data: st.DataObject) -> None:
    _, key = rules.api_key(random)
    at = data.draw(st.integers(0, len(key) - 1))
    other = data.draw(st.sampled_from("0aZz_- é").filter(lambda c: c != key[at]))
    assert rules.api_key_prefix(key[:at] + other + key[at + 1 :]) is None


@given(st.text(max_size=120))
def test_any_text_is_no_key_and_no_refresh_token(text: str) -> None:
    assert rules.api_key_prefix(text) is None
    assert rules.refresh_token_id(text) is None


@given(st.uuids(), st.binary(min_size=36, max_size=36))
def test_a_refresh_token_carries_its_id(token_id: UUID, random: bytes) -> None:
    token = rules.refresh_token(token_id, random)
    assert rules.refresh_token_id(token) == token_id
    assert rules.api_key_prefix(token) is None


def test_keys_do_not_repeat() -> None:
    keys = {rules.api_key(os.urandom(48))[1] for _ in range(2_000)}
    assert len(keys) == 2_000


@pytest.mark.parametrize(
    ("password", "weak"),
    [
        ("short", True),
        ("aaaaaaaaaaaaaaaa", True),
        ("abcabcabcabcabc", True),
        ("Password12345!", True),
        ("123456789012345", True),
        ("ada.lovelace-1815", True),
        ("x" * 1025, True),
        ("violet harbour 92 kites", False),
        ("Zw8-kk21-Qq77-mm03", False),
        ("größer als der Mond", False),
    ],
)
def test_password_policy(password: str, weak: bool) -> None:
    reason = rules.password_weakness(password, "ada.lovelace@example.org")
    assert (reason is not None) is weak
    assert reason is None or password not in reason


def test_two_spellings_of_a_password_are_one() -> None:
    composed, decomposed = "größer als", "gro\u0308ßer als"
    assert rules.normalised_password(composed) == rules.normalised_password(decomposed)


def test_both_peppers_are_accepted_while_they_rotate_and_only_the_first_writes() -> None:
    old, new = os.urandom(32), os.urandom(32)
    written = Peppers([old]).digest("api-key", b"content")
    rotating = Peppers([new, old])
    assert rotating.match("api-key", b"content", written)
    assert not rotating.is_current("api-key", b"content", written)
    assert not Peppers([new]).match("api-key", b"content", written)
    assert not rotating.match("refresh-token", b"content", written)


def test_a_short_pepper_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Peppers([b"short"])


def test_good_claims() -> None:
    found = read()
    assert found is not None
    assert str(found.org_id) == IDS["org"]


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "trunk"},
        {"iss": "trunkline.evil"},
        {"iss": ["trunkline"]},
        {"aud": "other"},
        {"aud": ["trunkline", "other"]},
        {"exp": int(NOW) - 60},
        {"exp": "soon"},
        {"exp": True},
        {"exp": int(NOW) + 100_000},
        {"nbf": int(NOW) + 61},
        {"iat": int(NOW) + 61},
        {"sub": "me"},
        {"org": None},
        {"sid": 7},
    ],
)
def test_claims_that_are_refused(changed: dict[str, object]) -> None:
    assert read(**changed) is None


@pytest.mark.parametrize("changed", [{"exp": int(NOW) - 59}, {"nbf": int(NOW) + 59}])
def test_a_minute_of_leeway(changed: dict[str, object]) -> None:
    assert read(**changed) is not None


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none", "typ": "at+jwt", "kid": "k"},
        {"alg": "HS256", "typ": "at+jwt", "kid": "k"},
        {"alg": "EdDSA", "typ": "JWT", "kid": "k"},
        {"alg": "EdDSA", "typ": "at+jwt"},
        {"alg": "EdDSA", "typ": "at+jwt", "kid": 7},
        {"alg": "EdDSA", "typ": "at+jwt", "kid": "k", "jku": "https://evil.example/keys"},
        {"alg": "EdDSA", "typ": "at+jwt", "kid": "k", "crit": ["exp"]},
        {"alg": "EdDSA", "typ": "at+jwt", "kid": "k", "jwk": {}},
    ],
)
def test_headers_that_are_refused(header: dict[str, object]) -> None:
    assert not rules.header_is_ours(header)


@pytest.mark.parametrize(
    ("address", "scope"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("unix", "unix"),
    ],
)
def test_a_guesser_has_an_address_or_a_whole_network(address: str, scope: str) -> None:
    assert rules.address_scope(address) == scope


@given(st.lists(st.floats(0, 40), min_size=1, max_size=60), st.integers(1, 12))
def test_gcra_never_gives_more_than_burst_and_rate(gaps: list[float], burst: int) -> None:
    interval_s, now, arrival = 10.0, 0.0, None
    taken: list[float] = []
    for gap in gaps:
        now += gap
        arrival, wait_s = rules.gcra(arrival, now, interval_s=interval_s, burst=burst)
        if wait_s == 0:
            taken.append(now)
        else:
            _, later = rules.gcra(arrival, now + wait_s + 1e-6, interval_s=interval_s, burst=burst)
            assert later == 0
    for i, start in enumerate(taken):
        for j in range(i, len(taken)):
            assert j - i + 1 <= burst + (taken[j] - start) / interval_s + 1e-6


ENTRY = AuditEntry(
    org_id=UUID(int=1),
    audit_id=UUID(int=2),
    at=datetime(2026, 5, 1, 12, 0, 0, 123456, UTC),
    actor_kind="USER",
    actor_id=UUID(int=3),
    role="ADMIN",
    action="identity.CreateUser",
    resource_type="user",
    resource_id="4",
    outcome="OK",
    reason="",
    request_id="r",
    peer="192.0.2.7",
    details={"b": "2", "a": "1"},
)


@pytest.mark.parametrize(
    "changed",
    [
        {"actor_id": UUID(int=9)},
        {"actor_kind": "KEY"},
        {"role": "AGENT"},
        {"action": "identity.UpdateUser"},
        {"resource_id": "5"},
        {"resource_type": "key"},
        {"outcome": "REFUSED"},
        {"reason": "X"},
        {"request_id": "s"},
        {"peer": "192.0.2.8"},
        {"details": {"a": "1"}},
        {"at": ENTRY.at + timedelta(microseconds=1)},
        {"org_id": UUID(int=8)},
        {"audit_id": UUID(int=8)},
    ],
)
def test_every_field_of_an_event_is_in_the_chain(changed: dict[str, object]) -> None:
    other = replace(ENTRY, **changed)  # type: ignore[arg-type]
    assert chain_hash(CHAIN_START, 1, other) != chain_hash(CHAIN_START, 1, ENTRY)


def test_a_link_depends_on_its_place_and_all_before_it() -> None:
    one = chain_hash(CHAIN_START, 1, ENTRY)
    assert chain_hash(one, 2, ENTRY) != one
    assert chain_hash(CHAIN_START, 2, ENTRY) != one
    assert chain_hash(CHAIN_START, 1, None) != one


def test_the_order_of_details_and_the_time_zone_do_not_matter() -> None:
    same = replace(
        ENTRY,
        details={"a": "1", "b": "2"},
        at=ENTRY.at.astimezone(timezone(timedelta(hours=5))),
    )
    assert chain_hash(CHAIN_START, 1, same) == chain_hash(CHAIN_START, 1, ENTRY)
