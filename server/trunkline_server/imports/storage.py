"""One upload and its bytes in PostgreSQL: opened, stored behind its epoch, completed, refused."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from trunkline.api.identity.v1.identity_service_pb2 import Quotas
from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline_server import audit
from trunkline_server.db import Database, Executor, Record
from trunkline_server.errors import AppError
from trunkline_server.imports import present, queries, rules
from trunkline_server.imports.errors import (
    ContentDiffers,
    FileDigestMismatch,
    OffsetGap,
    SameFile,
    StateForbids,
    TakenOver,
    TooManyColumns,
    UploadExpired,
    UploadFinished,
    item,
    of_file,
)
from trunkline_server.imports.flow import Flow, Stream
from trunkline_server.imports.protocol import Batch, Overlap, Phase, Upload
from trunkline_server.imports.quotas import earliest_start
from trunkline_server.imports.spec import file_spec
from trunkline_server.jobs.queue import enqueue

if TYPE_CHECKING:
    from hashlib import _Hash as Sha256
else:
    Sha256 = object

# More than this of a file is never needed to read its header line.
HEAD_BYTES_MAX = rules.ROW_BYTES_MAX + 16
# Hashing more than this at once belongs in a thread; less is done before one would start.
HASH_INLINE_BYTES = 64 << 10
REHASH_BYTES = 4 << 20
DIGESTS_MAX = 1_000

ACCEPTING = ("CREATED", "UPLOADING")


class Hooks(Protocol):
    """Whom an upload tells of what it did."""

    def opened(self, import_id: UUID, epoch: int) -> None: ...
    def changed(self, org_id: UUID, import_id: UUID) -> None: ...


class Digests:
    """SHA-256 states of interrupted uploads, so that resuming here need not read them again."""

    def __init__(self) -> None:
        self._known: OrderedDict[UUID, tuple[int, Sha256]] = OrderedDict()

    def keep(self, import_id: UUID, position: int, digest: Sha256) -> None:
        self._known[import_id] = (position, digest)
        if len(self._known) > DIGESTS_MAX:
            self._known.popitem(last=False)

    def at(self, import_id: UUID, position: int) -> Sha256 | None:
        if position == 0:
            return hashlib.sha256()
        known, digest = self._known.pop(import_id, (-1, None))
        return digest if known == position else None


class Head:
    """The file's first bytes, until they show its header line."""

    def __init__(self, spec: rules.Spec, columns_max: int, layout: rules.Layout | None) -> None:
        self._spec = spec
        self._columns_max = columns_max
        self._bytes = bytearray()
        self._look_at = 8
        self.layout = layout

    def add(self, data: bytes) -> None:
        """Raises what is wrong with the header as soon as it shows."""
        if self.layout is not None:
            return
        self._bytes += data[: HEAD_BYTES_MAX - len(self._bytes)]
        # Looking again at every small chunk would take quadratic time.
        if len(self._bytes) >= self._look_at:
            self._look_at = len(self._bytes) + len(self._bytes) // 8 + 1
            self._look(is_whole=False)

    def whole(self) -> None:
        if self.layout is None:
            self._look(is_whole=True)

    def _look(self, *, is_whole: bool) -> None:
        try:
            layout = rules.read_layout(bytes(self._bytes), self._spec, is_whole=is_whole)
        except rules.FileRefused as refused:
            raise of_file(refused) from None
        if layout is None:
            return
        if len(layout.headers) > self._columns_max:
            raise TooManyColumns(f"There are more than {self._columns_max} columns.")
        self.layout = layout
        self._bytes.clear()

    @property
    def layout_json(self) -> str | None:
        return None if self.layout is None else json.dumps(self.layout.to_json())


@dataclass(frozen=True, slots=True)
class Place:
    """Where uploads are stored, and by which rules of the organisation."""

    db: Database
    org_id: UUID
    quotas: Quotas
    keep: timedelta  # how long the bytes of an ended import are kept
    flow: Flow
    digests: Digests
    hooks: Hooks


