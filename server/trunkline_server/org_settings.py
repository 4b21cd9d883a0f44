"""How an organisation's settings are stored, and what is in force where it set nothing."""

from typing import TypeVar

from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from trunkline.api.identity.v1.identity_service_pb2 import Quotas, Retention

QUOTA_DEFAULTS = Quotas(
    cost_per_second=10_000,
    actor_cost_per_second=2_000,
    imports_running=1,
    import_starts_per_minute=1,
    imports_waiting=100,
    user_uploads_per_5_minutes=10,
    import_file_bytes=1 << 30,
    import_rows=10_000_000,
    import_row_bytes=64 << 10,
    import_field_bytes=16 << 10,
    import_columns=200,
    upload_stall_timeout=Duration(seconds=30),
    upload_expire_after=Duration(seconds=24 * 3600),
    members=10_000_000,
    articles=100_000,
    users=25_000,
    api_keys=1_000,
    events_per_second=5_000,
)
# How far an organisation may raise its own quotas where the operator set no other ceiling.
CEILING_FACTOR = 10

RETENTION_DEFAULTS = Retention(
    deleted_members_days=30,
    member_history_days=1_095,
    import_files_days=7,
    import_rejects_days=90,
    imports_days=730,
    deleted_articles_days=30,
    events_days=400,
    audit_days=1_095,
    search_misses_days=90,
)

M = TypeVar("M", bound=Message)


def in_force(given: M, defaults: M) -> M:
    """The given values, and the default of each that was not given."""
    merged = type(given)()
    merged.CopyFrom(defaults)
    for field, _ in given.ListFields():
        # Or 0.3 s, whose seconds are zero, would take over those of the default.
        merged.ClearField(field.name)
    merged.MergeFrom(given)
    return merged


def parsed(stored: str, kind: type[M]) -> M:
    # A newer release may have stored fields that this one does not know.
    return json_format.Parse(stored, kind(), ignore_unknown_fields=True)


def stored(settings: Message) -> str:
    return json_format.MessageToJson(settings, preserving_proto_field_name=True, indent=None)


def above_ceiling(quotas: Quotas, ceilings: Quotas) -> list[str]:
    """The names of the quotas that are higher than the operator allows."""
    too_high = []
    for field, value in quotas.ListFields():
        if field.message_type is not None:
            continue  # the contract bounds durations
        ceiling = getattr(ceilings, field.name)
        if value > (ceiling or getattr(QUOTA_DEFAULTS, field.name) * CEILING_FACTOR):
            too_high.append(field.name)
    return too_high
