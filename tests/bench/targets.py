"""What the tests have the open-loop driver call."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager


@asynccontextmanager
async def blocking(given: Mapping[str, float]) -> AsyncIterator[Callable[[int], Awaitable[str]]]:
    async def call(number: int) -> str:
        time.sleep(given["seconds"])
        return "ok"

    yield call
