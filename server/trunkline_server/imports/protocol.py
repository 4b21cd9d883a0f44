"""The upload protocol as a small state machine: what each frame means, and what is to be stored.

Pure: bytes and numbers in, pieces and refusals out. The stream's driver (upload.py) does what has
to be waited for: reading, comparing with stored bytes, committing. Offsets count bytes.

    OPEN --chunk--> OPEN --finish--> FINISHING --finished--> FINISHED

received = persisted + what waits in pieces. Only `stored` moves persisted, so an acknowledgement
can name nothing that is not committed.
"""

from __future__ import annotations

import enum
import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

from trunkline_server.imports.errors import (
    DigestMismatch,
    FileDigestMismatch,
    FileTooLarge,
    OffsetGap,
    SendLimitPassed,
    SizeMismatch,
    UploadFinished,
)

CHUNK_BYTES_MAX = 1 << 20


class Phase(enum.Enum):
    OPEN = enum.auto()
    FINISHING = enum.auto()  # the whole file is here, its end is not committed
    FINISHED = enum.auto()


class Piece(NamedTuple):
    """Consecutive bytes as they will be stored, at most CHUNK_BYTES_MAX."""

    offset: int
    prefix_crc32: int
    data: bytes


class Overlap(NamedTuple):
    """Bytes that came again: the driver compares them with what is stored."""

    offset: int
    data: bytes


class Batch(NamedTuple):
    """What one transaction stores."""

    pieces: list[Piece]
    persisted: int
    crc32: int

    @property
    def size(self) -> int:
        return sum(len(piece.data) for piece in self.pieces)


@dataclass(slots=True)
class Upload:
    """One stream's view of one upload, from Open on."""

    persisted: int
    persisted_crc32: int
    file_bytes_max: int
    total_bytes: int | None = None  # known from the spec; from Finish on, the file's size
    phase: Phase = Phase.OPEN
    send_limit: int = 0
    received: int = field(init=False)
    crc32: int = field(init=False)
    _waiting: list[bytes] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.received = self.persisted
        self.crc32 = self.persisted_crc32
        self.send_limit = max(self.send_limit, self.persisted)

    @property
    def unstored(self) -> int:
        return self.received - self.persisted

    def grant(self, limit: int) -> bool:
        """True when the caller may send more than before. A grant is never taken back."""
        if limit <= self.send_limit:
            return False
        self.send_limit = limit
        return True

    def chunk(self, offset: int, data: bytes, crc32: int) -> tuple[Overlap | None, bytes]:
        """What came before, to be compared first, and what is new, to be appended then."""
        if self.phase is not Phase.OPEN:
            raise UploadFinished
        end = offset + len(data)
        if end > self.file_bytes_max:
            raise FileTooLarge(f"The file is larger than {self.file_bytes_max} bytes.")
        if offset > self.received:
            raise OffsetGap.expected(self.received)
        if end > self.send_limit:
            raise SendLimitPassed
        if zlib.crc32(data) != crc32:
            raise DigestMismatch("The chunk's CRC-32 does not match its bytes.")
        known = min(self.received - offset, len(data))
        if not known:
            return None, data
        return Overlap(offset, data[:known]), data[known:]

    def append(self, data: bytes) -> None:
        """New bytes, right behind what was received."""
        size = self.received + len(data)
        if size > self.file_bytes_max:
            raise FileTooLarge(f"The file is larger than {self.file_bytes_max} bytes.")
        if self.total_bytes is not None and size > self.total_bytes:
            raise SizeMismatch(f"The specification promised {self.total_bytes} bytes.")
        if data:
            self._waiting.append(data)
            self.received = size
            self.crc32 = zlib.crc32(data, self.crc32)

    def finish(self, total_bytes: int, crc32: int) -> None:
        """The caller says the file is complete. Saying it again changes nothing."""
        expected = self.total_bytes if self.total_bytes is not None else total_bytes
        if total_bytes != self.received or total_bytes != expected:
            raise SizeMismatch(
                f"{self.received} bytes arrived, and {total_bytes} were promised.",
                metadata={"persisted_bytes": str(self.persisted)},
            )
        if crc32 != self.crc32:
            raise FileDigestMismatch("The file's CRC-32 does not match the bytes received.")
        if self.phase is Phase.OPEN:
            self.phase = Phase.FINISHING

    def batch(self) -> Batch | None:
        """What waits, joined into pieces; None when nothing does."""
        if not self._waiting:
            return None
        # In place of what they were joined from: nothing is held twice while it is committed.
        self._waiting = joined(self._waiting)
        pieces: list[Piece] = []
        offset, crc32 = self.persisted, self.persisted_crc32
        for data in self._waiting:
            pieces.append(Piece(offset, crc32, data))
            offset, crc32 = offset + len(data), zlib.crc32(data, crc32)
        return Batch(pieces, offset, crc32)

    def stored(self, batch: Batch) -> None:
        """The batch is committed."""
        self.persisted, self.persisted_crc32 = batch.persisted, batch.crc32
        self._waiting.clear()

    def finished(self) -> None:
        self.phase = Phase.FINISHED


def joined(chunks: list[bytes]) -> list[bytes]:
    """Neighbours together, as long as they stay small: a row each for tiny chunks would be dear."""
    pieces: list[list[bytes]] = []
    size = 0
    for chunk in chunks:
        if not pieces or size + len(chunk) > CHUNK_BYTES_MAX:
            pieces.append([])
            size = 0
        pieces[-1].append(chunk)
        size += len(chunk)
    return [piece[0] if len(piece) == 1 else b"".join(piece) for piece in pieces]
