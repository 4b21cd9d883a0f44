from collections.abc import Iterator

import pytest

from tools.reference import Contract


@pytest.fixture(scope="session")
def contract() -> Iterator[Contract]:
    yield Contract.compile()
