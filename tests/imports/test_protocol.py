"""The upload's state machine against a plain model: any chunks, any cuts, any interruption."""

from __future__ import annotations

import itertools
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from trunkline_server.errors import AppError
from trunkline_server.imports.errors import (
    DigestMismatch,
    FileDigestMismatch,
    FileTooLarge,
    OffsetGap,
    SendLimitPassed,
    SizeMismatch,
    UploadFinished,
)
from trunkline_server.imports.protocol import CHUNK_BYTES_MAX, Phase, Upload, joined

FILE_BYTES_MAX = 2_000


class Uploads(RuleBasedStateMachine):
    """A sender with a file, a store that keeps what is committed, streams that come and go."""

    @initialize(file=st.binary(min_size=1, max_size=1_000))
    def begin(self, file: bytes) -> None:
        self.file = file
        self.store: list[tuple[int, int, bytes]] = []  # offset, CRC-32 of what is before, bytes
        self.finished = False
        self.open()

    def open(self) -> None:
        stored = self.stored
        self.upload = Upload(
            persisted=len(stored),
            persisted_crc32=zlib.crc32(stored),
            file_bytes_max=FILE_BYTES_MAX,
            phase=Phase.FINISHED if self.finished else Phase.OPEN,
        )

    @property
    def stored(self) -> bytes:
        return b"".join(data for _, _, data in self.store)

    @property
    def received(self) -> bytes:
        return self.file[: self.upload.received]

    @rule(growth=st.integers(0, 500))
    def grant(self, growth: int) -> None:
        before = self.upload.send_limit
        grows = self.upload.grant(self.upload.persisted + growth)
        assert self.upload.send_limit >= before
        assert grows == (self.upload.send_limit > before)

    @rule(back=st.integers(0, 200), size=st.integers(1, 300), skip=st.integers(0, 3))
    def chunk(self, back: int, size: int, skip: int) -> None:
        upload = self.upload
        offset = max(0, upload.received - back) + (skip if not back else 0)
        data = self.file[offset : offset + size]
        if not data:
            return
        fresh_from = upload.received
        try:
            overlap, fresh = upload.chunk(offset, data, zlib.crc32(data))
        except UploadFinished:
            assert upload.phase is not Phase.OPEN
        except OffsetGap as gap:
            assert offset > fresh_from
            assert gap.metadata["expected_offset"] == str(fresh_from)
        except SendLimitPassed:
            assert offset + len(data) > upload.send_limit
        else:
            assert offset + len(data) <= upload.send_limit
            assert upload.received == fresh_from, "nothing is taken before it was compared"
            again = b"" if overlap is None else overlap.data
            assert again + fresh == data
            assert overlap is None or overlap.offset + len(overlap.data) <= fresh_from
            upload.append(fresh)
            assert upload.received == max(fresh_from, offset + len(data))

    @rule(flipped=st.integers(1, 0xFFFFFFFF))
    def broken_chunk(self, flipped: int) -> None:
        before = self.upload.received
        data = self.file[before : before + 10]
        with pytest.raises(AppError) as refused:
            self.upload.chunk(before, data, zlib.crc32(data) ^ flipped)
        assert isinstance(refused.value, DigestMismatch | SendLimitPassed | UploadFinished)
        assert self.upload.received == before

    @rule()
    def commit(self) -> None:
        batch = self.upload.batch()
        if batch is None:
            assert not self.upload.unstored
            return
        self.store += batch.pieces
        self.upload.stored(batch)
        assert self.upload.batch() is None

    @rule()
    def lose_the_commit(self) -> None:
        """The transaction failed: what was made for it changes nothing."""
        before = (self.upload.persisted, self.upload.received)
        self.upload.batch()
        assert (self.upload.persisted, self.upload.received) == before

    @rule()
    def interrupt(self) -> None:
        self.open()

    @rule()
    def finish(self) -> None:
        upload = self.upload
        is_whole = upload.received == len(self.file)
        try:
            upload.finish(len(self.file), zlib.crc32(self.file))
        except SizeMismatch:
            assert not is_whole
            return
        assert is_whole
        if upload.phase is Phase.FINISHING:
            self.commit()
            upload.finished()
            self.finished = True

    @precondition(lambda self: self.upload.received)
    @rule(flipped=st.integers(1, 0xFFFFFFFF))
    def finish_another_file(self, flipped: int) -> None:
        before = self.upload.phase
        with pytest.raises(FileDigestMismatch):
            self.upload.finish(self.upload.received, self.upload.crc32 ^ flipped)
        assert self.upload.phase is before

    @invariant()
    def what_is_stored_is_the_file(self) -> None:
        stored = self.stored
        assert stored == self.file[: len(stored)]
        assert self.upload.persisted == len(stored)
        assert self.upload.crc32 == zlib.crc32(self.received)
        assert self.upload.persisted <= self.upload.received <= self.upload.send_limit
        assert not self.finished or stored == self.file

    @invariant()
    def pieces_have_no_gap(self) -> None:
        at = 0
        for offset, prefix_crc32, data in self.store:
            assert offset == at
            assert prefix_crc32 == zlib.crc32(self.file[:at])
            at += len(data)


TestUploads = Uploads.TestCase
TestUploads.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(chunks=st.lists(st.binary(min_size=1, max_size=400_000), max_size=12))
@settings(max_examples=30, deadline=None)
def test_joined_chunks_are_the_same_bytes_in_pieces_that_fit(chunks: list[bytes]) -> None:
    pieces = joined(chunks)
    assert b"".join(pieces) == b"".join(chunks)
    assert all(len(piece) <= CHUNK_BYTES_MAX for piece in pieces)
    # Two neighbours that would fit into one would be one.
    assert all(len(a) + len(b) > CHUNK_BYTES_MAX - 400_000 for a, b in itertools.pairwise(pieces))


def opened(total_bytes: int | None = None) -> Upload:
    upload = Upload(
        persisted=0, persisted_crc32=0, file_bytes_max=FILE_BYTES_MAX, total_bytes=total_bytes
    )
    upload.grant(10_000)
    return upload


def test_a_file_past_its_limit_is_refused_whole() -> None:
    upload = opened()
    data = b"x" * (FILE_BYTES_MAX + 1)
    with pytest.raises(FileTooLarge):
        upload.chunk(0, data, zlib.crc32(data))
    with pytest.raises(FileTooLarge):
        upload.append(data)
    assert upload.received == 0


def test_more_than_was_promised_is_refused() -> None:
    upload = opened(total_bytes=3)
    upload.append(b"abc")
    with pytest.raises(SizeMismatch):
        upload.append(b"d")
    with pytest.raises(SizeMismatch):
        upload.finish(4, 0)
    upload.finish(3, zlib.crc32(b"abc"))
    assert upload.phase is Phase.FINISHING
