"""Files for imports, and the ways their rows get into the table: ours, and what it is held to."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import asyncpg
import grpc

from bench import product
from bench.parse import write_roster
from bench.product import Stack, Tenant
from bench.registry import CannotMeasure
from trunkline.api.imports.v1 import imports_service_pb2 as pb
from trunkline.api.imports.v1.imports_service_pb2_grpc import ImportServiceStub
from trunkline_server.imports.rules import FIELDS
from trunkline_server.rpc.caller import Role

FRAME_BYTES = 512 << 10
COPY_BYTES = 256 << 10
UPSERT_ROWS = 10_000
TRUNCATE_ATTEMPTS = 20
# An import's own limits are not the question.
QUOTAS = {
    "user_uploads_per_5_minutes": 1_000,
    "imports_waiting": 10_000,
    "import_starts_per_minute": 10_000,
    "members": 100_000_000,
}
_COLUMNS = ", ".join(FIELDS)
_TABLES = (
    "members, member_history, member_changes, member_change_seqs, import_chunks, import_batches,"
    " import_rejects, import_unlocated, import_seen, import_plan, import_undo, imports, jobs,"
    " member_search, member_words, member_search_states, member_tombstones"
)
# The members' table with all its indexes and checks; what a file does not say comes by default.
_BARE = """
CREATE TABLE {name} (LIKE members INCLUDING ALL);
ALTER TABLE {name} ALTER org_id SET DEFAULT '00000000-0000-7000-8000-000000000001',
    ALTER member_id SET DEFAULT uuidv7(),
    ALTER change_id SET DEFAULT '00000000-0000-7000-8000-000000000002'
"""
_STAGING = f"CREATE UNLOGGED TABLE bench_staging AS SELECT {_COLUMNS} FROM bench_bare LIMIT 0"
_SETS = ", ".join(f"{name} = EXCLUDED.{name}" for name in FIELDS[1:])
_OLD = ", ".join(f"bench_bare.{name}" for name in FIELDS[1:])
_NEW = ", ".join(f"EXCLUDED.{name}" for name in FIELDS[1:])
_CHOSEN = ", ".join(
    f"coalesce({name}, '')" if name in ("given_name", "family_name", "email", "phone", "plan")
    else name
    for name in FIELDS
)  # fmt: skip
_UPSERT = f"""
INSERT INTO bench_bare ({_COLUMNS})
SELECT DISTINCT ON (member_number) {_CHOSEN} FROM bench_staging ORDER BY member_number
ON CONFLICT (org_id, member_number) DO UPDATE SET {_SETS} WHERE ({_OLD}) IS DISTINCT FROM ({_NEW})
"""


@dataclass(frozen=True, slots=True)
class File:
    content: bytes
    rows: int
    bad: int = 0

    @property
    def body(self) -> bytes:
        return self.content[self.content.index(b"\n") + 1 :]


def roster(rows: int, bad_share: float = 0.0) -> File:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "roster.csv"
        write_roster(path, rows, bad_share)
        return File(path.read_bytes(), rows)


# ---- The product ----


class Importer:
    """Plain calls of one organisation's registrar, from a process of their own."""

    def __init__(self, address: str, tenant: Tenant) -> None:
        options = [("grpc.max_send_message_length", 4 << 20)]
        self._channel = grpc.insecure_channel(address, options=options)
        self._stub = ImportServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {tenant.api_keys[Role.ADMIN]}"),)

    def close(self) -> None:
        self._channel.close()

    def submit(self, content: bytes, **spec: object) -> str:
        given = pb.ImportSpec(allow_same_file=True, **spec)  # type: ignore[arg-type]
        reply = self._stub.SubmitCsv(_frames(content, given), metadata=self._metadata)
        return str(getattr(reply, "import").import_id)

    def ended(self, import_id: str) -> pb.Import:
        """Watched until its state is one of the last."""
        asked = pb.WatchImportRequest(import_id=import_id)
        while True:
            for change in self._stub.WatchImport(asked, metadata=self._metadata):
                found = getattr(change, "import")
            if not change.go_away:
                return found  # type: ignore[no-any-return]

    def seconds(self, file: File, **wanted: int) -> float:
        """From the first byte sent to SUCCEEDED."""
        begun = time.perf_counter()
        found = self.ended(self.submit(file.content))
        taken = time.perf_counter() - begun
        if found.state != pb.IMPORT_STATE_SUCCEEDED or found.counters.rows_read != file.rows:
            raise CannotMeasure(f"an import of {file.rows} rows ended {found}")
        for name, count in wanted.items():
            if getattr(found.counters, name) != count:
                raise CannotMeasure(f"not {count} rows {name}: {found.counters}")
        return taken

    def undo(self, import_id: str) -> None:
        self._stub.UndoImport(pb.UndoImportRequest(import_id=import_id), metadata=self._metadata)


