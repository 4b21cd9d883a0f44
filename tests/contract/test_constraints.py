"""The constraints in the contract hold: each request field refuses what no handler should see."""

from collections.abc import Callable, Iterator
from typing import Any

import protovalidate
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tools.reference import Contract
from trunkline.api.content.v1 import content_service_pb2
from trunkline.api.identity.v1 import identity_service_pb2
from trunkline.api.imports.v1 import imports_service_pb2
from trunkline.api.members.v1 import members_service_pb2
from trunkline.api.ops.v1 import ops_service_pb2
from trunkline.api.stats.v1 import stats_service_pb2

A_UUID = "0190f3c4-7a3e-7cc1-9d0a-5b1c2d3e4f50"
REPEATED_MAX = 1000
CHUNK_BYTES_MAX = 1 << 20
# Signed by the server, which refuses every other value with one and the same text.
OPAQUE = {"page_token", "checkpoint"}

# Not typed on purpose: many of the messages below are wrong.
content: Any = content_service_pb2
identity: Any = identity_service_pb2
imports: Any = imports_service_pb2
members: Any = members_service_pb2
ops: Any = ops_service_pb2
stats: Any = stats_service_pb2

_validator = protovalidate.Validator()


def violations(message: Message) -> list[tuple[str, str]]:
    """Return (path, rule) of each violation; rules over several fields name one in their id."""
    found = []
    for violation in _validator.collect_violations(message):
        elements = violation.proto.field.elements if violation.proto.field else []
        found.append((".".join(e.field_name for e in elements), violation.proto.rule_id))
    return found


def time(seconds: int) -> dict[str, int]:
    return {"seconds": seconds}


