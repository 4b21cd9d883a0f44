# Made from clients/python/src/trunkline/_async/session.py by tools/unasync.py: change that one.
"""One channel, one credential: every call of a client goes through its session."""

import os
from functools import cached_property
from itertools import count
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from trunkline._shared import tasks_sync as tasks
from trunkline._shared.connection import Target, channel_options
from trunkline._shared.contract import default_deadline_s, max_deadline_s
from trunkline._shared.credentials import Login, Metadata, TokenStore
from trunkline._sync.auth import Auth, KeyAuth, TokenAuth
from trunkline.api.identity.v1 import identity_service_pb2_grpc as identity_stubs
from trunkline.errors import from_grpc

CALL_ID = "x-request-id"

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)


class Session:
    """The shared channel is opened by the first call, inside the caller's event loop."""

    def __init__(
        self,
        target: Target,
        user_agent: str,
        *,
        api_key: str | None = None,
        login: Login | None = None,
        tokens: TokenStore | None = None,
    ) -> None:
        self.target = target
        self._user_agent = user_agent
        self._api_key = api_key
        self._login = login
        self._tokens = tokens
        self._channels: list[grpc.Channel] = []
        self.closed = False
        self._calls = count(1)
        self._calls_prefix = os.urandom(6).hex()

    @cached_property
    def channel(self) -> grpc.Channel:
        return self.open_channel()

    @cached_property
    def upload_channel(self) -> grpc.Channel:
        """A connection of its own: an upload's megabytes never stand in the way of a call."""
        return self.open_channel(own_connection=True)

    def open_channel(self, *, own_connection: bool = False) -> grpc.Channel:
        options = channel_options(self._user_agent, own_connection=own_connection)
        if self.target.tls:
            credentials = self.target.credentials()
            channel = grpc.secure_channel(self.target.name, credentials, options=options)
        else:
            channel = grpc.insecure_channel(self.target.name, options=options)
        self._channels.append(channel)
        return channel

    @cached_property
    def auth(self) -> Auth:
        if self._tokens is None:
            return KeyAuth(self._api_key)
        stub: identity_stubs.IdentityServiceStub
        stub = identity_stubs.IdentityServiceStub(self.channel)
        return TokenAuth(stub, self.target.address, self._tokens, self._login)

    def metadata(self) -> Metadata:
        auth = self.auth
        return auth.fresh() or auth.fetch()

    def next_call_id(self) -> str:
        """What errors, the server's log and its audit name the call by."""
        return f"{self._calls_prefix}-{next(self._calls):x}"

    def methods(self, service: ServiceDescriptor) -> "Methods":
        return Methods(self, service)

    def close(self) -> None:
        self.closed = True
        for channel in self._channels:
            channel.close()


class Methods:
    """Makes the calls of one service."""

    def __init__(self, session: Session, service: ServiceDescriptor) -> None:
        self._session = session
        self._service = service

    def unary(
        self, method: "grpc.UnaryUnaryMultiCallable[Request, Reply]", name: str
    ) -> "Unary[Request, Reply]":
        return Unary(self._session, method, self._service.methods_by_name[name])

    def stream(
        self, method: "grpc.UnaryStreamMultiCallable[Request, Reply]", name: str
    ) -> "ServerStream[Request, Reply]":
        return ServerStream(self._session, method, self._service.methods_by_name[name])


class Unary(Generic[Request, Reply]):
    """A method with one request and one reply, with its deadline from the contract."""

    __slots__ = ("_auth", "_deadline_s", "_method", "_session")

    def __init__(
        self,
        session: Session,
        method: "grpc.UnaryUnaryMultiCallable[Request, Reply]",
        descriptor: MethodDescriptor,
    ) -> None:
        self._session = session
        self._auth = session.auth
        self._method = method
        self._deadline_s = default_deadline_s(descriptor)

    def __call__(self, request: Request, timeout_s: float | None = None) -> Reply:
        metadata = self._auth.fresh()
        if metadata is None:
            metadata = self._auth.fetch()
        timeout = self._deadline_s if timeout_s is None else timeout_s
        call_id = self._session.next_call_id()
        try:
            return self._method(request, timeout=timeout, metadata=(*metadata, (CALL_ID, call_id)))
        except grpc.RpcError as error:
            return self._after(error, request, timeout, metadata, call_id)

    def _after(
        self,
        error: grpc.RpcError,
        request: Request,
        timeout: float,
        metadata: Metadata,
        call_id: str,
    ) -> Reply:
        """Once more with a new token if the old one was refused, else the error."""
        if _refused(error):
            renewed = self._auth.renew(metadata)
            if renewed is not None:
                try:
                    return self._method(
                        request, timeout=timeout, metadata=(*renewed, (CALL_ID, call_id))
                    )
                except grpc.RpcError as again:
                    error = again
        raise from_grpc(error, self._session.target.address, call_id) from None


class ServerStream(Generic[Request, Reply]):
    """A method that answers with many replies."""

    __slots__ = ("_deadline_s", "_method", "_session")

    def __init__(
        self,
        session: Session,
        method: "grpc.UnaryStreamMultiCallable[Request, Reply]",
        descriptor: MethodDescriptor,
    ) -> None:
        self._session = session
        self._method = method
        self._deadline_s = max_deadline_s(descriptor)

    @property
    def closed(self) -> bool:
        """Whether its client was closed, which ends calls like a server that goes."""
        return self._session.closed

    def __call__(self, request: Request, timeout_s: float | None = None) -> tasks.Stream[Reply]:
        timeout = self._deadline_s if timeout_s is None else timeout_s
        metadata: Metadata | None = self._session.metadata()
        call_id = self._session.next_call_id()
        while metadata is not None:
            call: Any = self._method(
                request, timeout=timeout, metadata=(*metadata, (CALL_ID, call_id))
            )
            begun = False
            try:
                for reply in call:
                    begun = True
                    yield reply
                return
            except grpc.RpcError as error:
                renewed = None
                if _refused(error) and not begun:
                    renewed = self._session.auth.renew(metadata)
                if renewed is None:
                    raise from_grpc(error, self._session.target.address, call_id) from None
                metadata = renewed
            finally:
                call.cancel()


def _refused(error: grpc.RpcError) -> bool:
    return hasattr(error, "code") and error.code() is grpc.StatusCode.UNAUTHENTICATED
