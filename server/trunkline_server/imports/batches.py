"""A file's batches in order, read and cut beside the event loop while earlier ones are merged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from trunkline_server.db import Database
from trunkline_server.imports import worker_queries as queries
from trunkline_server.imports.csv import Batch, Parser
from trunkline_server.imports.rules import Cursor
from trunkline_server.imports.work import Work

# Chunks are up to 1 MiB: what is read at once, and what may be lost when the turn ends.
CHUNKS_AT_ONCE = 2


def resume_at(first: Cursor, finished: Sequence[queries.Finished]) -> tuple[int, Cursor]:
    """The first batch that is not done, and where it begins. Lanes may have done later ones."""
    number, cursor = 0, first
    for batch in finished:
        if batch.batch_no != number:
            break
        number, cursor = number + 1, batch.end
    return number, cursor


async def cut(
    db: Database, work: Work, number: int, start: Cursor
) -> AsyncIterator[tuple[int, Batch]]:
    """Number and batch, from a batch's beginning on. The same from whatever batch it starts."""
    parser = Parser(
        work.layout,
        work.member_rules,
        start,
        batch_rows=work.batch_rows,
        rows_max=work.settings.quotas.import_rows,
    )
    offset = start.byte_offset
    while True:
        async with db.tenant_tx(work.org_id) as tx:
            parts = await queries.chunks(tx, work.org_id, work.import_id, offset, CHUNKS_AT_ONCE)
        if not parts:
            break
        for part in parts:
            offset += len(part)
            for batch in await asyncio.to_thread(parser.feed, part):
                yield number, batch
                number += 1
    for batch in await asyncio.to_thread(parser.finish):
        yield number, batch
        number += 1
