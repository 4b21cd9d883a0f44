"""MemberService: protobuf in, protobuf out."""

from __future__ import annotations

from datetime import UTC, datetime

from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline_server.cache import Cache
from trunkline_server.db import Database
from trunkline_server.link import Link
from trunkline_server.members.lookups import ValidationLog
from trunkline_server.members.validation import PLAIN, Answer, Known, Validator
from trunkline_server.orgs import Orgs
from trunkline_server.paging import PageTokens
from trunkline_server.rpc.caller import Caller, caller
from trunkline_server.rpc.drain import Drain


class MemberService:
    def __init__(
        self, *, db: Database, orgs: Orgs, link: Link | None, pages: PageTokens, drain: Drain
    ) -> None:
        self._db = db
        self._orgs = orgs
        self._link = link
        self._pages = pages
        self._drain = drain
        self._validator = Validator(db, orgs, link)
        self._log = ValidationLog(db)

    async def start(self) -> None:
        self._log.start()

    async def close(self) -> None:
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

    async def ValidateMember(
        self, request: pb.ValidateMemberRequest, context: object
    ) -> pb.ValidateMemberResponse:
        who, now = caller(), datetime.now(UTC)
        answer = await self._validator.answer(who, request.member_number, PLAIN, now)
        self._count(who, answer, now)
        return pb.ValidateMemberResponse.FromString(answer.response)

    def _count(self, who: Caller, answer: Answer, now: datetime) -> None:
        self._log.record(
            who.org_id, who.actor_id, answer.decision, answer.reasons, answer.member_id,
            answer.as_of, now,
        )  # fmt: skip
