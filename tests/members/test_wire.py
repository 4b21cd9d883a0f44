"""Bytes put together by hand are what protobuf would have made."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trunkline.api.errors.v1.item_error_pb2 import ItemError
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.members import wire

VALIDATIONS = st.builds(
    pb.Validation, plan=st.text(max_size=5_000), decision=st.sampled_from([0, 1, 4])
)
KEYS = st.text(max_size=64)


@given(VALIDATIONS, st.integers(0, 3))
def test_a_single_answer(validation: pb.Validation, level: int) -> None:
    content = wire.validate_response(validation.SerializeToString()) + wire.guard_level(level)
    expected = pb.ValidateMemberResponse(validation=validation, guard_level=level)  # type: ignore[arg-type]
    assert pb.ValidateMemberResponse.FromString(content) == expected
    assert content == expected.SerializeToString()


@given(st.lists(st.tuples(KEYS, VALIDATIONS | st.just(ItemError(code=3, message="x")))),
       st.integers(0, 3))  # fmt: skip
def test_a_batch(answers: list[tuple[str, pb.Validation | ItemError]], level: int) -> None:
    expected = pb.BatchValidateMembersResponse(guard_level=level)  # type: ignore[arg-type]
    parts = []
    for key, result in answers:
        content = result.SerializeToString()
        if isinstance(result, ItemError):
            parts.append(wire.member_answer(key, wire.framed_error(content)))
            expected.answers.add(key=key, error=result)
        else:
            parts.append(wire.member_answer(key, wire.framed_validation(content)))
            expected.answers.add(key=key, validation=result)
    assert wire.batch_response(parts, level).SerializeToString() == expected.SerializeToString()


@given(KEYS, VALIDATIONS)
def test_an_answer_on_a_stream(key: str, validation: pb.Validation) -> None:
    content = wire.member_answer(key, wire.framed_validation(validation.SerializeToString()))
    answer = pb.MemberAnswer(key=key, validation=validation)
    assert pb.StreamValidateMembersResponse.FromString(content).answer == answer
