"""grpc.aio and nothing else: METHODS methods, registered as generated code does or generically.

`python -m bench.servers.bare registered|generic METHODS`. Imports nothing of the product, so it
runs on any grpcio that an interpreter has.
"""

from __future__ import annotations

import sys
from typing import Any

import grpc.aio

from bench import contract
from bench.servers.grpc_server import serve


async def _echo(request: Any, context: Any) -> Any:
    return contract.reply(request)


def _handlers(methods: int) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    return {
        contract.method_name(number): grpc.unary_unary_rpc_method_handler(
            _echo,
            request_deserializer=contract.EchoRequest.FromString,
            response_serializer=contract.EchoResponse.SerializeToString,
        )
        for number in range(methods)
    }


class Generic(grpc.GenericRpcHandler):  # type: ignore[misc, type-arg, unused-ignore]
    """Every method of the server in one dictionary."""

    def __init__(self, handlers: dict[str, Any]) -> None:
        self._handlers = {contract.path(name): handler for name, handler in handlers.items()}

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return self._handlers.get(details.method)


async def _build() -> grpc.aio.Server:
    style, methods = sys.argv[1], int(sys.argv[2])
    handlers = _handlers(methods)
    server = grpc.aio.server()
    if style == "generic":
        server.add_generic_rpc_handlers((Generic(handlers),))
    else:
        named = grpc.method_handlers_generic_handler(contract.SERVICE, handlers)
        server.add_generic_rpc_handlers((named,))
        server.add_registered_method_handlers(contract.SERVICE, handlers)
    return server


if __name__ == "__main__":
    serve(_build)
