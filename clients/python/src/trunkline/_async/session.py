"""One channel, one credential: every call of a client goes through its session."""

import os
from functools import cached_property
from itertools import count
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from trunkline._async.auth import AsyncAuth, KeyAuth, TokenAuth
from trunkline._shared import tasks_async as tasks
from trunkline._shared.connection import Target, channel_options
from trunkline._shared.contract import default_deadline_s, max_deadline_s
from trunkline._shared.credentials import Login, Metadata, TokenStore
from trunkline.api.identity.v1 import identity_service_pb2_grpc as identity_stubs
from trunkline.errors import from_grpc

CALL_ID = "x-request-id"

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)


class AsyncSession:
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
        self._channels: list[grpc.aio.Channel] = []
        self.closed = False
        self._calls = count(1)
        self._calls_prefix = os.urandom(6).hex()

    @cached_property
    def channel(self) -> grpc.aio.Channel:
        return self.open_channel()

    @cached_property
    def upload_channel(self) -> grpc.aio.Channel:
        """A connection of its own: an upload's megabytes never stand in the way of a call."""
        return self.open_channel(own_connection=True)

    def open_channel(self, *, own_connection: bool = False) -> grpc.aio.Channel:
        options = channel_options(self._user_agent, own_connection=own_connection)
        if self.target.tls:
            credentials = self.target.credentials()
            channel = grpc.aio.secure_channel(self.target.name, credentials, options=options)
        else:
            channel = grpc.aio.insecure_channel(self.target.name, options=options)
        self._channels.append(channel)
        return channel

    @cached_property
    def auth(self) -> AsyncAuth:
        if self._tokens is None:
            return KeyAuth(self._api_key)
        stub: identity_stubs.IdentityServiceAsyncStub
        stub = identity_stubs.IdentityServiceStub(self.channel)
        return TokenAuth(stub, self.target.address, self._tokens, self._login)

    async def metadata(self) -> Metadata:
        auth = self.auth
        return auth.fresh() or await auth.fetch()

    def next_call_id(self) -> str:
        """What errors, the server's log and its audit name the call by."""
        return f"{self._calls_prefix}-{next(self._calls):x}"

    def methods(self, service: ServiceDescriptor) -> "Methods":
        return Methods(self, service)

    async def close(self) -> None:
        self.closed = True
        for channel in self._channels:
            await channel.close()


class Methods:
    """Makes the calls of one service."""

    def __init__(self, session: AsyncSession, service: ServiceDescriptor) -> None:
        self._session = session
        self._service = service

    def unary(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[Request, Reply]", name: str
    ) -> "AsyncUnary[Request, Reply]":
        return AsyncUnary(self._session, method, self._service.methods_by_name[name])

    def stream(
        self, method: "grpc.aio.UnaryStreamMultiCallable[Request, Reply]", name: str
    ) -> "AsyncServerStream[Request, Reply]":
        return AsyncServerStream(self._session, method, self._service.methods_by_name[name])


class AsyncUnary(Generic[Request, Reply]):
    """A method with one request and one reply, with its deadline from the contract."""

    __slots__ = ("_auth", "_deadline_s", "_method", "_session")

    def __init__(
        self,
        session: AsyncSession,
        method: "grpc.aio.UnaryUnaryMultiCallable[Request, Reply]",
        descriptor: MethodDescriptor,
    ) -> None:
        self._session = session
        self._auth = session.auth
        self._method = method
        self._deadline_s = default_deadline_s(descriptor)

    async def __call__(self, request: Request, timeout_s: float | None = None) -> Reply:
        metadata = self._auth.fresh()
        if metadata is None:
            metadata = await self._auth.fetch()
        timeout = self._deadline_s if timeout_s is None else timeout_s
        call_id = self._session.next_call_id()
        try:
            return await self._method(
                request, timeout=timeout, metadata=(*metadata, (CALL_ID, call_id))
            )
        except grpc.RpcError as error:
            return await self._after(error, request, timeout, metadata, call_id)

    async def _after(
        self,
        error: grpc.RpcError,
        request: Request,
        timeout: float,
        metadata: Metadata,
        call_id: str,
    ) -> Reply:
        """Once more with a new token if the old one was refused, else the error."""
        if _refused(error):
            renewed = await self._auth.renew(metadata)
            if renewed is not None:
                try:
                    return await self._method(
                        request, timeout=timeout, metadata=(*renewed, (CALL_ID, call_id))
                    )
                except grpc.RpcError as again:
                    error = again
        raise from_grpc(error, self._session.target.address, call_id) from None


class AsyncServerStream(Generic[Request, Reply]):
    """A method that answers with many replies."""

    __slots__ = ("_deadline_s", "_method", "_session")

    def __init__(
        self,
        session: AsyncSession,
        method: "grpc.aio.UnaryStreamMultiCallable[Request, Reply]",
        descriptor: MethodDescriptor,
    ) -> None:
        self._session = session
        self._method = method
        self._deadline_s = max_deadline_s(descriptor)

    @property
    def closed(self) -> bool:
        """Whether its client was closed, which ends calls like a server that goes."""
        return self._session.closed

    async def __call__(
        self, request: Request, timeout_s: float | None = None
    ) -> tasks.Stream[Reply]:
        timeout = self._deadline_s if timeout_s is None else timeout_s
        metadata: Metadata | None = await self._session.metadata()
        call_id = self._session.next_call_id()
        while metadata is not None:
            call: Any = self._method(
                request, timeout=timeout, metadata=(*metadata, (CALL_ID, call_id))
            )
            begun = False
            try:
                async for reply in call:
                    begun = True
                    yield reply
                return
            except grpc.RpcError as error:
                renewed = None
                if _refused(error) and not begun:
                    renewed = await self._session.auth.renew(metadata)
                if renewed is None:
                    raise from_grpc(error, self._session.target.address, call_id) from None
                metadata = renewed
            finally:
                call.cancel()


def _refused(error: grpc.RpcError) -> bool:
    return hasattr(error, "code") and error.code() is grpc.StatusCode.UNAUTHENTICATED