class Storage:
    """An opened upload. `machine` is what the protocol knows; this does what has to be awaited."""

    def __init__(self, place: Place, stream: Stream, row: Record, head: Head) -> None:
        spec = present.spec(row)
        self.import_id: UUID = row["import_id"]
        self.epoch: int = row["upload_epoch"]
        self.row = row
        self.head = head
        self._place = place
        self._stream = stream
        self._spec = spec
        self._sha256 = place.digests.at(self.import_id, row["persisted_bytes"])
        is_finished = row["total_bytes"] is not None
        self.machine = Upload(
            persisted=row["persisted_bytes"],
            persisted_crc32=row["crc32"],
            file_bytes_max=place.quotas.import_file_bytes,
            total_bytes=row["total_bytes"] if is_finished else spec.total_bytes or None,
            phase=Phase.FINISHED if is_finished else Phase.OPEN,
        )
        # A chunk past the limit must reach the server to be refused, not wait for ever.
        self.size_max = self.machine.total_bytes or self.machine.file_bytes_max + 1

    @classmethod
    async def open(
        cls, place: Place, stream: Stream, import_id: UUID, offset: int, prefix_crc32: int
    ) -> Storage:
        """The older stream is fenced only once the newer has shown that it has the same file."""
        async with place.db.tenant_tx(place.org_id) as tx:
            before = await queries.upload(tx, place.org_id, import_id)
            _check_open(before)
            if offset > before["persisted_bytes"]:
                raise OffsetGap.expected(before["persisted_bytes"])
            if await _prefix_crc32(tx, place.org_id, before, offset) != prefix_crc32:
                raise ContentDiffers
            row = await queries.open_upload(tx, place.org_id, import_id)
            _check_open(row)
            head = await _head(tx, place, row)
        if row["total_bytes"] is None:
            place.hooks.opened(import_id, row["upload_epoch"])
        return cls(place, stream, row, head)

    def close(self) -> None:
        """Whoever resumes here finds the digest where it stopped."""
        if self._sha256 is not None and self.machine.phase is Phase.OPEN:
            self._place.digests.keep(self.import_id, self.machine.persisted, self._sha256)

    def append(self, data: bytes) -> None:
        self.head.add(data)
        self.machine.append(data)

    async def compare(self, overlap: Overlap) -> None:
        """Bytes that came twice must be the same. What waits is stored first: one place tells."""
        await self.flush()
        org_id, end = self._place.org_id, overlap.offset + len(overlap.data)
        async with self._place.db.tenant_tx(org_id) as tx:
            found = await queries.stored(tx, org_id, self.import_id, overlap.offset, end)
        if found != overlap.data:
            raise ContentDiffers

    async def flush(self) -> bool:
        """Commits what waits, in one transaction. False: nothing waited."""
        batch = self.machine.batch()
        if batch is None:
            return False
        started = time.monotonic()
        hashing = self._hash(batch)
        try:
            async with self._place.db.tenant_tx(self._place.org_id) as tx:
                await self._store(tx, batch)
            await hashing
        except BaseException:
            self._sha256 = None  # it may have run ahead of what is stored
            raise
        finally:
            hashing.cancel()
        self._stored(batch, started)
        return True

    async def _store(self, tx: Executor, batch: Batch) -> None:
        org_id, layout = self._place.org_id, self.head.layout_json
        if not await queries.store(tx, org_id, self.import_id, self.epoch, batch, layout):
            raise await self._why(tx)

    def _stored(self, batch: Batch, started: float) -> None:
        self._place.flow.committed(self._stream, batch.size, time.monotonic() - started)
        self.machine.stored(batch)

    def _hash(self, batch: Batch) -> asyncio.Future[None]:
        """Beside the commit, which mostly waits."""
        loop = asyncio.get_running_loop()
        digest = self._sha256
        if digest is not None and batch.size > HASH_INLINE_BYTES:
            return asyncio.ensure_future(asyncio.to_thread(_update, digest, batch))
        if digest is not None:
            _update(digest, batch)
        done: asyncio.Future[None] = loop.create_future()
        done.set_result(None)
        return done

    async def complete(self) -> None:
        """The file is here: its last bytes, its identity and its job in one transaction."""
        self.head.whole()
        batch = self.machine.batch()
        started = time.monotonic()
        sha256 = await self._file_sha256(batch)
        if self._spec.sha256 and sha256 != self._spec.sha256:
            raise FileDigestMismatch("The file's SHA-256 is not what the specification promised.")
        async with self._place.db.tenant_tx(self._place.org_id) as tx:
            await queries.turn(tx, self._place.org_id)
            if batch is not None:
                await self._store(tx, batch)
            row = await queries.lock(tx, self._place.org_id, self.import_id)
            if row["upload_epoch"] != self.epoch or row["state"] not in ACCEPTING:
                raise await self._why(tx)
            await queries.keep_layout(tx, self._place.org_id, self.import_id, self.head.layout_json)
            await self._queue(tx, sha256)
        if batch is not None:
            self._stored(batch, started)
        self.machine.finished()
        self._place.flow.finished(self._stream)
        self._place.hooks.changed(self._place.org_id, self.import_id)

    async def _queue(self, tx: Executor, sha256: bytes) -> None:
        org_id, size = self._place.org_id, self.machine.received
        if not self._spec.validate_only and not self._spec.allow_same_file:
            first = await queries.same_file(tx, org_id, sha256, size, self.import_id)
            if first is not None:
                raise SameFile.as_import(first)
        await queue_run(tx, org_id, self.import_id, self._place.quotas, (size, sha256))
        await audit.append(
            tx, org_id, "imports.UploadImport", resource_type="import", resource_id=self.import_id,
            details={"bytes": str(size)},
        )  # fmt: skip

    async def _file_sha256(self, batch: Batch | None) -> bytes:
        digest = self._sha256 or await self._rehash()
        self._sha256 = None
        if batch is not None:
            await asyncio.to_thread(_update, digest, batch)
        return digest.digest()

    async def _rehash(self) -> Sha256:
        """Resumed in another process than before: what is stored is read once more."""
        digest = hashlib.sha256()
        org_id = self._place.org_id
        for start in range(0, self.machine.persisted, REHASH_BYTES):
            end = min(start + REHASH_BYTES, self.machine.persisted)
            async with self._place.db.tenant_tx(org_id) as tx:
                part = await queries.stored(tx, org_id, self.import_id, start, end)
            await asyncio.to_thread(digest.update, part)
        return digest

    async def present(self) -> pb.Import:
        org_id = self._place.org_id
        async with self._place.db.tenant_tx(org_id) as tx:
            row = await queries.get(tx, org_id, self.import_id)
        return present.import_(row, self._place.quotas.imports_running)

    async def fail(self, error: AppError) -> None:
        """The file itself is at fault: the import ends, its bytes wait for their retention."""
        org_id, problem = self._place.org_id, present.stored(item(error))
        async with self._place.db.tenant_tx(org_id) as tx:
            if await queries.refuse(
                tx, org_id, self.import_id, self.epoch, problem, self._place.keep
            ):
                await audit.append(
                    tx, org_id, "imports.UploadImport", resource_type="import",
                    resource_id=self.import_id, outcome="REFUSED", reason=error.reason_name,
                )  # fmt: skip
        self._place.hooks.changed(org_id, self.import_id)

    async def _why(self, tx: Executor) -> AppError:
        """Why nothing may be written any more."""
        row = await queries.upload(tx, self._place.org_id, self.import_id)
        try:
            _check_open(row)
        except AppError as error:
            return error
        return UploadFinished() if row["total_bytes"] is not None else TakenOver()


