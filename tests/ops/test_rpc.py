"""OpsService through a real channel."""

import asyncpg
import grpc
import pytest

from tests.running import Running, details
from trunkline.api.ops.v1 import ops_service_pb2 as pb
from trunkline.api.ops.v1.ops_service_pb2_grpc import OpsServiceStub
from trunkline_server.jobs import queue
from trunkline_server.rpc.caller import Role


async def test_server_info_names_what_it_depends_on(server: Running) -> None:
    org = await server.org("acme")
    stub = OpsServiceStub(server.channel)
    info = await stub.GetServerInfo(pb.GetServerInfoRequest(), metadata=org.as_(Role.ADMIN))
    assert {d.name: d.state for d in info.dependencies} == {
        "postgresql": pb.DEPENDENCY_STATE_UP,
        "valkey": pb.DEPENDENCY_STATE_UP,
    }
    assert "trunkline.api.members.v1.MemberService" in info.ready_services
    assert not info.draining


async def test_jobs_are_listed_cancelled_and_driven_again(server: Running) -> None:
    org, other = await server.org("acme"), await server.org("other")
    stub, admin = OpsServiceStub(server.channel), org.as_(Role.ADMIN)
    connection = await asyncpg.connect(server.database_url)
    job_ids = [await queue.enqueue(connection, org.org_id, "nobody.does") for _ in range(3)]
    await queue.enqueue(connection, other.org_id, "nobody.does")
    await connection.execute(
        "UPDATE jobs SET state = 'DEAD', last_error = 'because', finished_at = now()"
        " WHERE job_id = $1",
        job_ids[0],
    )
    await connection.close()

    first = await stub.ListJobs(pb.ListJobsRequest(page_size=2), metadata=admin)
    rest = await stub.ListJobs(
        pb.ListJobsRequest(page_size=2, page_token=first.next_page_token), metadata=admin
    )
    listed = [job.job_id for page in (first, rest) for job in page.jobs]
    assert listed == [str(job_id) for job_id in reversed(job_ids)]
    dead = await stub.ListDeadJobs(pb.ListDeadJobsRequest(), metadata=admin)
    assert [(job.job_id, job.last_error) for job in dead.jobs] == [(str(job_ids[0]), "because")]

    again = await stub.RetryJob(pb.RetryJobRequest(job_id=str(job_ids[0])), metadata=admin)
    assert again.job.state == pb.JOB_STATE_QUEUED
    cancelled = await stub.CancelJob(pb.CancelJobRequest(job_id=str(job_ids[1])), metadata=admin)
    assert cancelled.job.state == pb.JOB_STATE_CANCELLED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.RetryJob(pb.RetryJobRequest(job_id=str(job_ids[2])), metadata=admin)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CancelJob(
            pb.CancelJobRequest(job_id=str(job_ids[2])), metadata=other.as_(Role.ADMIN)
        )
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert details(caught.value)["reason"] == "JOB_NOT_FOUND"


async def test_quotas_say_what_is_used(server: Running) -> None:
    org = await server.org("acme")
    reply = await OpsServiceStub(server.channel).GetQuota(
        pb.GetQuotaRequest(), metadata=org.as_(Role.ADMIN)
    )
    quotas = {quota.name: quota for quota in reply.quotas}
    assert quotas["api_keys"].used == len(Role)
    assert quotas["api_keys"].limit > len(Role)
    assert quotas["import_file_bytes"].unit == "bytes"
