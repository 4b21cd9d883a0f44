"""The contract explains itself: everything a caller meets has a sentence."""

import re

import grpc

from tools.reference import Contract

_SENTENCES = re.compile(r"(?P<code>[A-Z_]+): (?P<what>[A-Z].+?)\. (?P<remedy>[A-Z].+)\.")


def test_services_methods_messages_and_fields_have_comments(contract: Contract) -> None:
    bare = [s.name for s in contract.services() if not s.comment]
    bare += [m.name for s in contract.services() for m, comment in s.methods if not comment]
    bare += [m.name for m in contract.messages() if not m.comment]
    bare += [
        f"{m.name}.{field.name}"
        for m in contract.messages()
        for field, comment in m.fields
        if not comment
    ]
    assert bare == []


def test_enums_and_their_values_have_comments(contract: Contract) -> None:
    bare = [e.name for e in contract.enums() if not e.comment]
    bare += [v.name for e in contract.enums() for v, comment in e.values if not comment]
    assert bare == []


def test_comments_end_like_sentences(contract: Contract) -> None:
    comments = [m.comment for m in contract.messages()]
    comments += [comment for m in contract.messages() for _, comment in m.fields]
    comments += [comment for e in contract.enums() for _, comment in e.values]
    assert [c for c in comments if not c.endswith(".")] == []


def test_each_reason_says_code_what_happened_and_what_to_do(contract: Contract) -> None:
    (reasons,) = (e for e in contract.enums() if e.name == "trunkline.api.errors.v1.Reason")
    for value, comment in reasons.values[1:]:
        match = _SENTENCES.fullmatch(comment)
        assert match is not None, value.name
        assert match["code"] in grpc.StatusCode.__members__, value.name
        assert match["code"] != "UNKNOWN", value.name


def test_each_reject_code_and_validation_reason_has_a_remedy(contract: Contract) -> None:
    names = (
        "trunkline.api.imports.v1.RejectCode",
        "trunkline.api.members.v1.ValidationReason",
    )
    for enum in (e for e in contract.enums() if e.name in names):
        for value, comment in enum.values[1:]:
            assert ". " in comment, value.name
