"""A server of the test's own, in a thread, for both clients."""

from collections.abc import Iterator

import pytest

from tests.client.stage import Stage, Thread, stage
from tests.running import Org, Running, running


@pytest.fixture
def thread() -> Iterator[Thread]:
    thread = Thread()
    yield thread
    thread.stop()


@pytest.fixture
def staged(thread: Thread) -> Iterator[Stage]:
    with thread.within(stage) as found:
        yield found


@pytest.fixture
def real(thread: Thread, database_url: str, redis_url: str) -> Iterator[Running]:
    with thread.within(lambda: running(database_url, redis_url)) as server:
        yield server


@pytest.fixture
def acme(thread: Thread, real: Running) -> Org:
    return thread.run(real.org("acme"))
