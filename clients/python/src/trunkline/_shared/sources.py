"""What can be uploaded: files, file objects, rows."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any
from zlib import crc32

from trunkline.errors import FileChanged, Invalid

Row = Mapping[str, object] | Sequence[object]

READ_BYTES = 1 << 20
# Larger files would be read twice for longer than a person waits.
SAME_FILE_CHECK_BYTES_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What tells a file from another of the same name without reading it."""

    size_bytes: int
    modified_ns: int
    inode: int

    @classmethod
    def of(cls, stat: os.stat_result) -> "FileIdentity":
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ino)


class FileSource:
    """A file on disk: its size is known, and another process can continue it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise Invalid(
                f"{path} cannot be read: {error.strerror}.",
                remedy="Check the path and its permissions.",
            ) from error
        self.identity = FileIdentity.of(os.fstat(self._file.fileno()))
        self.size_bytes: int | None = self.identity.size_bytes

    def read(self, size: int) -> bytes:
        return self._file.read(size)

    def check_unchanged(self) -> None:
        """Raise if the file was written to, or another took its place, since it was opened."""
        try:
            named = FileIdentity.of(self.path.stat())
        except OSError:
            named = None
        if named != self.identity or FileIdentity.of(os.fstat(self._file.fileno())) != named:
            raise FileChanged(f"{self.path} changed while it was uploaded.")

    def sha256(self) -> bytes:
        digest = sha256()
        while content := self._file.read(READ_BYTES):
            digest.update(content)
        self._file.seek(0)
        return digest.digest()

    def skip(self, size: int) -> int:
        """Go past the first `size` bytes; returns their CRC-32."""
        self._file.seek(0)
        digest, left = 0, size
        while left:
            content = self._file.read(min(READ_BYTES, left))
            if not content:
                raise FileChanged(f"{self.path} is shorter than what was uploaded of it.")
            digest, left = crc32(content, digest), left - len(content)
        return digest

    def close(self) -> None:
        self._file.close()


class StreamSource:
    """Bytes that come only once: a file object or what rows make."""

    path = None
    size_bytes: int | None = None

    def __init__(self, parts: Iterator[bytes], name: str) -> None:
        self._parts = parts
        self._left = b""
        self.name = name

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end: small parts make no small chunks."""
        found = [self._left]
        length = len(self._left)
        while length < size and (part := next(self._parts, b"")):
            found.append(part)
            length += len(part)
        content = b"".join(found)
        self._left = content[size:]
        return content[:size]

    def check_unchanged(self) -> None:
        """What cannot be read twice cannot differ."""

    def close(self) -> None:
        pass


Source = FileSource | StreamSource


def source_of(given: object, header: Sequence[str] | None) -> Source:
    """Whatever a caller passes to `upload`."""
    if isinstance(given, str | os.PathLike):
        return FileSource(Path(given))
    if isinstance(given, bytes | bytearray | memoryview):
        return StreamSource(iter([bytes(given)]), "")
    if hasattr(given, "read"):
        file: IO[Any] = given  # type: ignore[assignment]
        return StreamSource(_parts_of(file), _name_of(file))
    if isinstance(given, Iterable):
        return StreamSource(csv_of(given, header), "")
    raise Invalid(
        f"A {type(given).__name__} cannot be uploaded.",
        remedy="Give a path, a file opened for reading, bytes, or rows.",
    )


def _name_of(file: IO[Any]) -> str:
    name = getattr(file, "name", "")
    return Path(name).name if isinstance(name, str) and not name.startswith("<") else ""


def _parts_of(file: IO[Any]) -> Iterator[bytes]:
    while part := file.read(READ_BYTES):
        # A file opened as text has decoded it already; the service reads UTF-8.
        yield part.encode() if isinstance(part, str) else part


class RowWriter:
    """Rows as CSV. Mappings bring the header themselves: the first row's keys."""

    def __init__(self, header: Sequence[str] | None) -> None:
        self._text = io.StringIO(newline="")
        self._writer = csv.writer(self._text, lineterminator="\n")
        self._columns = list(header) if header is not None else None
        if self._columns is not None:
            self._writer.writerow(self._columns)

    def add(self, row: Row) -> None:
        if isinstance(row, Mapping):
            if self._columns is None:
                self._columns = list(row)
                self._writer.writerow(self._columns)
            _check_keys(row, self._columns)
            self._writer.writerow([_cell(row.get(column)) for column in self._columns])
        else:
            self._writer.writerow([_cell(value) for value in row])

    @property
    def is_full(self) -> bool:
        return self._text.tell() >= READ_BYTES

    def drain(self) -> bytes:
        """What was written since the last time."""
        content = self._text.getvalue().encode()
        self._text.seek(0)
        self._text.truncate()
        return content


def csv_of(rows: Iterable[Row], header: Sequence[str] | None) -> Iterator[bytes]:
    writer = RowWriter(header)
    for row in rows:
        writer.add(row)
        if writer.is_full:
            yield writer.drain()
    yield writer.drain()


def _check_keys(row: Mapping[str, object], columns: Sequence[str]) -> None:
    unknown = row.keys() - set(columns)
    if unknown:
        raise Invalid(
            f"A row has columns the first one does not have: {', '.join(sorted(unknown))}.",
            remedy="Name all columns in header=.",
        )


def _cell(value: object) -> str:
    return "" if value is None else str(value)
