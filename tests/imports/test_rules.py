"""The first line of a file, its columns, and the codes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.api.imports.v1 import reject_code_pb2
from trunkline_server.imports.rules import (
    ALIASES,
    FIELDS,
    FILE_MESSAGES,
    ROW_MESSAGES,
    Cursor,
    FileCode,
    FileRefused,
    Layout,
    RowCode,
    Spec,
    read_layout,
)


def layout_of(content: bytes, spec: Spec | None = None) -> Layout:
    layout = read_layout(content, spec or Spec(), is_whole=True)
    assert layout is not None
    return layout


def refusal(content: bytes, spec: Spec | None = None) -> tuple[FileCode, str]:
    with pytest.raises(FileRefused) as refused:
        read_layout(content, spec or Spec(), is_whole=True)
    return refused.value.code, refused.value.subject


def test_names_aliases_attributes_and_the_rest() -> None:
    layout = layout_of(b"Member-Number;First Name; E-Mail ;DOB;attributes.tier;Shoe size\r\n")
    assert layout.fields == (
        "member_number", "given_name", "email", "date_of_birth", "attributes.tier", "",
    )  # fmt: skip
    assert layout.ignored == ("Shoe size",)
    assert layout.eol == b"\r\n"
    assert layout.first == Cursor(65, 0, 2)
    assert layout.staging_columns() == [
        ("member_number", "text"), ("given_name", "text"), ("email", "text"),
        ("date_of_birth", "date"), ("attribute_4", "text"), ("ignored_5", "text"),
    ]  # fmt: skip
    assert layout.attribute_columns() == {"tier": "attribute_4"}


def test_the_senders_mapping_goes_first() -> None:
    spec = Spec(columns={" nr ": "member_number", "phone": "", "size": "attributes.shoe_size"})
    layout = layout_of(b"Nr,phone,size\n", spec)
    assert layout.fields == ("member_number", "", "attributes.shoe_size")
    assert refusal(b"number,phone,size\n", spec) == (FileCode.MISSING_COLUMN, " nr ")
    wrong = Spec(columns={"a": "password"})
    assert refusal(b"a\n", wrong) == (FileCode.UNKNOWN_FIELD, "password")
    wrong = Spec(columns={"a": "attributes.No"})
    assert refusal(b"a\n", wrong) == (FileCode.UNKNOWN_FIELD, "attributes.No")


def test_without_a_header_positions_name_the_columns() -> None:
    spec = Spec(has_header=False, positions=("member_number", "", "email"))
    layout = layout_of(b"\xef\xbb\xbf1|x|a@b.de\n", spec)
    assert (layout.delimiter, layout.fields) == ("|", spec.positions)
    assert layout.first == Cursor(3, 0, 1)


def test_quoted_headers() -> None:
    layout = layout_of(b'\n"member_number","a ""b"",\nc",email\n1,2,3\n')
    assert layout.headers == ("member_number", 'a "b",\nc', "email")
    assert layout.first == Cursor(36, 0, 4)
    assert refusal(b'"member_number,email\n1,2\n')[0] is FileCode.HEADER_MALFORMED
    single = layout_of(b"'member_number','a,b'\n", Spec(quote="'"))
    assert single.headers == ("member_number", "a,b")


def test_limits_and_dialect() -> None:
    many = ",".join(["member_number", *(f"c{n}" for n in range(200))]).encode() + b"\n"
    assert refusal(many) == (FileCode.TOO_MANY_COLUMNS, "201")
    attributes = ",".join(["number", *(f"attributes.a{n}" for n in range(33))]).encode()
    assert refusal(attributes)[0] is FileCode.TOO_MANY_ATTRIBUTES
    assert refusal(b"number\n", Spec(delimiter=":"))[0] is FileCode.DELIMITER
    assert refusal(b"number\n", Spec(quote="`"))[0] is FileCode.DELIMITER
    assert refusal(b"number:name\n") == (FileCode.MISSING_COLUMN, "member_number")
    assert refusal(b"num\0ber,name\n")[0] is FileCode.NUL_BYTE


def test_more_is_asked_for_only_until_the_header_ends() -> None:
    content = b'member_number,"given\nname",email\n1,2,3\n'
    end = content.index(b"\n1") + 1
    for size in range(len(content)):
        layout = read_layout(content[:size], Spec(), is_whole=False)
        assert (layout is not None) == (size >= end)
    assert layout == layout_of(content)


@given(st.binary(max_size=80), st.booleans())
def test_any_bytes_are_a_layout_or_a_refusal(content: bytes, is_whole: bool) -> None:
    try:
        layout = read_layout(content, Spec(), is_whole=is_whole)
    except FileRefused:
        return
    assert layout is not None or not is_whole


def test_a_layout_survives_being_stored() -> None:
    layout = layout_of(b"number\tname\tattributes.x\r\n", Spec())
    assert Layout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


def test_codes_are_public_and_explained() -> None:
    names = reject_code_pb2.RejectCode.DESCRIPTOR.values_by_name
    assert {f"REJECT_CODE_{code}" for code in RowCode} <= set(names)
    assert set(ROW_MESSAGES) == set(RowCode)
    assert set(FILE_MESSAGES) == set(FileCode)
    assert set(ALIASES.values()) <= set(FIELDS)
