"""What an organisation uses of its quotas, counted when an administrator asks."""

from uuid import UUID

from trunkline_server.db import Executor

_USED = """
SELECT (SELECT count(*) FROM users WHERE org_id = $1) AS users,
       (SELECT count(*) FROM api_keys WHERE org_id = $1 AND revoked_at IS NULL) AS api_keys,
       (SELECT count(*) FROM members WHERE org_id = $1) AS members
"""


async def used(db: Executor, org_id: UUID) -> dict[str, int]:
    row = await db.fetchrow(_USED, org_id)
    return dict(row.items()) if row is not None else {}
