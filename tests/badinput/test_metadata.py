"""Metadata and the request line, as bytes on the wire: docs/adr/0009 says who decides what."""

from __future__ import annotations

import pytest
from grpc import StatusCode

from tests.badinput.conftest import House
from tests.badinput.wire import Header, Reply, message, request_headers, wire

OK = StatusCode.OK.value[0]
CONTROLS = ("\r", "\n", "\x1b", "\x00", "\x7f", "\t")


async def call(
    house: House,
    headers: list[Header],
    content: bytes | None = None,
    *,
    acknowledge: bool = True,
) -> Reply:
    async with wire(house.port, acknowledge=acknowledge) as connection:
        await connection.settle()
        connection.call(1, headers, content)
        return await connection.reply(1)


def known(house: House, *more: Header, **changed: str | None) -> list[Header]:
    changed.setdefault("authorization", house.authorization)
    return [*request_headers(**changed), *more]


def refused(reply: Reply, code: StatusCode) -> None:
    assert reply.status == code.value[0], reply
    assert not reply.data
    assert "Traceback" not in reply.text


async def test_a_good_call(house: House) -> None:
    reply = await call(house, known(house))
    assert reply.status == OK
    assert reply.data


@pytest.mark.parametrize("size", [8_200, 20_000, 70_000])
@pytest.mark.parametrize("acknowledge", [True, False], ids=["settled", "unsettled"])
async def test_metadata_over_8_kib(house: House, size: int, acknowledge: bool) -> None:
    reply = await call(house, known(house, ("x-big", "a" * size)), acknowledge=acknowledge)
    refused(reply, StatusCode.RESOURCE_EXHAUSTED)


async def test_many_small_values_over_8_kib(house: House) -> None:
    many = [(f"x-small-{number}", "a" * 20) for number in range(300)]
    reply = await call(house, known(house, *many), acknowledge=False)
    refused(reply, StatusCode.RESOURCE_EXHAUSTED)


async def test_metadata_under_8_kib(house: House) -> None:
    assert (await call(house, known(house, ("x-big", "a" * 7_000)))).status == OK


@pytest.mark.parametrize("control", CONTROLS, ids=repr)
@pytest.mark.parametrize("key", ["authorization", "x-request-id", "traceparent", "x-anything"])
async def test_control_characters_in_a_value(house: House, key: str, control: str) -> None:
    value = f"Bearer canary{control}[31mforged"
    headers = [header for header in known(house) if header[0] != key]
    refused(await call(house, [*headers, (key, value)]), StatusCode.INVALID_ARGUMENT)
    log = house.daemon.log.read_bytes()
    assert b"canary" not in log
    assert b"\x1b" not in log
    assert b"\x00" not in log


async def test_bytes_beyond_ascii_in_a_value(house: House) -> None:
    reply = await call(house, known(house, ("x-request-id", b"caf\xc3\xa9")))
    refused(reply, StatusCode.INVALID_ARGUMENT)


async def test_two_authorizations(house: House) -> None:
    twice = known(house, ("authorization", house.authorization))
    refused(await call(house, twice), StatusCode.UNAUTHENTICATED)


@pytest.mark.parametrize("key", ["x-thing-bin", "authorization-bin", "grpc-status-details-bin"])
async def test_broken_base64(house: House, key: str) -> None:
    refused(await call(house, known(house, (key, "!*=a"))), StatusCode.INTERNAL)


@pytest.mark.parametrize("key", ["X-Upper", "Authorization"])
async def test_an_upper_case_key(house: House, key: str) -> None:
    refused(await call(house, known(house, (key, "a"))), StatusCode.INTERNAL)


@pytest.mark.parametrize("timeout", ["", "abc", "5", "5X", "-1S", "S"])
async def test_a_broken_timeout(house: House, timeout: str) -> None:
    refused(await call(house, known(house, grpc_timeout=timeout)), StatusCode.INTERNAL)


@pytest.mark.parametrize("timeout", ["0S", "0n", "0H"])
async def test_a_timeout_of_nothing(house: House, timeout: str) -> None:
    refused(await call(house, known(house, grpc_timeout=timeout)), StatusCode.DEADLINE_EXCEEDED)


@pytest.mark.parametrize("timeout", [None, "99999999H", "99999999999999999999S"])
async def test_no_deadline_or_one_of_centuries(house: House, timeout: str | None) -> None:
    assert (await call(house, known(house, grpc_timeout=timeout))).status == OK


@pytest.mark.parametrize("compressed", [False, True])
async def test_an_unknown_encoding(house: House, compressed: bool) -> None:
    headers = known(house, ("grpc-encoding", "zstd"))
    reply = await call(house, headers, message(b"abc", compressed=compressed))
    refused(reply, StatusCode.INTERNAL)


async def test_corrupt_gzip(house: House) -> None:
    headers = known(house, ("grpc-encoding", "gzip"))
    reply = await call(house, headers, message(b"no gzip at all", compressed=True))
    refused(reply, StatusCode.INTERNAL)


async def test_a_compressed_message_without_an_encoding(house: House) -> None:
    reply = await call(house, known(house), message(b"\xff\xff", compressed=True))
    refused(reply, StatusCode.INVALID_ARGUMENT)


@pytest.mark.parametrize("changed", [{"method": "GET"}, {"method": "PUT"}, {"te": None}], ids=repr)
async def test_no_grpc_request_at_all(house: House, changed: dict[str, str | None]) -> None:
    reply = await call(house, known(house, **changed))
    assert reply.ended
    assert reply.status is None
    assert reply.reset is not None


async def test_te_without_trailers(house: House) -> None:
    refused(await call(house, known(house, te="gzip")), StatusCode.INTERNAL)


@pytest.mark.parametrize("content_type", ["application/json", "application/grpc+json"])
async def test_json(house: House, content_type: str) -> None:
    path = "/trunkline.api.members.v1.MemberService/ValidateMember"
    headers = known(house, content_type=content_type, path=path)
    for body in (b'{"memberNumber": "A-1"}', message(b'{"memberNumber": "A-1"}')):
        refused(await call(house, headers, body), StatusCode.INVALID_ARGUMENT)


@pytest.mark.parametrize(
    "path",
    ["/trunkline.api.identity.v1.IdentityService/Nothing", "/nothing/Nothing", "nothing", "", "/"],
)
async def test_an_unknown_method(house: House, path: str) -> None:
    refused(await call(house, known(house, path=path)), StatusCode.UNIMPLEMENTED)


@pytest.mark.parametrize(
    "traceparent",
    ["00-zz", "", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ff-" + "a" * 300, "\\u001b"],
)
async def test_a_broken_traceparent_is_ignored(house: House, traceparent: str) -> None:
    assert (await call(house, known(house, ("traceparent", traceparent)))).status == OK