def _check_open(row: Record) -> None:
    if row["is_expired"]:
        raise UploadExpired
    if row["state"] not in ACCEPTING and row["total_bytes"] is None:
        if row["state"] == "CANCELLED" and _was_dropped(row):
            raise UploadExpired
        raise StateForbids.found(row["state"], "an upload that is open")


def _was_dropped(row: Record) -> bool:
    """Cancelled by the sweep that drops uploads nobody finished."""
    problem = json.loads(row["problem"] or "{}")
    return bool(problem.get("reason") == "REASON_IMPORT_UPLOAD_EXPIRED")


async def _prefix_crc32(tx: Executor, org_id: UUID, row: Record, offset: int) -> int:
    if offset == row["persisted_bytes"]:
        return int(row["crc32"])
    piece = await queries.prefix(tx, org_id, row["import_id"], offset)
    return 0 if piece is None else zlib.crc32(piece["head"], piece["prefix_crc32"])


async def _head(tx: Executor, place: Place, row: Record) -> Head:
    layout = None if row["layout"] is None else rules.Layout.from_json(json.loads(row["layout"]))
    head = Head(file_spec(present.spec(row)), place.quotas.import_columns, layout)
    if layout is None and row["persisted_bytes"]:
        end = min(row["persisted_bytes"], HEAD_BYTES_MAX)
        head.add(await queries.stored(tx, place.org_id, row["import_id"], 0, end))
    return head


def _update(digest: Sha256, batch: Batch) -> None:
    for piece in batch.pieces:
        digest.update(piece.data)


async def queue_run(
    tx: Executor,
    org_id: UUID,
    import_id: UUID,
    quotas: Quotas,
    file: tuple[int | None, bytes | None] = (None, None),
) -> None:
    """In the caller's transaction, after queries.turn: deferred as the start quota says."""
    start = await earliest_start(tx, org_id, quotas)
    job_id = await enqueue(
        tx, org_id, queries.JOB_RUN, subject_id=import_id, run_after=start,
        dedup_key=str(import_id),
    )  # fmt: skip
    await queries.queue(tx, org_id, import_id, file=file, start_not_before=start, job_id=job_id)
