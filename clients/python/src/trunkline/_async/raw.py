"""The generated stubs: `client.raw`."""

import grpc.aio

from trunkline._async.session import AsyncSession
from trunkline._shared.credentials import Metadata
from trunkline.api.content.v1 import content_service_pb2_grpc as content
from trunkline.api.identity.v1 import identity_service_pb2_grpc as identity
from trunkline.api.imports.v1 import imports_service_pb2_grpc as imports
from trunkline.api.members.v1 import members_service_pb2_grpc as members
from trunkline.api.ops.v1 import ops_service_pb2_grpc as ops
from trunkline.api.stats.v1 import stats_service_pb2_grpc as stats


class AsyncRaw:
    """Every method of the contract as grpc has it: pass `metadata=await client.raw.metadata()`.

    Calls raise grpc's own errors and have no deadline unless you set one.
    """

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        channel = session.channel
        self.channel: grpc.aio.Channel = channel
        self.identity: identity.IdentityServiceAsyncStub = identity.IdentityServiceStub(channel)
        self.members: members.MemberServiceAsyncStub = members.MemberServiceStub(channel)
        self.imports: imports.ImportServiceAsyncStub = imports.ImportServiceStub(channel)
        self.content: content.ContentServiceAsyncStub = content.ContentServiceStub(channel)
        self.stats: stats.StatsServiceAsyncStub = stats.StatsServiceStub(channel)
        self.ops: ops.OpsServiceAsyncStub = ops.OpsServiceStub(channel)

    async def metadata(self) -> Metadata:
        """The credential of this client as call metadata."""
        return await self._session.metadata()
