"""Sources as the blocking client reads them."""

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import IO, TypeAlias

from trunkline._shared import sources
from trunkline._shared.sources import FileSource, Row, StreamSource

Uploadable: TypeAlias = str | PathLike[str] | bytes | IO[bytes] | IO[str] | Iterable[Row]
Source: TypeAlias = FileSource | StreamSource


def opened(given: Uploadable, header: Sequence[str] | None) -> Source:
    return sources.source_of(given, header)


def read(source: Source, size: int) -> bytes:
    return source.read(size)
