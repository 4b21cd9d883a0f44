"""Page tokens: what opens, what does not, and that all wrong kinds look alike."""

import base64
import os
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.api.identity.v1 import identity_service_pb2 as pb
from trunkline_server.paging import (
    PAGE_SIZE_DEFAULT,
    PAGE_SIZE_MAX,
    PageSizeNegative,
    PageTokenInvalid,
    PageTokens,
    page_size,
)
from trunkline_server.rpc.caller import CURRENT, Caller, Request, Role

ORG = uuid4()
SECRET = os.urandom(32)


def as_caller(org_id: UUID = ORG, method: str = "/a/List") -> None:
    caller = Caller(org_id, org_id, "key", Role.ADMIN, org_id, "k")
    CURRENT.set(Request(method, None, lambda: "ipv4:192.0.2.1:1", caller, None))


@pytest.fixture(autouse=True)
def _caller() -> Iterator[None]:
    token = CURRENT.set(None)  # type: ignore[arg-type]
    as_caller()
    yield
    CURRENT.reset(token)


@given(st.lists(st.text() | st.integers() | st.none(), max_size=4))
def test_a_position_comes_back(position: list[object]) -> None:
    as_caller()
    pages = PageTokens([SECRET])
    assert pages.open(pages.seal(position, "f"), "f") == position


@given(st.text(min_size=1, max_size=80))
def test_garbage(token: str) -> None:
    as_caller()
    with pytest.raises(PageTokenInvalid):
        PageTokens([SECRET]).open(token)


def test_no_token_is_the_first_page() -> None:
    assert PageTokens([SECRET]).open("") is None


def test_each_wrong_kind_is_refused() -> None:
    pages = PageTokens([SECRET])
    token = pages.seal(["x"], "filter")
    raw = bytearray(base64.urlsafe_b64decode(token + "=="))
    raw[-1] ^= 1
    flipped = base64.urlsafe_b64encode(bytes(raw)).decode().rstrip("=")
    for wrong, filters in [(flipped, "filter"), (token, "other"), ("x" * 5_000, "filter")]:
        with pytest.raises(PageTokenInvalid):
            pages.open(wrong, filters)
    as_caller(method="/a/Other")
    with pytest.raises(PageTokenInvalid):
        pages.open(token, "filter")
    as_caller(org_id=uuid4())
    with pytest.raises(PageTokenInvalid):
        pages.open(token, "filter")
    as_caller()
    assert pages.open(token, "filter") == ["x"]


def test_tokens_expire_and_secrets_rotate() -> None:
    now = [1_000.0]
    old = PageTokens([SECRET], ttl_s=60, clock=lambda: now[0])
    token = old.seal([1])
    rotated = PageTokens([os.urandom(32), SECRET], ttl_s=60, clock=lambda: now[0])
    assert rotated.open(token) == [1]
    now[0] += 60
    with pytest.raises(PageTokenInvalid):
        old.open(token)


def test_the_filter_is_the_request_without_its_page_fields() -> None:
    pages = PageTokens([SECRET])
    token = pages.seal([1], pb.ListUsersRequest(page_size=5, prefix="a"))
    assert pages.open(token, pb.ListUsersRequest(page_size=9, page_token=token, prefix="a")) == [1]
    with pytest.raises(PageTokenInvalid):
        pages.open(token, pb.ListUsersRequest(page_token=token, prefix="b"))


def test_what_a_token_holds_cannot_be_read() -> None:
    token = PageTokens([SECRET]).seal(["ada@example.org"])
    assert b"ada" not in base64.urlsafe_b64decode(token + "==")


def test_page_sizes() -> None:
    assert page_size(0) == PAGE_SIZE_DEFAULT
    assert page_size(7) == 7
    assert page_size(10**6) == PAGE_SIZE_MAX
    with pytest.raises(PageSizeNegative):
        page_size(-1)
