"""Rows that a later batch overrode, looked up in the file for the list of rejects.

Only their row numbers were noted while batches landed. When all have, each batch that holds any is
cut once more; where it begins is known, so nothing else is read.
"""

from __future__ import annotations

from trunkline_server.db import Database
from trunkline_server.failpoints import failpoint
from trunkline_server.imports import batches
from trunkline_server.imports import worker_queries as queries
from trunkline_server.imports.csv import Batch
from trunkline_server.imports.merge import refused_row
from trunkline_server.imports.work import Work
from trunkline_server.jobs import Lease


async def locate(db: Database, lease: Lease, work: Work) -> bool:
    """False: the turn ended before all were found."""
    ids = (work.org_id, work.import_id)
    async with db.tenant_tx(work.org_id) as tx:
        row_no = await queries.first_unlocated(tx, *ids)
        finished = await queries.finished(tx, *ids) if row_no is not None else []
    for done in finished:
        async with db.tenant_tx(work.org_id) as tx:
            row_nos = await queries.unlocated(tx, *ids, done.start.row_no, done.end.row_no)
        if not row_nos:
            continue
        if lease.should_yield():
            return False
        batch = await _cut_again(db, work, done)
        rejects = [refused_row(work, batch, row_no, "superseded") for row_no in row_nos]
        async with db.tenant_tx(work.org_id) as tx:
            await lease.fence(tx)
            await queries.add_rejects(tx, *ids, rejects)
            await queries.forget_unlocated(tx, *ids, row_nos)
        failpoint("locate.committed")
    return True


async def _cut_again(db: Database, work: Work, done: queries.Finished) -> Batch:
    async for _, batch in batches.cut(db, work, done.batch_no, done.start):
        return batch
    raise AssertionError("a batch that was done is in the file")
