"""An HTTP/2 client that keeps no rule: it sends the frames a test writes, whatever they are."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WHO_AM_I = "/trunkline.api.identity.v1.IdentityService/WhoAmI"
FRAME_HEAD_BYTES = 9
FRAME_BYTES_MAX = 16_384
PATIENCE_S = 10.0

Header = tuple[str | bytes, str | bytes]


def message(payload: bytes = b"", *, compressed: bool = False, length: int | None = None) -> bytes:
    """A message as gRPC puts it on the wire; `length` may lie."""
    size = len(payload) if length is None else length
    return struct.pack("!BI", compressed, size) + payload


def request_headers(**changed: str | None) -> list[Header]:
    """What a well-behaved client sends; `changed` by name with _ for -, None leaves one out."""
    headers: dict[str, str | None] = {
        ":method": "POST",
        ":scheme": "http",
        ":path": WHO_AM_I,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        "grpc-timeout": "5S",
    }
    for name, value in changed.items():
        known = f":{name}" if f":{name}" in headers else name.replace("_", "-")
        headers[known] = value
    return [(name, value) for name, value in headers.items() if value is not None]


@dataclass
class Reply:
    """What came back on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    reset: int | None = None
    ended: bool = False

    @property
    def status(self) -> int | None:
        """The gRPC status, None when the server sent none."""
        return int(self.headers["grpc-status"]) if "grpc-status" in self.headers else None

    @property
    def text(self) -> str:
        return unquote(self.headers.get("grpc-message", ""))


class Wire:
    """One connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, acknowledge: bool
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._acknowledge = acknowledge
        self._held: bytearray | None = None
        self._spoke = False
        self.goaway: GoAwayFrame | None = None
        self.settings: dict[int, int] = {}
        self._replies: dict[int, Reply] = {}

    def send(self, *frames: Frame) -> None:
        self.send_raw(b"".join(frame.serialize() for frame in frames))

    def send_raw(self, content: bytes) -> None:
        if self._held is None:
            self._writer.write(content)
        else:
            self._held += content

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """What is sent in here leaves in one piece."""
        self._held = held = bytearray()
        yield
        self._held = None
        self._writer.write(held)

    async def flush(self) -> None:
        """What was sent is with the kernel; a connection the server closed is no error here."""
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    def hello(self) -> None:
        self._spoke = True
        self.send_raw(PREFACE)
        self.send(SettingsFrame(0))

    async def settle(self) -> None:
        """Until the server's settings are known and acknowledged."""
        await self.heard(SettingsFrame)

    def open(self, stream: int, headers: Sequence[Header], *, end: bool = False) -> None:
        first, *rest = self._blocks(headers)
        frames: list[Frame] = [
            HeadersFrame(stream, first, flags=["END_STREAM"] if end else []),
            *(ContinuationFrame(stream, block) for block in rest),
        ]
        frames[-1].flags.add("END_HEADERS")
        self.send(*frames)

    def _blocks(self, headers: Sequence[Header]) -> list[bytes]:
        # Without Huffman codes, which this encoder makes in quadratic time.
        encoded = self._encoder.encode(headers, huffman=False)
        size = FRAME_BYTES_MAX
        return [encoded[at : at + size] for at in range(0, len(encoded), size)]

    def data(self, stream: int, content: bytes, *, end: bool = True) -> None:
        self.send(DataFrame(stream, content, flags=["END_STREAM"] if end else []))

    def reset(self, stream: int) -> None:
        self.send(RstStreamFrame(stream, error_code=8))

    def call(self, stream: int, headers: Sequence[Header], content: bytes | None = None) -> None:
        self.open(stream, headers)
        self.data(stream, message() if content is None else content)

    async def reply(self, stream: int, within_s: float = PATIENCE_S) -> Reply:
        """Reads until the stream ended, was reset, or the connection closed."""
        async with asyncio.timeout(within_s):
            while not self._reply(stream).ended and await self._read_frame():
                pass
        return self._reply(stream)

    async def closed(self, within_s: float = PATIENCE_S) -> None:
        """Reads until the server closes the connection."""
        async with asyncio.timeout(within_s):
            while await self._read_frame():
                pass

    async def heard(self, *kinds: type[Frame], within_s: float = PATIENCE_S) -> Frame:
        async with asyncio.timeout(within_s):
            while (frame := await self._read_frame()) is not None:
                if isinstance(frame, kinds):
                    return frame
        raise ConnectionError(f"closed before a {kinds[0].__name__}")

    def _reply(self, stream: int) -> Reply:
        return self._replies.setdefault(stream, Reply())

    async def _read_frame(self) -> Frame | None:
        """The next frame, noted down; None at the end of the connection."""
        try:
            head = await self._reader.readexactly(FRAME_HEAD_BYTES)
            frame, length = Frame.parse_frame_header(memoryview(head))
            frame.parse_body(memoryview(await self._reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        self._note(frame)
        return frame

    def _note(self, frame: Frame) -> None:
        match frame:
            case SettingsFrame() if "ACK" not in frame.flags:
                self.settings.update(frame.settings)
                if self._spoke and self._acknowledge:
                    self.send(SettingsFrame(0, flags=["ACK"]))
            case PingFrame() if "ACK" not in frame.flags:
                self.send(PingFrame(0, frame.opaque_data, flags=["ACK"]))
            case GoAwayFrame():
                self.goaway = frame
            case HeadersFrame():
                reply = self._reply(frame.stream_id)
                for name, value in self._decoder.decode(frame.data):
                    reply.headers[_text(name)] = _text(value)
            case DataFrame():
                self._reply(frame.stream_id).data += frame.data
                if frame.data:
                    size = len(frame.data)
                    self.send(
                        WindowUpdateFrame(0, window_increment=size),
                        WindowUpdateFrame(frame.stream_id, window_increment=size),
                    )
            case RstStreamFrame():
                reply = self._reply(frame.stream_id)
                reply.reset = frame.error_code
                reply.ended = True
        if frame.stream_id and "END_STREAM" in frame.flags:
            self._reply(frame.stream_id).ended = True

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


@contextlib.asynccontextmanager
async def wire(port: int, *, hello: bool = True, acknowledge: bool = True) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    connection = Wire(reader, writer, acknowledge=acknowledge)
    if hello:
        connection.hello()
    try:
        yield connection
    finally:
        await connection.close()
