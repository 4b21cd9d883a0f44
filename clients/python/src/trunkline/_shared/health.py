"""grpc.health.v1 without its distribution: one string there, one number back."""

HEALTH_METHOD = "/grpc.health.v1.Health/Check"
HEALTH_TIMEOUT_S = 5.0

_STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
_NAME_BYTES_MAX = 127


def question_about(service: str) -> bytes:
    """HealthCheckRequest {service = 1}."""
    name = service.encode()[:_NAME_BYTES_MAX]
    return bytes((0x0A, len(name))) + name if name else b""


def status_of(reply: bytes) -> str:
    """HealthCheckResponse {status = 1}; proto3 leaves out zero."""
    number = reply[1] if len(reply) == 2 and reply[0] == 0x08 else 0
    return _STATUSES[number] if number < len(_STATUSES) else str(number)
