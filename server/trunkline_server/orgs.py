"""The settings of organisations as every slice reads them: cached until they change."""

from uuid import UUID

from trunkline.api.errors.v1 import reason_pb2
from trunkline_server import org_settings
from trunkline_server.cache import MISS, Cache
from trunkline_server.db import Database
from trunkline_server.errors import NotFound
from trunkline_server.link import Link
from trunkline_server.org_settings import QUOTA_DEFAULTS, RETENTION_DEFAULTS, in_force
from trunkline_server.org_settings import OrgSettings

TOPIC_ORG = "org"
ORGS_MAX = 10_000
TTL_S = 30.0


class OrgNotFound(NotFound):
    reason = reason_pb2.REASON_ORG_NOT_FOUND
    text = "There is no such organisation."


class Orgs:
    """`cached` for the hot path, `get` where a read may be needed."""

    def __init__(self, db: Database, link: Link | None) -> None:
        self._db = db
        self.cache: Cache[str, OrgSettings] = Cache("orgs", entries_max=ORGS_MAX, ttl_s=TTL_S)
        if link is None:
            self.cache.distrust()
        else:
            link.subscribe(TOPIC_ORG, self.cache.invalidate)
            link.on_loss(self.cache.distrust)
            link.on_recovery(self.cache.restore)

    def cached(self, org_key: str) -> OrgSettings | None:
        found = self.cache.get(org_key)
        return None if found is MISS else found  # type: ignore[return-value]

    async def get(self, org_id: UUID) -> OrgSettings:
        settings = await self.cache.get_or_load(org_id, str(org_id), lambda: self._read(org_id))
        if settings is None:
            raise OrgNotFound
        return settings

    async def _read(self, org_id: UUID) -> OrgSettings | None:
        async with self._db.tenant_tx(org_id) as tx:
            return await org_settings.load(tx, org_id)
