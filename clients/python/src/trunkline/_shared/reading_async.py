"""Sources as the asynchronous client reads them: files in a thread, rows maybe waited for."""

import asyncio
from collections.abc import AsyncIterable, Iterable, Sequence
from os import PathLike
from typing import IO, TypeAlias

from trunkline._shared import sources
from trunkline._shared.sources import FileSource, Row, RowWriter, StreamSource

Uploadable: TypeAlias = (
    str | PathLike[str] | bytes | IO[bytes] | IO[str] | Iterable[Row] | AsyncIterable[Row]
)


class AsyncRowSource:
    """Rows from something that is itself waited for."""

    path = None
    size_bytes: int | None = None
    name = ""

    def __init__(self, rows: AsyncIterable[Row], header: Sequence[str] | None) -> None:
        self._rows = aiter(rows)
        self._writer = RowWriter(header)
        self._left = b""

    async def read(self, size: int) -> bytes:
        ended = False
        while len(self._left) < size and not ended:
            try:
                self._writer.add(await anext(self._rows))
            except StopAsyncIteration:
                ended = True
            if self._writer.is_full or ended:
                self._left += self._writer.drain()
        content, self._left = self._left[:size], self._left[size:]
        return content

    def check_unchanged(self) -> None:
        """What cannot be read twice cannot differ."""

    def close(self) -> None:
        pass


Source: TypeAlias = FileSource | StreamSource | AsyncRowSource


def opened(given: Uploadable, header: Sequence[str] | None) -> Source:
    if isinstance(given, AsyncIterable) and not isinstance(given, Iterable):
        return AsyncRowSource(given, header)
    return sources.source_of(given, header)


async def read(source: Source, size: int) -> bytes:
    if isinstance(source, AsyncRowSource):
        return await source.read(size)
    return await asyncio.to_thread(source.read, size)