def _frames(content: bytes, spec: pb.ImportSpec) -> Iterator[pb.SubmitCsvRequest]:
    yield pb.SubmitCsvRequest(open=pb.SubmitCsvOpen(spec=spec))
    for at in range(0, len(content), FRAME_BYTES):
        yield pb.SubmitCsvRequest(data=content[at : at + FRAME_BYTES])


# ---- What it is held to ----


class Bare:
    """The same rows into the same indexed table by one connection of the superuser's."""

    def __init__(self, stack: Stack) -> None:
        self._url = stack.database_url

    def clear(self) -> None:
        """Every side begins with an empty table and a checkpoint behind it."""
        asyncio.run(self._clear())

    def copy_seconds(self, file: File) -> float:
        return asyncio.run(self._copied(file))

    def upsert_seconds(self, file: File) -> float:
        return asyncio.run(self._upserted(file))

    def delete_seconds(self, org_id: UUID) -> float:
        return asyncio.run(self._deleted(org_id))

    async def _clear(self) -> None:
        connection = await asyncpg.connect(self._url)
        await _truncated(connection)
        await connection.execute("DROP TABLE IF EXISTS bench_staging, bench_bare")
        await connection.execute(_BARE.format(name="bench_bare"))
        await connection.execute("CHECKPOINT")
        await connection.close()

    async def _copied(self, file: File) -> float:
        connection = await asyncpg.connect(self._url)
        begun = time.perf_counter()
        await connection.copy_to_table(
            "bench_bare", source=_pieces(file.body), columns=FIELDS, format="csv",
            force_not_null=("plan", "email", "phone", "given_name", "family_name"),
        )  # fmt: skip
        taken = time.perf_counter() - begun
        await connection.close()
        return taken

    async def _upserted(self, file: File) -> float:
        connection = await asyncpg.connect(self._url)
        await connection.execute(_STAGING)
        lines = file.body.splitlines(keepends=True)
        batches = [
            b"".join(lines[at : at + UPSERT_ROWS]) for at in range(0, len(lines), UPSERT_ROWS)
        ]
        begun = time.perf_counter()
        for batch in batches:
            async with connection.transaction():
                await connection.copy_to_table(
                    "bench_staging", source=_pieces(batch), columns=FIELDS, format="csv"
                )
                await connection.execute(_UPSERT)
                await connection.execute("TRUNCATE bench_staging")
        taken = time.perf_counter() - begun
        await connection.close()
        return taken

    async def _deleted(self, org_id: UUID) -> float:
        connection = await asyncpg.connect(self._url)
        begun = time.perf_counter()
        await connection.execute("DELETE FROM members WHERE org_id = $1", org_id, timeout=600)
        taken = time.perf_counter() - begun
        await connection.close()
        return taken


async def _truncated(connection: asyncpg.Connection) -> None:
    """The worker looks for jobs meanwhile, and takes its locks in another order."""
    for _ in range(TRUNCATE_ATTEMPTS):
        try:
            await connection.execute(f"TRUNCATE {_TABLES} CASCADE")
            return
        except asyncpg.DeadlockDetectedError:
            await asyncio.sleep(0.1)
    raise CannotMeasure("the tables could not be emptied")


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(content), COPY_BYTES):
        yield content[at : at + COPY_BYTES]


__all__ = ["QUOTAS", "Bare", "File", "Importer", "product", "roster"]
