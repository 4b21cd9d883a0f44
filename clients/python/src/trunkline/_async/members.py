"""The members of an organisation: `client.members`."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

from trunkline._async.pages import AsyncPager
from trunkline._async.session import AsyncSession
from trunkline._async.watches import AsyncWatch
from trunkline._shared.enums import value_of
from trunkline._shared.requests import Day, Time, day, mask, new_request_id, timestamp
from trunkline.api.members.v1 import members_service_pb2 as pb
from trunkline.api.members.v1 import members_service_pb2_grpc as stubs

BATCH_MAX = 1000

_SERVICE = pb.DESCRIPTOR.services_by_name["MemberService"]


class AsyncMembers:
    """Is this caller a member, what may be said, who changed what."""

    def __init__(self, session: AsyncSession) -> None:
        stub: stubs.MemberServiceAsyncStub = stubs.MemberServiceStub(session.channel)
        methods = session.methods(_SERVICE)
        self._validate = methods.unary(stub.ValidateMember, "ValidateMember")
        self._validate_batch = methods.unary(stub.BatchValidateMembers, "BatchValidateMembers")
        self._create = methods.unary(stub.CreateMember, "CreateMember")
        self._get = methods.unary(stub.GetMember, "GetMember")
        self._update = methods.unary(stub.UpdateMember, "UpdateMember")
        self._delete = methods.unary(stub.DeleteMember, "DeleteMember")
        self._undelete = methods.unary(stub.UndeleteMember, "UndeleteMember")
        self._list = methods.unary(stub.ListMembers, "ListMembers")
        self._search = methods.unary(stub.SearchMembers, "SearchMembers")
        self._history = methods.unary(stub.ListMemberHistory, "ListMemberHistory")
        self._export = methods.stream(stub.ExportMembers, "ExportMembers")
        self._watch = methods.stream(stub.WatchMembers, "WatchMembers")
        self._list_guards = methods.unary(stub.ListValidationGuards, "ListValidationGuards")
        self._release_guard = methods.unary(stub.ReleaseValidationGuard, "ReleaseValidationGuard")

    async def validate(
        self,
        member_number: str,
        *,
        date_of_birth: Day | None = None,
        family_name: str = "",
        as_of: Day | None = None,
        consistency: pb.Consistency.ValueType | str = pb.CONSISTENCY_UNSPECIFIED,
        timeout_s: float | None = None,
    ) -> pb.Validation:
        """Decide whether a number is good, and say what the agent does next."""
        request = pb.ValidateMemberRequest(
            member_number=member_number,
            date_of_birth=day(date_of_birth),
            family_name=family_name,
            as_of=day(as_of),
            consistency=value_of(pb.Consistency, consistency),
        )
        return (await self._validate(request, timeout_s)).validation

    async def validate_many(
        self,
        queries: Iterable[str | pb.MemberQuery],
        *,
        consistency: pb.Consistency.ValueType | str = pb.CONSISTENCY_UNSPECIFIED,
        timeout_s: float | None = None,
    ) -> list[pb.MemberAnswer]:
        """Decide any number of queries, 1,000 a call; answers come in their order.

        An answer holds a `validation`, or the `error` of a query that was not valid by itself.
        """
        asked = [
            query if isinstance(query, pb.MemberQuery) else pb.MemberQuery(member_number=query)
            for query in queries
        ]
        answers: list[pb.MemberAnswer] = []
        for start in range(0, len(asked), BATCH_MAX):
            request = pb.BatchValidateMembersRequest(
                queries=asked[start : start + BATCH_MAX],
                consistency=value_of(pb.Consistency, consistency),
            )
            answers.extend((await self._validate_batch(request, timeout_s)).answers)
        return answers

    async def create(
        self,
        member_number: str,
        *,
        given_name: str = "",
        family_name: str = "",
        email: str = "",
        phone: str = "",
        date_of_birth: Day | None = None,
        plan: str = "",
        status: pb.MemberStatus.ValueType | str = pb.MEMBER_STATUS_UNSPECIFIED,
        effective_from: Day | None = None,
        effective_to: Day | None = None,
        attributes: Mapping[str, str] | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.Member:
        """Register a member."""
        member = pb.Member(
            member_number=member_number,
            given_name=given_name,
            family_name=family_name,
            email=email,
            phone=phone,
            date_of_birth=day(date_of_birth),
            plan=plan,
            status=value_of(pb.MemberStatus, status),
            effective_from=day(effective_from),
            effective_to=day(effective_to),
            attributes=dict(attributes or {}),
        )
        request = pb.CreateMemberRequest(request_id=request_id or new_request_id(), member=member)
        return (await self._create(request, timeout_s)).member

    async def get(
        self,
        member_number: str = "",
        *,
        member_id: str = "",
        as_of_time: Time | None = None,
        fields: Sequence[str] = (),
        show_deleted: bool = False,
        consistency: pb.Consistency.ValueType | str = pb.CONSISTENCY_UNSPECIFIED,
        timeout_s: float | None = None,
    ) -> pb.Member:
        """A member by number or id, now or as it was. Agents see it masked."""
        request = pb.GetMemberRequest(
            read_mask=mask(*fields),
            as_of_time=timestamp(as_of_time),
            show_deleted=show_deleted,
            consistency=value_of(pb.Consistency, consistency),
        )
        if member_id:
            request.member_id = member_id
        else:
            request.member_number = member_number
        return (await self._get(request, timeout_s)).member

    async def update(
        self,
        member: pb.Member,
        fields: Sequence[str],
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.Member:
        """Change the named fields. The member's etag guards against changes meanwhile."""
        request = pb.UpdateMemberRequest(
            request_id=request_id or new_request_id(), member=member, update_mask=mask(*fields)
        )
        return (await self._update(request, timeout_s)).member

    async def delete(
        self,
        member_id: str,
        *,
        etag: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.Member:
        """Delete a member, who can be undeleted until the `purge_time` of the reply."""
        request = pb.DeleteMemberRequest(
            request_id=request_id or new_request_id(), member_id=member_id, etag=etag
        )
        return (await self._delete(request, timeout_s)).member

    async def undelete(
        self,
        member_id: str,
        *,
        etag: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.Member:
        """Restore a deleted member."""
        request = pb.UndeleteMemberRequest(
            request_id=request_id or new_request_id(), member_id=member_id, etag=etag
        )
        return (await self._undelete(request, timeout_s)).member

    def list(
        self,
        filter: pb.MemberFilter | None = None,
        *,
        statuses: Sequence[pb.MemberStatus.ValueType | str] = (),
        plans: Sequence[str] = (),
        order: pb.MemberOrder.ValueType | str = pb.MEMBER_ORDER_UNSPECIFIED,
        fields: Sequence[str] = (),
        page_size: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncPager[pb.Member, pb.ListMembersResponse]:
        """Members by filter; `statuses` and `plans` add to the filter."""
        request = pb.ListMembersRequest(
            page_size=page_size,
            filter=_filter(filter, statuses, plans),
            order=value_of(pb.MemberOrder, order),
            read_mask=mask(*fields),
        )
        return AsyncPager(self._list, request, lambda reply: reply.members, timeout_s)

    def search(
        self,
        query: str,
        *,
        filter: pb.MemberFilter | None = None,
        fields: Sequence[str] = (),
        page_size: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncPager[pb.MemberMatch, pb.SearchMembersResponse]:
        """Members by number, name, telephone or e-mail, best first, forgiving typing errors."""
        request = pb.SearchMembersRequest(
            page_size=page_size, query=query, filter=filter, read_mask=mask(*fields)
        )
        return AsyncPager(self._search, request, lambda reply: reply.matches, timeout_s)

    def history(
        self, member_id: str, *, page_size: int = 0, timeout_s: float | None = None
    ) -> AsyncPager[pb.MemberVersion, pb.ListMemberHistoryResponse]:
        """The versions of a member, newest first, each with its cause."""
        request = pb.ListMemberHistoryRequest(page_size=page_size, member_id=member_id)
        return AsyncPager(self._history, request, lambda reply: reply.versions, timeout_s)

    async def export(
        self,
        filter: pb.MemberFilter | None = None,
        *,
        columns: Sequence[str] = (),
        omit_header: bool = False,
        timeout_s: float | None = None,
    ) -> AsyncIterator[bytes]:
        """Members as CSV, in parts that end between two rows."""
        request = pb.ExportMembersRequest(filter=filter, columns=columns, omit_header=omit_header)
        async for part in self._export(request, timeout_s):
            if part.data:
                yield part.data

    def watch(
        self, checkpoint: str = ""
    ) -> AsyncWatch[pb.WatchMembersRequest, pb.WatchMembersResponse, pb.MemberChange]:
        """Changes in order and at least once, from a checkpoint on, for as long as you read.

        The watch survives restarts of the server; `watch.checkpoint` is where to begin again in
        another process, once what was read so far is dealt with.
        """

        def request(after: str) -> pb.WatchMembersRequest:
            return pb.WatchMembersRequest(checkpoint=after)

        return AsyncWatch(self._watch, request, lambda reply: reply.changes, checkpoint)

    def list_guards(
        self, *, page_size: int = 0, timeout_s: float | None = None
    ) -> AsyncPager[pb.ValidationGuard, pb.ListValidationGuardsResponse]:
        """The callers whose look-ups resemble a search for valid numbers."""
        request = pb.ListValidationGuardsRequest(page_size=page_size)
        return AsyncPager(self._list_guards, request, lambda reply: reply.guards, timeout_s)

    async def release_guard(
        self,
        actor_id: str,
        *,
        note: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.ValidationGuard:
        """Let such a caller validate again at once."""
        request = pb.ReleaseValidationGuardRequest(
            request_id=request_id or new_request_id(), actor_id=actor_id, note=note
        )
        return (await self._release_guard(request, timeout_s)).guard


def _filter(
    given: pb.MemberFilter | None,
    statuses: Sequence[pb.MemberStatus.ValueType | str],
    plans: Sequence[str],
) -> pb.MemberFilter:
    made = pb.MemberFilter(
        statuses=[value_of(pb.MemberStatus, status) for status in statuses], plans=plans
    )
    if given is not None:
        made.MergeFrom(given)
    return made
