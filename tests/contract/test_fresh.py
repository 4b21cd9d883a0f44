"""What is generated from the contract is committed, and is what the contract says today."""

from pathlib import Path

import pytest

from tools import gen, reference, reference_config


def test_stubs_are_fresh() -> None:
    assert gen.stale_stubs() == [], "run `make gen`"


def test_reference_pages_are_fresh() -> None:
    assert reference.stale_pages() == [], "run `python -m tools.reference`"


def test_an_edited_stub_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gen.generate(tmp_path)
    edited = tmp_path / "trunkline/api/options/v1/policy_pb2.py"
    edited.write_text(edited.read_text() + "# edited\n")
    (tmp_path / "trunkline/api/ops/v1/gone_service_pb2.py").touch()
    monkeypatch.setattr(gen, "STUBS", tmp_path)
    assert gen.stale_stubs() == [
        "trunkline/api/ops/v1/gone_service_pb2.py",
        "trunkline/api/options/v1/policy_pb2.py",
    ]


def test_the_page_of_settings_is_fresh() -> None:
    assert reference_config.TARGET.read_text() == reference_config.page(), (
        "run `python -m tools.reference_config`"
    )
