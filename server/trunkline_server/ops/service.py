"""OpsService: the server's state, the organisation's jobs and quotas."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar
from uuid import UUID

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from trunkline.api.ops.v1 import ops_service_pb2 as pb
from trunkline_server import __version__, audit
from trunkline_server.breaker import Breaker, State
from trunkline_server.db import Database, Executor
from trunkline_server.idempotency import Write, once
from trunkline_server.ids import uuid7
from trunkline_server.jobs import queue
from trunkline_server.ops import queries
from trunkline_server.orgs import Orgs
from trunkline_server.paging import PAGE_SIZE_MAX, PageTokens, page_size
from trunkline_server.rpc.caller import caller
from trunkline_server.rpc.drain import Drain
from trunkline_server.rpc.health import Health
from trunkline_server.rpc.options import MESSAGE_BYTES_MAX, METADATA_BYTES_MAX

BATCH_SIZE_MAX = 1_000
CHUNK_BYTES_MAX = 1 << 20

Reply = TypeVar("Reply", bound=Message)

_WITHOUT = {
    "postgresql": "Calls that need it answer UNAVAILABLE; what is cached is still validated.",
    "valkey": "Limits and caches work for each process by itself; nothing durable is lost.",
}
_STATES = {
    State.CLOSED: pb.DEPENDENCY_STATE_UP,
    State.HALF_OPEN: pb.DEPENDENCY_STATE_PROBING,
    State.OPEN: pb.DEPENDENCY_STATE_DOWN,
}


class OpsService:
    def __init__(
        self,
        *,
        db: Database,
        orgs: Orgs,
        pages: PageTokens,
        drain: Drain,
        health: Health,
        services: Sequence[str],
        breakers: Sequence[Breaker],
    ) -> None:
        self._db = db
        self._orgs = orgs
        self._pages = pages
        self._drain = drain
        self._health = health
        self._services = tuple(services)
        self._breakers = tuple(breakers)
        self._instance_id = str(uuid7())
        self._started_at = datetime.now(UTC)

    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: object
    ) -> pb.GetServerInfoResponse:
        return pb.GetServerInfoResponse(
            version=__version__,
            instance_id=self._instance_id,
            server_time=_timestamp(datetime.now(UTC)),
            start_time=_timestamp(self._started_at),
            draining=self._drain.draining.is_set(),
            ready_services=self._services if self._health.ready else (),
            dependencies=[
                pb.DependencyStatus(
                    name=breaker.name,
                    state=_STATES[breaker.state],
                    without_it=_WITHOUT.get(breaker.name, ""),
                )
                for breaker in self._breakers
            ],
            limits=pb.ServerLimits(
                message_bytes_max=MESSAGE_BYTES_MAX,
                metadata_bytes_max=METADATA_BYTES_MAX,
                page_size_max=PAGE_SIZE_MAX,
                batch_size_max=BATCH_SIZE_MAX,
                chunk_bytes_max=CHUNK_BYTES_MAX,
            ),
        )

    async def ListJobs(self, request: pb.ListJobsRequest, context: object) -> pb.ListJobsResponse:
        size = page_size(request.page_size)
        before = _before(self._pages.open(request.page_token, request))
        states = [pb.JobState.Name(state).removeprefix("JOB_STATE_") for state in request.states]
        async with self._db.tenant_tx(caller().org_id) as tx:
            jobs = await queue.list_jobs(
                tx,
                caller().org_id,
                # A job that failed for good and one that used up its attempts look the same here.
                states=[*states, "FAILED"] if "DEAD" in states else states or None,
                kinds=[request.kind] if request.kind else None,
                subject_id=UUID(request.subject_id) if request.subject_id else None,
                before=before,
                page_size=size,
            )
        return pb.ListJobsResponse(
            jobs=[_job(job) for job in jobs], next_page_token=self._next(jobs, size, request)
        )

    async def ListDeadJobs(
        self, request: pb.ListDeadJobsRequest, context: object
    ) -> pb.ListDeadJobsResponse:
        size = page_size(request.page_size)
        before = _before(self._pages.open(request.page_token, request))
        async with self._db.tenant_tx(caller().org_id) as tx:
            jobs = await queue.list_jobs(
                tx,
                caller().org_id,
                states=["DEAD", "FAILED"],
                kinds=[request.kind] if request.kind else None,
                before=before,
                page_size=size,
            )
        return pb.ListDeadJobsResponse(
            jobs=[_job(job) for job in jobs], next_page_token=self._next(jobs, size, request)
        )

    async def RetryJob(self, request: pb.RetryJobRequest, context: object) -> pb.RetryJobResponse:
        async def retry(tx: Executor) -> pb.RetryJobResponse:
            job = await queue.retry_job(tx, caller().org_id, UUID(request.job_id))
            await self._note(tx, "ops.RetryJob", job)
            return pb.RetryJobResponse(job=_job(job))

        return await self._write(request, pb.RetryJobResponse, retry)

    async def CancelJob(
        self, request: pb.CancelJobRequest, context: object
    ) -> pb.CancelJobResponse:
        async def cancel(tx: Executor) -> pb.CancelJobResponse:
            job = await queue.cancel_job(tx, caller().org_id, UUID(request.job_id))
            await self._note(tx, "ops.CancelJob", job)
            return pb.CancelJobResponse(job=_job(job))

        return await self._write(request, pb.CancelJobResponse, cancel)

    async def GetQuota(self, request: pb.GetQuotaRequest, context: object) -> pb.GetQuotaResponse:
        """Stocks as they are counted now; rates only with their limit, for they are leased."""
        org_id = caller().org_id
        quotas = (await self._orgs.get(org_id)).quotas
        async with self._db.tenant_tx(org_id) as tx:
            used = await queries.used(tx, org_id)
        return pb.GetQuotaResponse(
            quotas=[
                pb.QuotaUsage(
                    name=name, unit=unit, limit=int(getattr(quotas, name)), used=used.get(name, 0)
                )
                for name, unit in _UNITS.items()
            ]
        )

    async def _note(self, tx: Executor, action: str, job: queue.Job) -> None:
        await audit.append(
            tx, caller().org_id, action, resource_type="job", resource_id=job.job_id,
            details={"kind": job.kind},
        )  # fmt: skip

    async def _write(
        self,
        request: Write,
        reply_type: type[Reply],
        produce: Callable[[Executor], Awaitable[Reply]],
    ) -> Reply:
        async with self._db.tenant_tx(caller().org_id) as tx:
            return await once(tx, request, reply_type, lambda: produce(tx))

    def _next(self, jobs: Sequence[queue.Job], size: int, request: Message) -> str:
        return self._pages.seal([str(jobs[-1].job_id)], request) if len(jobs) == size else ""


# Fields of Quotas, each with its unit.
_UNITS = {
    "cost_per_second": "cost units",
    "actor_cost_per_second": "cost units",
    "imports_running": "imports",
    "import_starts_per_minute": "imports",
    "imports_waiting": "imports",
    "user_uploads_per_5_minutes": "uploads",
    "import_file_bytes": "bytes",
    "import_rows": "rows",
    "import_row_bytes": "bytes",
    "import_field_bytes": "bytes",
    "import_columns": "columns",
    "members": "members",
    "articles": "articles",
    "users": "users",
    "api_keys": "keys",
    "events_per_second": "events",
}


def _before(position: list[str] | None) -> UUID | None:
    return UUID(position[0]) if position else None


def _job(job: queue.Job) -> pb.Job:
    # Given up is given up, whether after one attempt or after all of them.
    state = "DEAD" if job.state == "FAILED" else job.state
    message = pb.Job(
        job_id=str(job.job_id),
        kind=job.kind,
        state=pb.JobState.Value(f"JOB_STATE_{state}"),
        subject_id=str(job.subject_id) if job.subject_id else "",
        attempts=job.attempts,
        attempts_max=job.max_attempts,
        priority=job.priority,
        last_error=job.last_error,
    )
    for moment, field in (
        (job.run_after, message.run_after_time),
        (job.created_at, message.create_time),
        (job.started_at, message.start_time),
        (job.updated_at if job.state == "RUNNING" else None, message.heartbeat_time),
        (job.finished_at, message.end_time),
    ):
        if moment is not None:
            field.FromDatetime(moment)
    return message


def _timestamp(moment: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(moment)
    return message
