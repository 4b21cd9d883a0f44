"""The channel arguments of every Trunkline server: what bounds a connection and a message."""

from typing import Final

MESSAGE_BYTES_MAX = 4 << 20
METADATA_BYTES_MAX = 8 << 10
METADATA_BYTES_HARD_MAX = 16 << 10
LOOKAHEAD_BYTES = 1 << 20
STREAMS_PER_CONNECTION_MAX = 100
CONNECTIONS_MAX = 1_000
HANDSHAKE_TIMEOUT_MS = 10_000
CONNECTION_IDLE_MS = 300_000
CONNECTION_AGE_MS = 1_800_000
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
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
    ("grpc.max_connection_idle_ms", CONNECTION_IDLE_MS),
    ("grpc.max_connection_age_ms", CONNECTION_AGE_MS),
    ("grpc.max_connection_age_grace_ms", CONNECTION_AGE_GRACE_MS),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MIN_MS),
    ("grpc.http2.max_ping_strikes", PING_STRIKES_MAX),
)