SPEC = imports.ImportSpec
GOOD: list[Message] = [
    identity.LoginRequest(org_slug="acme", email="a@example.com", password="x"),
    identity.CreateUserRequest(email="a@example.com", display_name="Åsa", role="ROLE_AGENT"),
    identity.ListUsersRequest(page_size=5_000_000),
    identity.RotateApiKeyRequest(key_id=A_UUID, overlap=time(0)),
    identity.UpdateOrgRequest(org={}, update_mask={"paths": ["quotas", "retention"]}),
    members.ValidateMemberRequest(member_number="007", as_of="2024-02-29"),
    members.GetMemberRequest(member_number="A-1", read_mask={"paths": ["plan"]}),
    members.BatchValidateMembersRequest(queries=[{"member_number": ""}, {"as_of": "soon"}]),
    members.StreamValidateMembersRequest(query={"member_number": "\u200b" * 100}),
    members.UpdateMemberRequest(member={"email": ""}, update_mask={"paths": ["email"]}),
    imports.CreateImportRequest(spec=SPEC(dialect={"delimiter": "\t", "quote": '"'})),
    imports.UploadImportRequest(open={"import_id": A_UUID, "prefix_crc32": 0}),
    imports.UploadImportRequest(
        chunk={"data": b"x" * CHUNK_BYTES_MAX, "crc32": 0, "offset": 1 << 40}
    ),
    content.CreateArticleRequest(article={"title": "T", "locale": "zh-Hans-CN", "body": "a\n\tb"}),
    stats.RecordEventsRequest(events=[{"event_id": "no uuid"}]),
    ops.ListJobsRequest(states=["JOB_STATE_DEAD"]),
]
BAD: list[tuple[Message, str, str]] = [
    (identity.LoginRequest(org_slug="A", email="a", password="x"), "org_slug", "string.pattern"),
    (identity.CreateUserRequest(email="a"), "email", "string.email"),
    (identity.CreateUserRequest(role=0), "role", "enum.not_in"),
    (identity.CreateUserRequest(role=77), "role", "enum.defined_only"),
    (identity.CreateUserRequest(password="short"), "password", "string.min_len"),
    (identity.CreateUserRequest(request_id="1"), "request_id", "string.uuid"),
    (identity.ListUsersRequest(page_size=-1), "page_size", "int32.gte"),
    (identity.UpdateUserRequest(), "user", "required"),
    (identity.UpdateUserRequest(), "update_mask", "required"),
    (identity.UpdateUserRequest(update_mask={}), "update_mask", "update_mask.not_empty"),
    (identity.UpdateUserRequest(update_mask={"paths": ["*"]}), "update_mask", "field_mask.in"),
    (identity.CreateApiKeyRequest(expire_time=time(1)), "expire_time", "timestamp.gt_now"),
    (identity.RotateApiKeyRequest(overlap=time(-1)), "overlap", "duration.gte_lte"),
    (
        identity.ListAuditEventsRequest(from_time=time(9), to_time=time(9)),
        "",
        "to_time.order",
    ),
    (identity.VerifyAuditRequest(from_sequence=5, to_sequence=4), "", "to_sequence.order"),
    (members.ValidateMemberRequest(), "member_number", "string.min_len"),
    (members.ValidateMemberRequest(member_number="x" * 65), "member_number", "string.max_len"),
    (members.ValidateMemberRequest(member_number="1\x00"), "member_number", "string.pattern"),
    (members.ValidateMemberRequest(as_of="2023-13-01"), "as_of", "string.pattern"),
    (members.ValidateMemberRequest(consistency=9), "consistency", "enum.defined_only"),
    (members.BatchValidateMembersRequest(), "queries", "repeated.min_items"),
    (members.GetMemberRequest(), "name", "required"),
    (members.GetMemberRequest(member_id="1"), "member_id", "string.uuid"),
    (members.GetMemberRequest(read_mask={"paths": ["nope"]}), "read_mask", "field_mask.in"),
    (
        members.CreateMemberRequest(member={"attributes": {"Bad Key": "1"}}),
        "member.attributes",
        "string.pattern",
    ),
    (
        members.CreateMemberRequest(member={"attributes": {f"a{n}": "" for n in range(51)}}),
        "member.attributes",
        "map.max_pairs",
    ),
    (
        members.ListMembersRequest(
            filter={"updated_from_time": time(2), "updated_to_time": time(1)}
        ),
        "filter",
        "updated_to_time.order",
    ),
    (imports.CreateImportRequest(), "spec", "required"),
    (
        imports.CreateImportRequest(spec=SPEC(max_reject_ratio=float("nan"))),
        "spec.max_reject_ratio",
        "double.finite",
    ),
    (
        imports.CreateImportRequest(spec=SPEC(max_reject_ratio=1.5)),
        "spec.max_reject_ratio",
        "double.gte_lte",
    ),
    (imports.CreateImportRequest(spec=SPEC(sha256=b"1")), "spec.sha256", "bytes.len"),
    (
        imports.CreateImportRequest(spec=SPEC(columns=[{"column": "a"}])),
        "spec.columns.target",
        "required",
    ),
    (imports.UploadImportRequest(), "frame", "required"),
    (imports.UploadImportRequest(open={"import_id": A_UUID}), "open.prefix_crc32", "required"),
    (imports.UploadImportRequest(chunk={"crc32": 0}), "chunk.data", "bytes.min_len"),
    (imports.UploadImportRequest(chunk={"data": b"x", "offset": -1}), "chunk.offset", "int64.gte"),
    (imports.SubmitCsvRequest(data=b""), "data", "bytes.min_len"),
    (imports.CommitImportRequest(import_id=A_UUID), "plan_etag", "string.min_len"),
    (
        content.CreateArticleRequest(article={"locale": "german"}),
        "article.locale",
        "string.pattern",
    ),
    (
        content.CreateArticleRequest(article={"body": "x" * 262_145}),
        "article.body",
        "string.max_bytes",
    ),
    (content.RejectArticleRequest(article_id=A_UUID, revision=1), "reason", "string.min_len"),
    (content.ApproveArticleRequest(article_id=A_UUID), "revision", "int64.gt"),
    (stats.RecordEventsRequest(), "events", "repeated.min_items"),
    (stats.Event(duration=time(-1)), "duration", "duration.gte_lte"),
    (stats.Event(kind=99), "kind", "enum.defined_only"),
    (stats.Event(), "occurred_at", "required"),
    (
        stats.QueryStatsRequest(query={"from_time": time(2), "to_time": time(1)}),
        "query",
        "to_time.order",
    ),
    (stats.QueryStatsRequest(query={"time_zone": "a b"}), "query.time_zone", "string.pattern"),
    (
        stats.QueryStatsRequest(query={"group_by": ["a", "b", "c", "d"]}),
        "query.group_by",
        "repeated.max_items",
    ),
    (ops.RetryJobRequest(job_id=A_UUID[:-1]), "job_id", "string.uuid"),
]


@pytest.mark.parametrize("message", GOOD, ids=lambda m: m.DESCRIPTOR.name)
def test_good_messages_pass(message: Message) -> None:
    assert violations(message) == []


@pytest.mark.parametrize(("message", "path", "rule"), BAD)
def test_bad_messages_name_the_field(message: Message, path: str, rule: str) -> None:
    assert (path, rule) in violations(message)


# ---- Sweeps over every field a request can carry ----


