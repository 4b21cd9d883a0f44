"""An import that succeeded, as facts for the statistics."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid5

from trunkline_server import facts
from trunkline_server.db import Executor
from trunkline_server.facts import Fact

_ACCEPTED = """
SELECT created + updated + unchanged AS accepted FROM imports WHERE org_id = $1 AND import_id = $2
"""
_REJECTED = """
SELECT code, count(*) AS rejected FROM import_rejects
WHERE org_id = $1 AND import_id = $2 GROUP BY code
"""


async def count(tx: Executor, org_id: UUID, import_id: UUID, actor_id: UUID) -> None:
    """In the transaction that ends it. Ids come from the import's: it is counted once."""
    now = datetime.now(UTC)
    quantities = {
        row["code"]: row["rejected"] for row in await tx.fetch(_REJECTED, org_id, import_id)
    }
    quantities[facts.ROWS_ACCEPTED] = await tx.fetchval(_ACCEPTED, org_id, import_id) or 0
    quantities[facts.IMPORT_ENDED] = 1
    await facts.append(
        tx,
        org_id,
        [
            Fact("IMPORT_ROWS", now, actor_id, outcome, quantity, uuid5(import_id, outcome))
            for outcome, quantity in quantities.items()
            if quantity
        ],
    )
