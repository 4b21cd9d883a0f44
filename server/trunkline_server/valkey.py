"""Valkey behind tight time-outs, a bounded pool and a breaker.

Nothing durable lives there: whoever asks must know what to do when there is no answer.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from trunkline_server.breaker import Breaker, BreakerOpen
from trunkline_server.errors import Unavailable

PREFIX = "trunkline:"
CALL_TIMEOUT_S = 0.25
CONNECTIONS_MAX = 8

# Also what Valkey refuses (out of memory, read-only, loading): for the caller all are "not now".
FAILURES = (RedisError, OSError, asyncio.TimeoutError)

Word = str | bytes | int | float


class ValkeyUnavailable(Unavailable):
    """No answer in time, or the breaker is open. Features catch it and do without."""

    text = "The shared memory of the service does not answer; retry."


class Script:
    """Lua that runs by its digest; the text is sent where Valkey has forgotten it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class Wire:
    """At most `connections_max` connections; a call that is cut short costs its connection.

    In place of redis-py's pools: those wait for a lock to take a connection back, and a caller who
    is cancelled right then leaves it lost to the pool for good.
    """

    def __init__(
        self, url: str, *, timeout_s: float = CALL_TIMEOUT_S, connections_max: int = CONNECTIONS_MAX
    ) -> None:
        self._make: Any = ConnectionPool.from_url(
            url,
            socket_timeout=None,  # `call` bounds the whole exchange
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            client_name="trunklined",
        ).make_connection
        self._timeout_s = timeout_s
        self._turn = asyncio.Semaphore(connections_max)
        self._idle: list[Any] = []  # redis-py leaves most of a connection's calls untyped

    def connection(self) -> Any:
        """One for the caller alone, not connected yet."""
        return self._make()

    async def call(self, *commands: tuple[Word, ...]) -> list[Any]:
        """One round trip. What Valkey refuses is an exception among the answers."""
        async with asyncio.timeout(self._timeout_s), self._turn:
            connection = self._idle.pop() if self._idle else self._make()
            try:
                answers = await _exchange(connection, commands)
            except BaseException:
                # An answer may be on its way to it, which the next caller would take for his.
                await connection.disconnect(nowait=True)
                raise
            self._idle.append(connection)
            return answers

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().disconnect()


async def _exchange(connection: Any, commands: Sequence[tuple[Word, ...]]) -> list[Any]:
    if connection.is_connected:
        try:
            stale = await connection.can_read()
        except (RedisError, OSError):
            stale = True
        if stale:  # closed by the other side while it was idle
            await connection.disconnect(nowait=True)
    await connection.connect()
    await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
    answers: list[Any] = []
    for _ in commands:
        try:
            answers.append(await connection.read_response())
        except ResponseError as refusal:
            answers.append(refusal)
    return answers


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
        self._wire = Wire(url, timeout_s=timeout_s, connections_max=connections_max)

    async def command(self, *words: Word) -> Any:
        return (await self._guarded(lambda: self._sound(words)))[0]

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Word]) -> Any:
        return (await self.run_each(script, [(keys, args)]))[0]

    async def run_each(
        self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Word]]]
    ) -> list[Any]:
        """One round trip for all calls. Each is atomic by itself, not the whole."""
        return await self._guarded(lambda: self._run_each(script, calls))

    async def close(self) -> None:
        await self._wire.close()

    async def _run_each(
        self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Word]]]
    ) -> list[Any]:
        commands = [("EVALSHA", script.digest, len(keys), *keys, *args) for keys, args in calls]
        answers = await self._wire.call(*commands)
        missed = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if missed:
            # Valkey was restarted or flushed. Only the calls that did not run are repeated.
            again = await self._wire.call(
                ("SCRIPT", "LOAD", script.text), *(commands[i] for i in missed)
            )
            for i, answer in zip(missed, again[1:], strict=True):
                answers[i] = answer
        return _sound(answers)

    async def _sound(self, *commands: tuple[Word, ...]) -> list[Any]:
        return _sound(await self._wire.call(*commands))

    async def _guarded(self, call: Callable[[], Awaitable[list[Any]]]) -> list[Any]:
        try:
            with self.breaker.attempt():
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
