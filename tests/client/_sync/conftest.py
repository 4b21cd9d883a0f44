# Made from tests/client/_async/conftest.py by tools/unasync.py: change that one.
"""The client under test."""

from collections.abc import Iterator

import pytest

from tests.client.stage import Stage
from tests.running import Org, Running
from trunkline import Client
from trunkline_server.rpc.caller import Role


@pytest.fixture
def client(staged: Stage) -> Iterator[Client]:
    with Client(staged.address, api_key="test") as client:
        yield client


@pytest.fixture
def admin(real: Running, acme: Org) -> Iterator[Client]:
    with Client(real.address, api_key=acme.keys[Role.ADMIN]) as client:
        yield client
