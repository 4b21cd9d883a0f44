"""What an organisation and a user may upload, start and keep waiting."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from trunkline.api.identity.v1.identity_service_pb2 import Quotas
from trunkline_server.db import Executor
from trunkline_server.errors import QuotaViolation
from trunkline_server.imports import queries
from trunkline_server.imports.errors import FileTooLarge, UploadsLimited, WaitingListFull
from trunkline_server.orgs import Orgs, OrgSettings
from trunkline_server.rpc.caller import Caller
from trunkline_server.rpc.limits import RareLimit

UPLOADS_PERIOD_S = 300
# What a full waiting list is told when its first import waits for a worker, not for a time.
RETRY_AFTER_S = 30.0


class ImportQuotas:
    def __init__(self, orgs: Orgs, rare: RareLimit) -> None:
        self._orgs = orgs
        self._rare = rare

    async def of(self, org_id: UUID) -> OrgSettings:
        return await self._orgs.get(org_id)

    async def take_upload(self, who: Caller, quotas: Quotas) -> None:
        """A user's upload; over all processes, or this one's share while Valkey is away."""
        limit = min(quotas.user_uploads_per_5_minutes, 1_000)
        key = f"import-uploads:{{{who.org_id}}}:{who.actor_id}"
        verdict = await self._rare.hit(key, limit, UPLOADS_PERIOD_S)
        if not verdict.allowed:
            raise UploadsLimited(
                retry_after_s=verdict.retry_after_s,
                quota=[QuotaViolation("user", f"user_uploads_per_5_minutes: at most {limit}")],
            )


def check_size(total_bytes: int, quotas: Quotas) -> None:
    if total_bytes > quotas.import_file_bytes:
        raise FileTooLarge(
            f"The file is larger than {quotas.import_file_bytes} bytes.",
            quota=[
                QuotaViolation(
                    "organisation", f"import_file_bytes: at most {quotas.import_file_bytes}"
                )
            ],
        )


async def earliest_start(db: Executor, org_id: UUID, quotas: Quotas) -> datetime:
    """When one more import may start: over the start quota it waits. A full list is refused."""
    waiting = await queries.waiting(db, org_id, quotas.import_starts_per_minute)
    if waiting.count >= quotas.imports_waiting:
        raise WaitingListFull(
            retry_after_s=max(waiting.first_start_in_s, 0.0) or RETRY_AFTER_S,
            quota=[
                QuotaViolation("organisation", f"imports_waiting: at most {quotas.imports_waiting}")
            ],
        )
    return waiting.earliest_start


def expire_after(quotas: Quotas) -> timedelta:
    return quotas.upload_expire_after.ToTimedelta()


def stall_s(quotas: Quotas) -> float:
    return quotas.upload_stall_timeout.ToTimedelta().total_seconds()
