"""The channel arguments of every Trunkline server: what bounds a connection and a message."""

from typing import Final

MESSAGE_BYTES_MAX = 4 << 20
METADATA_BYTES_MAX = 8 << 10
# Between the soft limit and this one grpc refuses at random; a limit is to be a limit.
METADATA_BYTES_HARD_MAX = METADATA_BYTES_MAX
LOOKAHEAD_BYTES = 1 << 20
STREAMS_PER_CONNECTION_MAX = 100
CONNECTIONS_MAX = 1_000
HANDSHAKE_TIMEOUT_S = 10.0
CONNECTION_IDLE_S = 300.0
CONNECTION_AGE_S = 1_800.0
CONNECTION_AGE_GRACE_MS = 60_000
KEEPALIVE_MS = 60_000
KEEPALIVE_TIMEOUT_MS = 20_000
PING_INTERVAL_MIN_MS = 30_000
PING_STRIKES_MAX = 2

# A backstop far above what shedding admits; grpc answers RESOURCE_EXHAUSTED beyond it.
CONCURRENT_RPCS_MAX = 20_000

SERVER_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.so_reuseport", 1),
    # With the probe on, a slow reader lets megabytes pile up per stream. The look-ahead bounds
    # each stream and gives the speed back.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", LOOKAHEAD_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES_HARD_MAX),
    ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
    ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
    ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_TIMEOUT_S * 1000)),
    # A client that never acknowledges our settings is not bound by them.
    ("grpc.http2.settings_timeout", int(HANDSHAKE_TIMEOUT_S * 1000)),
    ("grpc.max_connection_idle_ms", int(CONNECTION_IDLE_S * 1000)),
    ("grpc.max_connection_age_ms", int(CONNECTION_AGE_S * 1000)),
    ("grpc.max_connection_age_grace_ms", CONNECTION_AGE_GRACE_MS),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MIN_MS),
    ("grpc.http2.max_ping_strikes", PING_STRIKES_MAX),
)


def server_options(
    *,
    handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
    connection_idle_s: float = CONNECTION_IDLE_S,
    connection_age_s: float = CONNECTION_AGE_S,
) -> tuple[tuple[str, int], ...]:
    """SERVER_OPTIONS with the times that an operator chose."""
    chosen = {
        "grpc.server_handshake_timeout_ms": int(handshake_timeout_s * 1000),
        "grpc.http2.settings_timeout": int(handshake_timeout_s * 1000),
        "grpc.max_connection_idle_ms": int(connection_idle_s * 1000),
        "grpc.max_connection_age_ms": int(connection_age_s * 1000),
    }
    return tuple((name, chosen.get(name, value)) for name, value in SERVER_OPTIONS)
