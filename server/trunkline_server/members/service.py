"""MemberService: each method handed to the part of the slice that does it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from uuid import UUID

from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server import audit
from trunkline_server.cache import Cache
from trunkline_server.db import Database
from trunkline_server.idempotency import once
from trunkline_server.link import Link
from trunkline_server.members import present, queries
from trunkline_server.members.errors import GuardNotFound
from trunkline_server.members.export import Exporting
from trunkline_server.members.guarding import Guards
from trunkline_server.members.listing import Listing
from trunkline_server.members.lookups import ValidationLog
from trunkline_server.members.records import Records
from trunkline_server.members.validating import Validating
from trunkline_server.members.validation import Known, Validator
from trunkline_server.members.watch import Watching
from trunkline_server.orgs import Orgs
from trunkline_server.paging import PageTokens, page_size
from trunkline_server.rpc.caller import caller
from trunkline_server.rpc.drain import Drain


class MemberService:
    def __init__(
        self, *, db: Database, orgs: Orgs, link: Link | None, pages: PageTokens, drain: Drain
    ) -> None:
        self._db = db
        self._pages = pages
        self._validator = Validator(db, orgs, link)
        self._log = ValidationLog(db)
        self._guards = Guards(db, link)
        self._records = Records(db, orgs, link, pages)
        self._listing = Listing(db, orgs, pages)
        self._exporting = Exporting(db)
        self._watching = Watching(db, link, pages, drain)
        validating = Validating(self._validator, self._log, self._guards, drain)
        # Bound as they are: a method in between would be a coroutine more for each call.
        self.ValidateMember = validating.one
        self.BatchValidateMembers = validating.batch
        self.StreamValidateMembers = validating.stream

    async def start(self) -> None:
        self._log.start()
        await self._guards.start()

    async def close(self) -> None:
        await self._guards.close()
        await self._log.close()

    @property
    def cache(self) -> Cache[tuple[str, str], Known]:
        return self._validator.cache

    @property
    def unwritten(self) -> int:
        """Validations that are counted, but not written down yet."""
        return len(self._log)

    @property
    def dropped(self) -> int:
        return self._log.counts.dropped

    async def CreateMember(
        self, request: pb.CreateMemberRequest, context: object
    ) -> pb.CreateMemberResponse:
        return await self._records.create(request)

    async def GetMember(
        self, request: pb.GetMemberRequest, context: object
    ) -> pb.GetMemberResponse:
        return await self._records.get(request)

    async def UpdateMember(
        self, request: pb.UpdateMemberRequest, context: object
    ) -> pb.UpdateMemberResponse:
        return await self._records.update(request)

    async def DeleteMember(
        self, request: pb.DeleteMemberRequest, context: object
    ) -> pb.DeleteMemberResponse:
        return await self._records.delete(request)

    async def UndeleteMember(
        self, request: pb.UndeleteMemberRequest, context: object
    ) -> pb.UndeleteMemberResponse:
        return await self._records.undelete(request)

    async def ListMembers(
        self, request: pb.ListMembersRequest, context: object
    ) -> pb.ListMembersResponse:
        return await self._listing.list(request)

    async def SearchMembers(
        self, request: pb.SearchMembersRequest, context: object
    ) -> pb.SearchMembersResponse:
        return await self._listing.search(request)

    async def ListMemberHistory(
        self, request: pb.ListMemberHistoryRequest, context: object
    ) -> pb.ListMemberHistoryResponse:
        return await self._records.history(request)

    def ExportMembers(
        self, request: pb.ExportMembersRequest, context: object
    ) -> AsyncIterator[pb.ExportMembersResponse]:
        return self._exporting.export(request)

    def WatchMembers(
        self, request: pb.WatchMembersRequest, context: object
    ) -> AsyncIterator[pb.WatchMembersResponse]:
        return self._watching.watch(request)

    async def ListValidationGuards(
        self, request: pb.ListValidationGuardsRequest, context: object
    ) -> pb.ListValidationGuardsResponse:
        who, size = caller(), page_size(request.page_size)
        position = self._pages.open(request.page_token, request)
        before, actor = (
            (datetime.fromisoformat(position[0]), UUID(position[1])) if position else (None, None)
        )
        async with self._db.tenant_tx(who.org_id) as tx:
            rows = await queries.guards(tx, who.org_id, before, actor, size + 1)
        reply = pb.ListValidationGuardsResponse(guards=[present.guard(row) for row in rows[:size]])
        if len(rows) > size:
            last = rows[size - 1]
            reply.next_page_token = self._pages.seal(
                [last["updated_at"].isoformat(), str(last["actor_id"])], request
            )
        return reply

    async def ReleaseValidationGuard(
        self, request: pb.ReleaseValidationGuardRequest, context: object
    ) -> pb.ReleaseValidationGuardResponse:
        who, actor_id = caller(), UUID(request.actor_id)

        async def produce() -> pb.ReleaseValidationGuardResponse:
            row = await queries.release_guard(tx, who.org_id, actor_id)
            if row is None:
                raise GuardNotFound
            await audit.append(
                tx,
                who.org_id,
                "validation.guard.release",
                resource_type="actor",
                resource_id=actor_id,
                details={"level": row["level"], "note": request.note},
            )
            return pb.ReleaseValidationGuardResponse(guard=present.guard(row))

        async with self._db.tenant_tx(who.org_id) as tx:
            reply = await once(tx, request, pb.ReleaseValidationGuardResponse, produce)
        await self._guards.announce_release(str(actor_id))
        return reply
