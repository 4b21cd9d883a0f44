"""An OpenTelemetry collector that accepts everything and keeps nothing."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio

from bench.servers.grpc_server import serve


async def _accept(request: bytes, context: Any) -> bytes:
    return b""  # an empty message of any type


class _Everything(grpc.GenericRpcHandler):  # type: ignore[misc, type-arg, unused-ignore]
    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(_accept)


async def _build() -> grpc.aio.Server:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Everything(),))
    return server


if __name__ == "__main__":
    serve(_build)
