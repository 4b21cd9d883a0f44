"""What the service does itself is in the numbers, written with the thing itself."""

from __future__ import annotations

import grpc.aio
import pytest

from tests.running import Running
from tests.stats.conftest import Stats, count_everything
from trunkline.api.identity.v1 import identity_service_pb2 as identity_pb
from trunkline.api.identity.v1.identity_service_pb2_grpc import IdentityServiceStub
from trunkline.api.members.v1 import members_service_pb2 as members_pb
from trunkline.api.members.v1.members_service_pb2_grpc import MemberServiceStub
from trunkline.api.options.v1 import policy_pb2
from trunkline_server.db import Database
from trunkline_server.rpc.caller import Role

PASSWORD = "Correct-Horse-Battery-9"


async def test_validations_are_counted_once_by_decision(
    server: Running, stats: Stats, worker_db: Database
) -> None:
    members = MemberServiceStub(server.channel)
    for number in ("A-1", "A-2", "A-3"):
        await members.ValidateMember(
            members_pb.ValidateMemberRequest(member_number=number),
            metadata=stats.as_(Role.AGENT),
        )
    await server.server.members.close()
    await count_everything(worker_db, stats.org.org_id)
    reply = await stats.ask("validations", group_by=["decision"], values=["count"])
    found = {s.keys[0].value: s.points[0].values[0].value for s in reply.series}
    assert found == {"NOT_FOUND": 3}
    by_agent = await stats.ask("validations", group_by=["agent"], values=["count"])
    assert [s.keys[0].display_name for s in by_agent.series] == ["acme AGENT"]


async def test_log_ins_are_counted_and_refused_ones_too(
    server: Running, stats: Stats, worker_db: Database
) -> None:
    stub = IdentityServiceStub(server.channel)
    await stub.CreateUser(
        identity_pb.CreateUserRequest(
            email="ann@acme.example",
            display_name="Ann",
            role=policy_pb2.ROLE_AGENT,
            password=PASSWORD,
        ),
        metadata=stats.as_(Role.ADMIN),
    )
    for password in (PASSWORD, PASSWORD, "Wrong-Horse-Battery-9"):
        request = identity_pb.LoginRequest(
            org_slug="acme", email="ann@acme.example", password=password
        )
        if password == PASSWORD:
            await stub.Login(request)
        else:
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Login(request)
    await count_everything(worker_db, stats.org.org_id)
    assert await stats.value("count", "sign_ins") == 2
    assert await stats.value("failed", "sign_ins") == 1
    assert await stats.value("users", "sign_ins") == 1
