"""Page tokens that were tampered with or belong elsewhere: one answer for all of them."""

from __future__ import annotations

import base64
import time
from typing import Any
from uuid import UUID

import grpc.aio
import pytest
from grpc import StatusCode

from tests.badinput.conftest import House
from tests.running import PAGE_SECRET, Org, details
from trunkline.api.identity.v1 import identity_service_pb2 as pb
from trunkline.api.identity.v1.identity_service_pb2_grpc import IdentityServiceStub
from trunkline_server.paging import TOKEN_TTL_S, PageTokens
from trunkline_server.rpc.caller import CURRENT, Caller, Request, Role

LIST_API_KEYS = "/trunkline.api.identity.v1.IdentityService/ListApiKeys"


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return IdentityServiceStub(channel)


async def good_token(stub: Any, org: Org) -> str:
    page = await stub.ListApiKeys(
        pb.ListApiKeysRequest(page_size=1), metadata=org.as_(Role.ADMIN), timeout=10
    )
    assert page.next_page_token
    return str(page.next_page_token)


def sealed_long_ago(org_id: UUID, position: list[object]) -> str:
    """What the server itself sealed for the same list, a day and a second before."""
    caller = Caller(org_id, org_id, "key", Role.ADMIN, org_id, "test")
    previous = CURRENT.set(Request(LIST_API_KEYS, None, lambda: "", caller, None))
    try:
        pages = PageTokens(
            [bytes.fromhex(PAGE_SECRET)], clock=lambda: time.time() - TOKEN_TTL_S - 1
        )
        return pages.seal(position, pb.ListApiKeysRequest())
    finally:
        CURRENT.reset(previous)


def flipped(token: str) -> str:
    raw = bytearray(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    raw[-1] ^= 1
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


async def refusal(stub: Any, org: Org, request: pb.ListApiKeysRequest) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListApiKeys(request, metadata=org.as_(Role.ADMIN), timeout=10)
    assert caught.value.code() is StatusCode.INVALID_ARGUMENT
    return details(caught.value)["reason"], caught.value.details() or ""


async def test_a_good_token_goes_on(house: House, stub: Any) -> None:
    token = await good_token(stub, house.org)
    page = await stub.ListApiKeys(
        pb.ListApiKeysRequest(page_token=token), metadata=house.org.as_(Role.ADMIN), timeout=10
    )
    assert len(page.api_keys) == len(Role) - 1


async def test_every_wrong_token_gets_the_same_text(house: House, stub: Any) -> None:
    token = await good_token(stub, house.org)
    theirs = await good_token(stub, house.other)
    tokens = {
        "garbage": "garbage",
        "no base64": "%%%",
        "empty box": base64.urlsafe_b64encode(bytes(40)).decode(),
        "bad MAC": flipped(token),
        "cut": token[:-4],
        "another organisation's": theirs,
        "expired": sealed_long_ago(house.org.org_id, ["0", "0"]),
        "too long": token * 100,
    }
    answers = {
        name: await refusal(stub, house.org, pb.ListApiKeysRequest(page_token=value))
        for name, value in tokens.items()
    }
    assert {reason for reason, _ in answers.values()} == {"PAGE_TOKEN_INVALID"}, answers
    assert len(set(answers.values())) == 1, answers


async def test_a_token_of_another_list(house: House, stub: Any) -> None:
    token = await good_token(stub, house.org)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListUsers(
            pb.ListUsersRequest(page_token=token), metadata=house.org.as_(Role.ADMIN), timeout=10
        )
    assert details(caught.value)["reason"] == "PAGE_TOKEN_INVALID"


async def test_a_token_of_another_filter(house: House, stub: Any) -> None:
    admin = house.org.as_(Role.ADMIN)
    page = await stub.ListAuditEvents(
        pb.ListAuditEventsRequest(page_size=1), metadata=admin, timeout=10
    )
    assert page.next_page_token
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListAuditEvents(
            pb.ListAuditEventsRequest(page_token=page.next_page_token, action="identity."),
            metadata=admin,
            timeout=10,
        )
    assert details(caught.value)["reason"] == "PAGE_TOKEN_INVALID"
