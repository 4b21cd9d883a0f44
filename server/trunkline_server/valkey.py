"""Valkey behind tight time-outs, a bounded pool and a breaker.

Nothing durable lives there: whoever asks must know what to do when there is no answer.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from trunkline_server.breaker import Breaker, BreakerOpen
from trunkline_server.errors import Unavailable

PREFIX = "trunkline:"
CALL_TIMEOUT_S = 0.25
CONNECTIONS_MAX = 8

# Also what Valkey refuses (out of memory, read-only, loading): for the caller all are "not now".
FAILURES = (RedisError, OSError, asyncio.TimeoutError)

T = TypeVar("T")
Word = str | bytes | int | float


class ValkeyUnavailable(Unavailable):
    """No answer in time, or the breaker is open. Features catch it and do without."""

    text = "The shared memory of the service does not answer; retry."


class Script:
    """Lua that runs by its digest; the text is sent where Valkey has forgotten it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def connect(
    url: str, *, timeout_s: float = CALL_TIMEOUT_S, connections_max: int = CONNECTIONS_MAX
) -> Redis:
    """A client that never retries by itself and holds at most `connections_max` connections."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections_max,
        timeout=timeout_s,  # for a free connection
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        client_name="trunklined",
    )
    return Redis.from_pool(pool)


class Valkey:
    """Every call ends within `timeout_s`, and raises nothing but ValkeyUnavailable."""

    def __init__(
        self,
        url: str,
        *,
        breaker: Breaker | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        self.breaker = breaker or Breaker("valkey", failures=FAILURES)
        self._timeout_s = timeout_s
        # redis-py leaves most of its calls untyped.
        self._redis: Any = connect(url, timeout_s=timeout_s, connections_max=connections_max)

    async def command(self, *words: Word) -> Any:
        return await self._guarded(lambda: self._redis.execute_command(*words))

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Word]) -> Any:
        return (await self.run_each(script, [(keys, args)]))[0]

    async def run_each(
        self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Word]]]
    ) -> list[Any]:
        """One round trip for all calls. Each is atomic by itself, not the whole."""
        return await self._guarded(lambda: self._run_each(script, calls))

    async def close(self) -> None:
        await self._redis.aclose()

    async def _run_each(
        self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Word]]]
    ) -> list[Any]:
        answers = await self._pipe(script.digest, calls)
        if not any(isinstance(answer, NoScriptError) for answer in answers):
            return _sound(answers)
        # Valkey was restarted or flushed. Only the calls that did not run are repeated.
        await self._redis.execute_command("SCRIPT", "LOAD", script.text)
        missed = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        again = await self._pipe(script.digest, [calls[i] for i in missed])
        for i, answer in zip(missed, again, strict=True):
            answers[i] = answer
        return _sound(answers)

    async def _pipe(
        self, digest: str, calls: Sequence[tuple[Sequence[str], Sequence[Word]]]
    ) -> list[Any]:
        pipe = self._redis.pipeline(transaction=False)
        for keys, args in calls:
            pipe.execute_command("EVALSHA", digest, len(keys), *keys, *args)
        answers: list[Any] = await pipe.execute(raise_on_error=False)
        return answers

    async def _guarded(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            with self.breaker.attempt():
                async with asyncio.timeout(self._timeout_s):
                    return await call()
        except BreakerOpen as error:
            raise ValkeyUnavailable(retry_after_s=error.retry_after_s) from error
        except FAILURES as error:
            raise ValkeyUnavailable(retry_after_s=self._timeout_s) from error


def _sound(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers
