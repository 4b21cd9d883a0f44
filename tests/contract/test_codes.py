"""The codes the rules give are codes of the contract, by the same names."""

from trunkline.api.imports.v1.reject_code_pb2 import RejectCode
from trunkline_server.imports.rules import RowCode
from trunkline_server.members.rules import Code


def test_every_code_of_the_rules_is_a_documented_reject_code() -> None:
    documented = {name.removeprefix("REJECT_CODE_") for name, _ in RejectCode.items()}
    assert {code.value for code in [*RowCode, *Code]} - documented == set()
