"""The client against the whole server: calls, errors, credentials."""

import socket
import time
from pathlib import Path

import grpc
import pytest

from tests.client.tls import self_signed
from tests.running import Org, Running
from trunkline import (
    AsyncClient,
    ConfigurationError,
    Conflict,
    DeadlineExceeded,
    Invalid,
    Login,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from trunkline._shared import tasks_async as tasks
from trunkline._shared.credentials import MemoryTokens, Tokens
from trunkline._shared.requests import new_request_id
from trunkline.api.identity.v1 import identity_service_pb2 as pb
from trunkline.api.options.v1.policy_pb2 import ROLE_ADMIN, ROLE_AGENT
from trunkline_server.rpc.caller import Role

PASSWORD = "correct horse battery 7"


async def test_who_am_i(admin: AsyncClient, acme: Org) -> None:
    who = await admin.identity.who_am_i()
    assert (who.org_slug, who.role) == (acme.slug, ROLE_ADMIN)
    assert await admin.health() == "SERVING"


async def test_lists_go_page_by_page(admin: AsyncClient) -> None:
    for number in range(5):
        await admin.identity.create_user(f"agent{number}@acme.test", f"Agent {number}", "agent")
    users = admin.identity.list_users(page_size=2)
    emails = [user.email async for user in users]
    assert sorted(emails) == [f"agent{number}@acme.test" for number in range(5)]
    assert [len(page.items) async for page in users.pages()] == [2, 2, 1]


async def test_a_write_is_repeated_under_its_request_id(admin: AsyncClient) -> None:
    request_id = new_request_id()
    first = await admin.identity.create_user("a@acme.test", "A", "agent", request_id=request_id)
    again = await admin.identity.create_user("a@acme.test", "A", "agent", request_id=request_id)
    assert first.user.user_id == again.user.user_id
    with pytest.raises(Conflict) as caught:
        await admin.identity.create_user("b@acme.test", "B", "agent", request_id=request_id)
    assert caught.value.reason == "REQUEST_ID_REUSED"


async def test_errors_say_what_to_do(admin: AsyncClient, real: Running, acme: Org) -> None:
    with pytest.raises(Invalid) as invalid:
        await admin.identity.create_user("not an address", "A", "agent")
    assert invalid.value.violations[0].field == "email"
    assert "email" in str(invalid.value)
    with pytest.raises(NotFound) as missing:
        await admin.identity.revoke_api_key("0197a5c6-7b1e-7d3c-9b1a-3f5e8c2d4a60")
    assert missing.value.reason == "API_KEY_NOT_FOUND"
    assert missing.value.remedy == "Check the id with ListApiKeys."
    assert missing.value.request_id
    with pytest.raises(Invalid, match="not one of AGENT, TRAINER"):
        await admin.identity.create_user("a@acme.test", "A", "boss")
    async with AsyncClient(real.address, api_key=acme.keys[Role.AGENT]) as agent:
        with pytest.raises(PermissionDenied) as denied:
            await agent.identity.create_user("a@acme.test", "A", "agent")
    assert denied.value.reason == "ROLE_NOT_ALLOWED"
    async with AsyncClient(real.address, api_key="tl_wrong") as stranger:
        with pytest.raises(Unauthenticated):
            await stranger.identity.who_am_i()


async def test_a_log_in_is_made_when_it_is_needed_and_renewed_behind_the_calls(
    admin: AsyncClient, real: Running, acme: Org
) -> None:
    await admin.identity.create_user("a@acme.test", "A", "agent", password=PASSWORD)
    store = MemoryTokens()
    async with AsyncClient(
        real.address, login=Login(acme.slug, "a@acme.test", PASSWORD), tokens=store
    ) as client:
        assert (await client.identity.who_am_i()).role == ROLE_AGENT
        first = store.load()
        assert first is not None
        # As if most of its life had passed.
        auth = client._session.auth
        auth._due_at_s = time.time() - 1  # type: ignore[attr-defined]
        await client.identity.who_am_i()
        await until_changed(store, first)
        assert (await client.identity.who_am_i()).role == ROLE_AGENT


async def until_changed(store: MemoryTokens, first: Tokens) -> None:
    for _ in range(100):
        if store.load() != first:
            return
        await tasks.sleep(0.05)
    raise AssertionError("the tokens were not renewed")


async def test_an_expired_token_is_renewed_once_for_all_calls(
    admin: AsyncClient, real: Running, acme: Org
) -> None:
    await admin.identity.create_user("a@acme.test", "A", "agent", password=PASSWORD)
    opened = await admin.identity.login(acme.slug, "a@acme.test", PASSWORD)
    now_s = time.time()
    refresh = opened.tokens.refresh_token
    expired = Tokens("e30.e30.e30", refresh, now_s - 2000, now_s - 1000)
    async with AsyncClient(real.address, tokens=MemoryTokens(expired)) as client:
        assert (await client.identity.who_am_i()).actor_name == "A"
    # A token the server refuses although this clock thinks it good.
    opened = await admin.identity.login(acme.slug, "a@acme.test", PASSWORD)
    store = MemoryTokens(Tokens("e30.e30.e30", opened.tokens.refresh_token, now_s, now_s + 1000))
    async with AsyncClient(real.address, tokens=store) as client:
        assert (await client.identity.who_am_i()).actor_name == "A"
    forged = MemoryTokens(Tokens("e30.e30.e30", "tlr_forged", now_s, now_s + 1000))
    async with AsyncClient(real.address, tokens=forged) as client:
        with pytest.raises(Unauthenticated):
            await client.identity.who_am_i()


async def test_no_server(unused_tcp_port: int) -> None:
    async with AsyncClient(f"localhost:{unused_tcp_port}", api_key="x") as client:
        with pytest.raises(Unavailable, match=f"Nothing listens at localhost:{unused_tcp_port}"):
            await client.identity.who_am_i()


async def test_a_port_of_something_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with AsyncClient(f"127.0.0.1:{port}", api_key="x") as client:
            with pytest.raises((DeadlineExceeded, Unavailable), match=f"{port}"):
                await client.ops.server_info(timeout_s=1)


async def test_tls_against_plaintext(real: Running) -> None:
    async with AsyncClient(f"https://{real.address}", api_key="x") as client:
        with pytest.raises(Unavailable, match="does not speak TLS") as caught:
            await client.identity.who_am_i(timeout_s=5)
    assert "http://" in caught.value.remedy


async def test_plaintext_against_tls_and_an_unknown_authority(tmp_path: Path) -> None:
    with self_signed(tmp_path) as (port, authority):
        async with AsyncClient(f"http://localhost:{port}", api_key="x") as client:
            with pytest.raises(Unavailable, match="closed by the other side") as caught:
                await client.identity.who_am_i(timeout_s=5)
        assert "https://" in caught.value.remedy
        async with AsyncClient(f"https://localhost:{port}", api_key="x") as client:
            with pytest.raises(Unavailable, match="not trusted") as caught:
                await client.identity.who_am_i(timeout_s=5)
        assert "ca_file" in caught.value.remedy
        trusting = AsyncClient(f"https://localhost:{port}", api_key="x", ca_file=authority)
        async with trusting as client:
            assert await client.health() == "SERVING"


async def test_raw_stubs_are_there_for_the_rest(admin: AsyncClient) -> None:
    metadata = await admin.raw.metadata()
    who = await admin.raw.identity.WhoAmI(pb.WhoAmIRequest(), metadata=metadata)
    assert who.role == ROLE_ADMIN
    with pytest.raises(grpc.RpcError):
        await admin.raw.identity.WhoAmI(pb.WhoAmIRequest())


@pytest.mark.parametrize("address", ["", "host:port", "user@host:1", "https://"])
async def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ConfigurationError, match="not an address"):
        AsyncClient(address)


async def test_one_credential_only() -> None:
    with pytest.raises(ConfigurationError):
        AsyncClient(api_key="x", login=Login("acme", "a@acme.test", "x"))
