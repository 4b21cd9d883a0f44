"""Where a server is, and how its channels behave."""

import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import grpc

from trunkline.errors import ConfigurationError

DEFAULT_PORT = 7443
DEFAULT_ADDRESS = f"localhost:{DEFAULT_PORT}"
MESSAGE_BYTES_MAX = 4 << 20

# The server allows a ping each 30 s; a dead connection is noticed within 50.
KEEPALIVE_MS = 40_000
KEEPALIVE_TIMEOUT_MS = 10_000
RECONNECT_MIN_MS = 100
RECONNECT_MAX_MS = 5_000

_RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    # A server that stops resets the few calls that reach it while its GOAWAY is on the way; grpc
    # shows that as CANCELLED (docs/adr/0009). A call the caller cancelled is never repeated.
    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
}
# A refresh token may be used once: whether a lost reply was a refused call, nobody knows. Streams
# of the caller are continued by their own protocols, not repeated from memory.
_NEVER_RETRIED = [
    {"service": "trunkline.api.identity.v1.IdentityService", "method": "Refresh"},
    {"service": "trunkline.api.imports.v1.ImportService", "method": "UploadImport"},
    {"service": "trunkline.api.imports.v1.ImportService", "method": "SubmitCsv"},
    {"service": "trunkline.api.members.v1.MemberService", "method": "StreamValidateMembers"},
    {"service": "trunkline.api.stats.v1.StatsService", "method": "StreamEvents"},
]
SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {"name": [{}], "retryPolicy": _RETRY},
            {"name": _NEVER_RETRIED},
        ],
        # When most calls fail, repeating each of them only makes it worse.
        "retryThrottling": {"maxTokens": 50, "tokenRatio": 0.5},
    }
)


@dataclass(frozen=True, slots=True)
class Target:
    """A server's address, and whether to speak TLS with it."""

    address: str
    tls: bool
    ca_file: Path | None = None

    @property
    def name(self) -> str:
        """For grpc: several addresses of one name are all used, in turn."""
        return self.address if "://" in self.address else f"dns:///{self.address}"

    def credentials(self) -> grpc.ChannelCredentials:
        if self.ca_file is None:
            return grpc.ssl_channel_credentials()
        try:
            return grpc.ssl_channel_credentials(self.ca_file.read_bytes())
        except OSError as error:
            raise ConfigurationError(
                f"The certificate authority {self.ca_file} cannot be read: {error.strerror}.",
                remedy="Correct ca_file.",
            ) from error


def target_of(address: str, tls: bool | None, ca_file: Path | str | None) -> Target:
    """Read `host`, `host:port`, `https://host:port` or `http://host:port`.

    Without a scheme TLS is spoken with everything but the loopback: a key never crosses a network
    in the clear unless somebody said so.
    """
    scheme, rest = address.split("://", 1) if "://" in address else ("", address)
    if scheme not in ("", "http", "https", "grpc", "grpcs"):
        return Target(address, bool(tls), Path(ca_file) if ca_file else None)
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError:
        host, port = None, 0
    if not host or parts.path.strip("/") or parts.username:
        raise ConfigurationError(
            f"{address!r} is not an address.", remedy="Write host:port or https://host:port."
        )
    if tls is None:
        tls = scheme in ("https", "grpcs") or (scheme == "" and not _is_loopback(host))
    shown = f"[{host}]" if ":" in host else host
    return Target(f"{shown}:{port}", tls, Path(ca_file) if ca_file else None)


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def channel_options(
    user_agent: str, *, own_connection: bool = False
) -> list[tuple[str, str | int]]:
    """The shared channel's options. `own_connection` keeps it from sharing its socket."""
    options: list[tuple[str, str | int]] = [
        ("grpc.primary_user_agent", user_agent),
        ("grpc.service_config", SERVICE_CONFIG),
        ("grpc.enable_retries", 1),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MIN_MS),
        ("grpc.min_reconnect_backoff_ms", RECONNECT_MIN_MS * 10),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ]
    if own_connection:
        options.append(("grpc.use_local_subchannel_pool", 1))
    return options
