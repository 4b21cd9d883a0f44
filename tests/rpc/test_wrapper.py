"""The wrapper through a real channel: every step, on all four kinds of methods."""

import asyncio
import gzip
import os
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from tests.rpc.contract import PACKAGE, SERVICE, TALK, Words
from trunkline.api.errors.v1 import reason_pb2
from trunkline_server.errors import (
    Aborted,
    FieldViolation,
    Invalid,
    PermissionDenied,
    Precondition,
    QuotaViolation,
    RateLimited,
    Resource,
    Unauthenticated,
    Unavailable,
)
from trunkline_server.rpc.caller import (
    Caller,
    Role,
    address_of,
    behind_proxies,
    caller,
    current_request,
)
from trunkline_server.rpc.options import SERVER_OPTIONS
from trunkline_server.rpc.policy import PolicyMissing, policy_of
from trunkline_server.rpc.wrapper import Wrapper

CANARY = "member A-1 Cassandra Canary"


class QuotaReached(RateLimited):
    reason = reason_pb2.REASON_RATE_LIMITED


class Overloaded(Unavailable):
    reason = reason_pb2.REASON_OVERLOADED


class Keys:
    """Authenticator of the test: the key's name is its role."""

    def __init__(self) -> None:
        self.asked = 0

    def cached(self, authorization: str) -> Caller | None:
        return self._caller(Role.AGENT) if authorization == "Bearer warm" else None

    async def authenticate(self, authorization: str) -> Caller:
        self.asked += 1
        match authorization:
            case "Bearer agent":
                return self._caller(Role.AGENT)
            case "Bearer trainer":
                return self._caller(Role.TRAINER)
            case "Bearer broken":
                raise ConnectionRefusedError(CANARY)
            case _:
                raise Unauthenticated

    def _caller(self, role: Role) -> Caller:
        one = uuid4()
        return Caller(one, one, "key", role, one, "test")


class Steps:
    """Limits, shedder, telemetry and journal that write down what they were asked."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.spans: list[str | None] = []
        self.failures: list[tuple[str, str, BaseException]] = []
        self.released: list[bool] = []
        self.refuse: Exception | None = None
        self.shed: Exception | None = None
        self.left: list[float | None] = []

    def take(self, caller: Caller, cost: int) -> None:
        if self.refuse:
            raise self.refuse

    def admit(self, priority: int, remaining_s: float | None) -> None:
        self.left.append(remaining_s)
        if self.shed:
            raise self.shed

    def release(self, latency_s: float | None, ok: bool) -> None:
        self.released.append(ok)

    def rpc(self, method: str) -> "Steps":
        return self

    def record(self, code: int, seconds: float) -> None:
        self.codes.append(code)

    def start_span(self, method: str, traceparent: str | bytes | None) -> None:
        self.spans.append(str(traceparent))

    def failure(self, method: str, incident: str, error: BaseException) -> None:
        self.failures.append((method, incident, error))


class Talk:
    """Does what the text says."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def _act(self, text: str) -> None:
        self.started.set()
        match text:
            case "crash":
                raise RuntimeError(CANARY)
            case "driver":
                raise asyncpg.UniqueViolationError(CANARY)
            case "gone":
                raise asyncpg.ConnectionDoesNotExistError(CANARY)
            case "deadlock":
                raise asyncpg.DeadlockDetectedError(CANARY)
            case "invalid":
                raise Invalid(violations=[FieldViolation("text", "must be kind", "text.kind")])
            case "rich":
                raise QuotaReached(
                    retry_after_s=1.5,
                    metadata={"limit": "5"},
                    quota=[QuotaViolation("org", "five a minute")],
                    preconditions=[Precondition("STATE", "it", "must be open")],
                    resource=Resource("member", "1"),
                )
            case "hang":
                try:
                    await asyncio.Event().wait()
                finally:
                    self.cancelled.set()

    async def Say(self, request: Any, context: object) -> Any:
        await self._act(request.text)
        if request.text == "who":
            return Words(text=f"{caller().role.name} {current_request().peer}")
        return Words(text=request.text, body=request.body)

    async def Hear(self, requests: AsyncIterator[Any], context: object) -> Any:
        texts = []
        async for request in requests:
            await self._act(request.text)
            texts.append(request.text)
        return Words(text=",".join(texts) or "nothing")

    async def Recite(self, request: Any, context: object) -> AsyncIterator[Any]:
        for number in range(3):
            yield Words(text=f"{request.text}{number}")
        await self._act(request.text)

    async def Talk(self, requests: AsyncIterator[Any], context: object) -> AsyncIterator[Any]:
        async for request in requests:
            await self._act(request.text)
            yield Words(text=request.text.upper())

    async def Knock(self, request: Any, context: object) -> Any:
        return Words(text=request.text)


