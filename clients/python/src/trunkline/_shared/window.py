"""What of a file was taken from its source and is not known to be stored."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from zlib import crc32


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of the file with the digests the protocol wants."""

    offset: int
    content: bytes
    crc32: int
    # Of all bytes before this chunk.
    prefix_crc32: int

    @property
    def end(self) -> int:
        return self.offset + len(self.content)


class Window:
    """Chunks from `stored` up to `end`. It grows by what is read and shrinks by acknowledgements,
    so it never holds more than the server lets the client be ahead."""

    def __init__(self, stored: int = 0, prefix_crc32: int = 0) -> None:
        self.stored = stored
        self.stored_crc32 = prefix_crc32
        self.end = stored
        self.crc32 = prefix_crc32
        self._chunks: deque[Chunk] = deque()

    def take(self, content: bytes) -> Chunk:
        """The next bytes of the file."""
        chunk = Chunk(self.end, content, crc32(content), self.crc32)
        self.end = chunk.end
        self.crc32 = crc32(content, self.crc32)
        self._chunks.append(chunk)
        return chunk

    def acknowledge(self, stored: int) -> None:
        """The server has committed everything before `stored`."""
        while self._chunks and self._chunks[0].offset < stored:
            chunk = self._chunks.popleft()
            kept = chunk.content[stored - chunk.offset :] if stored < chunk.end else b""
            gone = chunk.content[: len(chunk.content) - len(kept)] if kept else chunk.content
            self.stored_crc32 = crc32(gone, chunk.prefix_crc32)
            self.stored = chunk.offset + len(gone)
            if kept:
                rest = Chunk(self.stored, kept, crc32(kept), self.stored_crc32)
                self._chunks.appendleft(rest)
                return

    def unstored(self) -> Iterator[Chunk]:
        """The chunks to send again after a reconnection."""
        return iter(tuple(self._chunks))
