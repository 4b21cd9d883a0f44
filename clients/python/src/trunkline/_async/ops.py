"""Server, jobs and quotas: `client.ops`."""

from collections.abc import Sequence

from trunkline._async.pages import AsyncPager
from trunkline._async.session import AsyncSession
from trunkline._shared.enums import value_of
from trunkline._shared.requests import new_request_id
from trunkline.api.ops.v1 import ops_service_pb2 as pb
from trunkline.api.ops.v1 import ops_service_pb2_grpc as stubs

_SERVICE = pb.DESCRIPTOR.services_by_name["OpsService"]


class AsyncOps:
    """How the service does for the organisation."""

    def __init__(self, session: AsyncSession) -> None:
        stub: stubs.OpsServiceAsyncStub = stubs.OpsServiceStub(session.channel)
        methods = session.methods(_SERVICE)
        self._server_info = methods.unary(stub.GetServerInfo, "GetServerInfo")
        self._list_jobs = methods.unary(stub.ListJobs, "ListJobs")
        self._retry_job = methods.unary(stub.RetryJob, "RetryJob")
        self._cancel_job = methods.unary(stub.CancelJob, "CancelJob")
        self._get_quota = methods.unary(stub.GetQuota, "GetQuota")
        self._list_dead_jobs = methods.unary(stub.ListDeadJobs, "ListDeadJobs")

    async def server_info(self, *, timeout_s: float | None = None) -> pb.GetServerInfoResponse:
        """Version, age, limits and dependencies of the server that answers."""
        return await self._server_info(pb.GetServerInfoRequest(), timeout_s)

    def list_jobs(
        self,
        *,
        states: Sequence[pb.JobState.ValueType | str] = (),
        kind: str = "",
        subject_id: str = "",
        page_size: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncPager[pb.Job, pb.ListJobsResponse]:
        """The organisation's jobs, newest first."""
        request = pb.ListJobsRequest(
            page_size=page_size,
            states=[value_of(pb.JobState, state) for state in states],
            kind=kind,
            subject_id=subject_id,
        )
        return AsyncPager(self._list_jobs, request, lambda reply: reply.jobs, timeout_s)

    async def retry_job(
        self, job_id: str, *, request_id: str | None = None, timeout_s: float | None = None
    ) -> pb.Job:
        """Queue a dead job once more."""
        request = pb.RetryJobRequest(request_id=request_id or new_request_id(), job_id=job_id)
        return (await self._retry_job(request, timeout_s)).job

    async def cancel_job(
        self, job_id: str, *, request_id: str | None = None, timeout_s: float | None = None
    ) -> pb.Job:
        """Stop a job that waits or runs."""
        request = pb.CancelJobRequest(request_id=request_id or new_request_id(), job_id=job_id)
        return (await self._cancel_job(request, timeout_s)).job

    async def quotas(self, *, timeout_s: float | None = None) -> Sequence[pb.QuotaUsage]:
        """What the organisation may use, and has used."""
        return (await self._get_quota(pb.GetQuotaRequest(), timeout_s)).quotas

    def list_dead_jobs(
        self, *, kind: str = "", page_size: int = 0, timeout_s: float | None = None
    ) -> AsyncPager[pb.Job, pb.ListDeadJobsResponse]:
        """The jobs that were given up, with the reason, newest first."""
        request = pb.ListDeadJobsRequest(page_size=page_size, kind=kind)
        return AsyncPager(self._list_dead_jobs, request, lambda reply: reply.jobs, timeout_s)
