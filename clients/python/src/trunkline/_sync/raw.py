# Made from clients/python/src/trunkline/_async/raw.py by tools/unasync.py: change that one.
"""The generated stubs: `client.raw`."""

import grpc

from trunkline._shared.credentials import Metadata
from trunkline._sync.session import Session
from trunkline.api.content.v1 import content_service_pb2_grpc as content
from trunkline.api.identity.v1 import identity_service_pb2_grpc as identity
from trunkline.api.imports.v1 import imports_service_pb2_grpc as imports
from trunkline.api.members.v1 import members_service_pb2_grpc as members
from trunkline.api.ops.v1 import ops_service_pb2_grpc as ops
from trunkline.api.stats.v1 import stats_service_pb2_grpc as stats


class Raw:
    """Every method of the contract as grpc has it: pass `metadata=client.raw.metadata()`.

    Calls raise grpc's own errors and have no deadline unless you set one.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        channel = session.channel
        self.channel: grpc.Channel = channel
        self.identity: identity.IdentityServiceStub = identity.IdentityServiceStub(channel)
        self.members: members.MemberServiceStub = members.MemberServiceStub(channel)
        self.imports: imports.ImportServiceStub = imports.ImportServiceStub(channel)
        self.content: content.ContentServiceStub = content.ContentServiceStub(channel)
        self.stats: stats.StatsServiceStub = stats.StatsServiceStub(channel)
        self.ops: ops.OpsServiceStub = ops.OpsServiceStub(channel)

    def metadata(self) -> Metadata:
        """The credential of this client as call metadata."""
        return self._session.metadata()
