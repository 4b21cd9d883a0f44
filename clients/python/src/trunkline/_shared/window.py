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

    def split(self, at: int) -> tuple["Chunk", "Chunk"]:
        """The part before an offset inside this chunk, and the rest."""
        cut = at - self.offset
        head, rest = self.content[:cut], self.content[cut:]
        between = crc32(head, self.prefix_crc32)
        return (
            Chunk(self.offset, head, crc32(head), self.prefix_crc32),
            Chunk(at, rest, crc32(rest), between),
        )


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
            if stored < chunk.end:
                chunk, rest = chunk.split(stored)
                self._chunks.appendleft(rest)
            self.stored = chunk.end
            self.stored_crc32 = crc32(chunk.content, chunk.prefix_crc32)

    def unstored(self) -> Iterator[Chunk]:
        """The chunks to send again after a reconnection."""
        return iter(tuple(self._chunks))
