"""`trunklined healthcheck`: one grpc.health.v1 question, answered by the exit code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class ProbeTls:
    """The authority to trust, and for mutual TLS the probe's own certificate."""

    authority: Path
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None  # when the certificate does not name the probed address

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(
            self.authority.read_bytes(),
            self.key.read_bytes() if self.key else None,
            self.certificate.read_bytes() if self.certificate else None,
        )


def healthy(
    address: str, *, service: str = "", tls: ProbeTls | None = None, timeout_s: float = TIMEOUT_S
) -> bool:
    """True when `service` is SERVING; the empty name asks for the process alone."""
    with _channel(address, tls) as channel:
        question = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(question, timeout=timeout_s)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _channel(address: str, tls: ProbeTls | None) -> grpc.Channel:
    # A probe asks its own host: a proxy from the environment would answer for somebody else.
    options: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]
    if tls is None:
        return grpc.insecure_channel(address, options)
    if tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return grpc.secure_channel(address, tls.credentials(), options)
