"""What an organisation set for itself, as every slice reads it: cached until it changes."""

from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID
from zoneinfo import ZoneInfo

from trunkline.api.errors.v1 import reason_pb2
from trunkline.api.identity.v1 import identity_service_pb2 as pb
from trunkline_server.cache import MISS, Cache
from trunkline_server.db import Database, Executor
from trunkline_server.errors import NotFound
from trunkline_server.link import Link
from trunkline_server.org_settings import (
    QUOTA_DEFAULTS,
    RETENTION_DEFAULTS,
    in_force,
    parsed,
)

TOPIC_ORG = "org"
ORGS_MAX = 10_000
TTL_S = 30.0


class OrgNotFound(NotFound):
    reason = reason_pb2.REASON_ORG_NOT_FOUND
    text = "There is no such organisation."


@dataclass(frozen=True, slots=True)
class OrgSettings:
    org_id: UUID
    version: int
    zone: ZoneInfo
    quotas: pb.Quotas
    member_rules: pb.MemberRules
    content_rules: pb.ContentRules
    retention: pb.Retention

    def today(self, now: datetime) -> date:
        """The organisation's day at that moment."""
        return now.astimezone(self.zone).date()


_SETTINGS = """
SELECT org_id, version, time_zone, quotas, member_rules, content_rules, retention
FROM orgs WHERE org_id = $1
"""


async def read(db: Executor, org_id: UUID) -> OrgSettings | None:
    row = await db.fetchrow(_SETTINGS, org_id)
    if row is None:
        return None
    return OrgSettings(
        org_id=row["org_id"],
        version=row["version"],
        zone=ZoneInfo(row["time_zone"]),
        quotas=in_force(parsed(row["quotas"], pb.Quotas), QUOTA_DEFAULTS),
        member_rules=parsed(row["member_rules"], pb.MemberRules),
        content_rules=parsed(row["content_rules"], pb.ContentRules),
        retention=in_force(parsed(row["retention"], pb.Retention), RETENTION_DEFAULTS),
    )


class Orgs:
    """`cached` for the hot path, `get` where a read may be needed."""

    def __init__(self, db: Database, link: Link | None) -> None:
        self._db = db
        self.cache: Cache[str, OrgSettings] = Cache("orgs", entries_max=ORGS_MAX, ttl_s=TTL_S)
        if link is not None:
            link.subscribe(TOPIC_ORG, self._changed)
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
            return await read(tx, org_id)

    def _changed(self, payload: str) -> None:
        self.cache.invalidate(payload)