class House:
    channel: grpc.aio.Channel

    def __init__(self) -> None:
        self.steps = Steps()
        self.keys = Keys()
        self.talk = Talk()
        self.wrapper = Wrapper(
            authenticator=self.keys,
            limits=self.steps,
            shedder=self.steps,
            telemetry=self.steps,
            journal=self.steps,
        )
        self.wrapper.bind(TALK, self.talk)
        self.server = grpc.aio.server(options=SERVER_OPTIONS)
        self.server.add_generic_rpc_handlers((self.wrapper,))
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    def call(self, name: str, raw: bool = False) -> Callable[..., Any]:
        method = TALK.methods_by_name[name]
        kinds = {
            (False, False): self.channel.unary_unary,
            (False, True): self.channel.unary_stream,
            (True, False): self.channel.stream_unary,
            (True, True): self.channel.stream_stream,
        }
        make: Any = kinds[(method.client_streaming, method.server_streaming)]
        call: Callable[..., Any] = make(
            f"/{SERVICE}/{name}",
            request_serializer=None if raw else Words.SerializeToString,
            response_deserializer=Words.FromString,
        )
        return call

    async def answer(self, name: str, text: str, **options: Any) -> list[Any]:
        """All replies, whatever the kind of the method."""
        options.setdefault("metadata", (("authorization", "Bearer agent"),))
        method = TALK.methods_by_name[name]

        async def requests() -> AsyncIterator[Any]:
            yield Words(text=text)

        call = self.call(name)(
            requests() if method.client_streaming else Words(text=text), **options
        )
        if method.server_streaming:
            return [reply async for reply in call]
        return [await call]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House()
    await house.server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{house.port}") as channel:
        house.channel = channel
        yield house
    await house.server.stop(None)