def _sendable(contract: Contract) -> Iterator[FieldDescriptor]:
    """Return every field a caller fills; what is "Output only." is never read."""
    output_only = {
        (message.name, field.name)
        for message in contract.messages()
        for field, comment in message.fields
        if comment.startswith("Output only.")
    }
    pool = descriptor_pool.Default()
    waiting: list[Descriptor] = [
        pool.FindMessageTypeByName(method.input_type[1:])
        for service in contract.services()
        for method, _ in service.methods
    ]
    seen: set[str] = set()
    while waiting:
        descriptor = waiting.pop()
        if descriptor.full_name in seen or not descriptor.full_name.startswith("trunkline."):
            continue
        seen.add(descriptor.full_name)
        for field in descriptor.fields:
            if (descriptor.full_name, field.name) in output_only or field.name in OPAQUE:
                continue
            yield field
            if field.message_type is not None and not _is_map(field):
                waiting.append(field.message_type)


def _with(field: FieldDescriptor, value: Any) -> Message:
    assert field.containing_type is not None
    return message_factory.GetMessageClass(field.containing_type)(**{field.name: value})


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _accepts(field: FieldDescriptor, value: Any) -> bool:
    found = violations(_with(field, value))
    return not any(path.split(".")[0] == field.name for path, _ in found)


def _accepting(
    contract: Contract,
    wanted: Callable[[FieldDescriptor], bool],
    bad: Callable[[FieldDescriptor], Any],
) -> list[str]:
    fields = [field for field in _sendable(contract) if wanted(field)]
    assert fields
    return [
        field.full_name
        for field in fields
        if _accepts(field, [bad(field)] if field.is_repeated else bad(field))
    ]


def _of_type(kind: int) -> Callable[[FieldDescriptor], bool]:
    return lambda field: field.type == kind


def _of_message(name: str) -> Callable[[FieldDescriptor], bool]:
    return lambda field: field.message_type is not None and field.message_type.full_name == name


def test_no_text_takes_nul(contract: Contract) -> None:
    strings = _of_type(FieldDescriptor.TYPE_STRING)
    assert _accepting(contract, strings, lambda _: "a\x00b") == []


def test_every_text_is_bounded(contract: Contract) -> None:
    strings = _of_type(FieldDescriptor.TYPE_STRING)
    assert _accepting(contract, strings, lambda _: "1" * 300_000) == []


def test_all_bytes_are_bounded(contract: Contract) -> None:
    kind = _of_type(FieldDescriptor.TYPE_BYTES)
    assert _accepting(contract, kind, lambda _: b"x" * (CHUNK_BYTES_MAX + 1)) == []


def test_no_enum_takes_an_unknown_value(contract: Contract) -> None:
    kind = _of_type(FieldDescriptor.TYPE_ENUM)
    assert _accepting(contract, kind, lambda _: 99_999) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_number_is_infinite(contract: Contract, value: float) -> None:
    kind = _of_type(FieldDescriptor.TYPE_DOUBLE)
    assert _accepting(contract, kind, lambda _: value) == []


def test_no_time_lies_outside_of_the_calendar(contract: Contract) -> None:
    kind = _of_message("google.protobuf.Timestamp")
    assert _accepting(contract, kind, lambda _: time(10**13)) == []


def test_every_duration_is_bounded(contract: Contract) -> None:
    kind = _of_message("google.protobuf.Duration")
    assert _accepting(contract, kind, lambda _: time(10**11)) == []
    assert _accepting(contract, kind, lambda _: time(-1)) == []


def test_no_field_mask_takes_a_star(contract: Contract) -> None:
    kind = _of_message("google.protobuf.FieldMask")
    assert _accepting(contract, kind, lambda _: {"paths": ["*"]}) == []


def test_no_list_takes_more_than_a_thousand(contract: Contract) -> None:
    lists = [field for field in _sendable(contract) if field.is_repeated and not _is_map(field)]
    assert lists
    for field in lists:
        match field.type:
            case FieldDescriptor.TYPE_STRING:
                value: Any = ""
            case FieldDescriptor.TYPE_MESSAGE:
                value = {}
            case _:
                value = 1
        message = _with(field, [value] * (REPEATED_MAX + 1))
        assert (field.name, "repeated.max_items") in violations(message), field.full_name


def test_every_map_is_bounded(contract: Contract) -> None:
    maps = [field for field in _sendable(contract) if _is_map(field)]
    assert maps
    for field in maps:
        message = _with(field, {f"k{n}": "" for n in range(REPEATED_MAX)})
        assert (field.name, "map.max_pairs") in violations(message), field.full_name


def test_every_page_size_may_be_large_and_not_negative(contract: Contract) -> None:
    sizes = [field for field in _sendable(contract) if field.name == "page_size"]
    assert len(sizes) > 10
    assert [field.full_name for field in sizes if not _accepts(field, 2**31 - 1)] == []
    assert [field.full_name for field in sizes if _accepts(field, -1)] == []