def details(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    found: dict[str, Any] = {"message": status.message}
    for packed in status.details:
        name = packed.type_url.rsplit(".", 1)[1]
        message = getattr(error_details_pb2, name)()
        packed.Unpack(message)
        found[name] = message
    return found


KINDS = ("Say", "Hear", "Recite", "Talk")


@pytest.mark.parametrize("name", KINDS)
async def test_every_kind_of_method_answers(house: House, name: str) -> None:
    replies = await house.answer(name, "hi")
    assert [r.text for r in replies] == {
        "Say": ["hi"],
        "Hear": ["hi"],
        "Recite": ["hi0", "hi1", "hi2"],
        "Talk": ["HI"],
    }[name]
    await house.wrapper.inflight.wait_idle()
    assert house.steps.codes == [0]
    assert house.steps.released == [True]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        ("crash", grpc.StatusCode.INTERNAL, "INTERNAL"),
        ("driver", grpc.StatusCode.INTERNAL, "INTERNAL"),
        ("gone", grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE"),
        ("deadlock", grpc.StatusCode.ABORTED, "CONFLICT"),
        ("invalid", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
    ],
)
async def test_nothing_a_handler_raises_reaches_the_client_as_text(
    house: House, name: str, text: str, code: grpc.StatusCode, reason: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.answer(name, text)
    assert caught.value.code() is code
    assert details(caught.value)["ErrorInfo"].reason == reason
    assert details(caught.value)["ErrorInfo"].domain == "trunkline"
    assert "Canary" not in str(caught.value) + repr(details(caught.value))
    # The status is out before the call has left.
    await house.wrapper.inflight.wait_idle()
    assert house.steps.codes == [code.value[0]]


async def test_an_incident_id_leads_to_the_journal(house: House) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.answer("Say", "crash")
    ((method, incident, error),) = house.steps.failures
    assert method == f"/{SERVICE}/Say"
    assert details(caught.value)["ErrorInfo"].metadata["incident"] == incident
    assert isinstance(error, RuntimeError)


async def test_every_detail_of_an_error_arrives(house: House) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.answer("Say", "rich")
    found = details(caught.value)
    assert found["ErrorInfo"].metadata["limit"] == "5"
    assert found["RetryInfo"].retry_delay.ToMilliseconds() == 1500
    assert found["QuotaFailure"].violations[0].subject == "org"
    assert found["PreconditionFailure"].violations[0].type == "STATE"
    assert found["ResourceInfo"].resource_type == "member"


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ((), grpc.StatusCode.UNAUTHENTICATED),
        ((("authorization", "Bearer nobody"),), grpc.StatusCode.UNAUTHENTICATED),
        (
            (("authorization", "Bearer agent"), ("authorization", "Bearer agent")),
            grpc.StatusCode.UNAUTHENTICATED,
        ),
        ((("authorization", "Bearer trainer"),), grpc.StatusCode.PERMISSION_DENIED),
        ((("authorization", "Bearer broken"),), grpc.StatusCode.UNAVAILABLE),
        ((("authorization", "Bearer agent"), ("x-request-id", "x" * 200)),
         grpc.StatusCode.INVALID_ARGUMENT),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", KINDS)
async def test_who_may_not_call_is_told_so(
    house: House, name: str, metadata: Any, code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.answer(name, "hi", metadata=metadata)
    assert caught.value.code() is code
    assert not house.talk.started.is_set()
    assert "Canary" not in str(caught.value)


async def test_a_warm_credential_is_not_looked_up(house: House) -> None:
    await house.answer("Say", "hi", metadata=(("authorization", "Bearer warm"),))
    assert house.keys.asked == 0


async def test_anonymous_methods_need_no_credential(house: House) -> None:
    assert (await house.answer("Knock", "hi", metadata=()))[0].text == "hi"


async def test_caller_and_peer_are_facts_of_the_request(house: House) -> None:
    assert (await house.answer("Say", "who"))[0].text == "AGENT 127.0.0.1"


@pytest.mark.parametrize("name", ["Missing", "MissingStream"])
async def test_a_method_nobody_wrote_says_unimplemented(house: House, name: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.answer(name, "hi")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert details(caught.value)["ErrorInfo"].reason == "NOT_IMPLEMENTED"


@pytest.mark.parametrize("name", KINDS)
async def test_a_broken_message_is_an_invalid_argument(house: House, name: str) -> None:
    method = TALK.methods_by_name[name]
    metadata = (("authorization", "Bearer agent"),)
    for raw in (b"\x0a\xff\xff\xff\xff\x0fx", b"\x0a\x05hi", b"\x0a\x02\xff\xfe"):

        async def requests(raw: bytes = raw) -> AsyncIterator[bytes]:
            yield raw

        call = house.call(name, raw=True)(
            requests() if method.client_streaming else raw, metadata=metadata
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            if method.server_streaming:
                await call.read()
            else:
                await call
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert details(caught.value)["ErrorInfo"].reason == "MALFORMED_MESSAGE"


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (Words(), "text"),
        (Words(text="x" * 65), "text"),
        (Words(text="a", inner=Words(text="y" * 65)), "inner.text"),
        (Words(text="a", aside="b\0"), "aside"),
        (Words(text="a", asides=["b", "c\0"]), "asides"),
        (Words(text="a", inner=Words(text="b", aside="\0")), "inner.aside"),
    ],
)
async def test_each_violation_names_its_field(house: House, words: Any, path: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.call("Say")(words, metadata=(("authorization", "Bearer agent"),))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [v.field for v in details(caught.value)["BadRequest"].field_violations] == [path]


async def test_bytes_may_hold_nul_and_unknown_fields_are_ignored(house: House) -> None:
    raw = Words(text="a", body=b"\0").SerializeToString() + b"\xf8\x07\x01"
    reply = await house.call("Say", raw=True)(raw, metadata=(("authorization", "Bearer agent"),))
    assert reply.body == b"\0"


async def test_nesting_deeper_than_the_parser_goes_is_refused(house: House) -> None:
    raw = Words(text="a").SerializeToString()
    for _ in range(150):
        length = len(raw)
        prefix = b"\x22" + (
            bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
        )
        raw = prefix + raw
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.call("Say", raw=True)(raw, metadata=(("authorization", "Bearer agent"),))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("name", KINDS)
async def test_limits_and_shedding_refuse_before_the_handler(house: House, name: str) -> None:
    house.steps.refuse = QuotaReached(retry_after_s=2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.answer(name, "hi")
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    house.steps.refuse, house.steps.shed = None, Overloaded(retry_after_s=0.25)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.answer(name, "hi")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "250"
    assert not house.talk.started.is_set()
    assert house.steps.released == []


@pytest.mark.parametrize("name", KINDS)
async def test_a_call_without_a_deadline_gets_the_method_default(house: House, name: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.answer(name, "hang")
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert house.steps.left == [pytest.approx(0.7)]


async def test_a_longer_deadline_is_shortened_to_the_maximum(house: House) -> None:
    await house.answer("Say", "hi", timeout=900)
    assert house.steps.left == [20]


async def test_the_clients_own_deadline_ends_the_handler(house: House) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.answer("Say", "hang", timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(house.talk.cancelled.wait(), 5)
    await asyncio.wait_for(house.wrapper.inflight.wait_idle(), 5)
    assert house.steps.codes == [grpc.StatusCode.CANCELLED.value[0]]


@pytest.mark.parametrize("name", KINDS)
async def test_a_cancelled_call_ends_its_handler(house: House, name: str) -> None:
    task = asyncio.ensure_future(house.answer(name, "hang", timeout=10))
    await asyncio.wait_for(house.talk.started.wait(), 5)
    task.cancel()
    await asyncio.wait_for(house.talk.cancelled.wait(), 5)
    await asyncio.wait_for(house.wrapper.inflight.wait_idle(), 5)
    assert house.steps.failures == []


async def test_the_request_id_comes_back_on_success_and_on_failure(house: House) -> None:
    metadata = (("authorization", "Bearer agent"), ("x-request-id", "abc-1"))
    call = house.call("Say")(Words(text="hi"), metadata=metadata)
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == "abc-1"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.call("Say")(Words(text="crash"), metadata=metadata)
    assert dict(caught.value.trailing_metadata())["x-request-id"] == "abc-1"


async def test_replies_are_compressed_only_when_asked_and_worth_it(house: House) -> None:
    body = b"a" * 100_000
    for asked, text in ((True, "hi"), (False, "hi")):
        metadata = [("authorization", "Bearer agent")]
        if asked:
            metadata.append(("x-trunkline-compress", "gzip"))
        call = house.call("Say")(Words(text=text, body=body), metadata=tuple(metadata))
        assert (await call).body == body
        encoding = dict(await call.initial_metadata()).get("grpc-encoding")
        assert encoding in ((None, "gzip") if asked else (None, "identity"))


async def test_a_message_over_the_limit_is_resource_exhausted(house: House) -> None:
    for body in (os.urandom(5 << 20), b"\0" * (64 << 20)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await house.call("Say")(
                Words(text="a", body=body),
                metadata=(("authorization", "Bearer agent"),),
                compression=grpc.Compression.Gzip,
                timeout=20,
            )
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(gzip.compress(b"\0" * (64 << 20), 1)) < 1 << 20


def test_a_method_without_a_policy_does_not_start() -> None:
    from google.protobuf import descriptor_pool

    from tests.rpc.contract import file_descriptor

    for spoil in ("policy", "roles", "priority"):
        file = file_descriptor(f"trunkline/test/v1/{spoil}.proto")
        file.package = f"{PACKAGE}.{spoil}"
        del file.service[0].method[1:]
        for field in (file.message_type[0].field[3],):
            field.type_name = f".{file.package}.Words"
        method = file.service[0].method[0]
        method.input_type = method.output_type = f".{file.package}.Words"
        from trunkline.api.options.v1 import policy_pb2

        if spoil == "policy":
            method.options.ClearExtension(policy_pb2.policy)
        else:
            method.options.Extensions[policy_pb2.policy].ClearField(spoil)
        pool = descriptor_pool.Default()
        pool.AddSerializedFile(file.SerializeToString())
        service = pool.FindServiceByName(f"{file.package}.TalkService")
        with pytest.raises(PolicyMissing):
            policy_of(service.methods[0])


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:4711", "10.0.0.1"),
        ("ipv6:%5B::1%5D:4711", "::1"),
        ("ipv6:[fe80::1]:1", "fe80::1"),
        ("unix:/run/x", "unix"),
        ("", "unknown"),
    ],
)
def test_the_address_of_a_peer(peer: str, address: str) -> None:
    assert address_of(peer) == address


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("203.0.113.9, 198.51.100.7, 10.0.0.2", "198.51.100.7"),
        ("2001:db8::1", "2001:db8::1"),
        ("not an address", "10.0.0.1"),
        ("", "10.0.0.1"),
    ],
)
def test_only_our_own_proxies_are_believed(forwarded: str, address: str) -> None:
    ours = {"10.0.0.1", "10.0.0.2"}
    assert address_of(behind_proxies(lambda: "ipv4:10.0.0.1:99", forwarded, ours)) == address
    stranger = behind_proxies(lambda: "ipv4:203.0.113.5:99", forwarded, ours)
    assert address_of(stranger) == "203.0.113.5"


def test_retry_delays_never_go_below_zero() -> None:
    from trunkline_server.errors import to_status

    status = to_status(Aborted(retry_after_s=-1))
    assert PermissionDenied().reason_name == "ROLE_NOT_ALLOWED"
    retry = error_details_pb2.RetryInfo()
    status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 0
