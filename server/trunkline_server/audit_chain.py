"""The audit chain: each link is a hash over the one before and all of an event. Pure."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

CHAIN_START: Final = bytes(32)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """All of an event that the chain protects."""

    org_id: UUID
    audit_id: UUID
    at: datetime
    actor_kind: str
    actor_id: UUID | None
    role: str | None
    action: str
    resource_type: str
    resource_id: str
    outcome: str
    reason: str
    request_id: str
    peer: str
    details: Mapping[str, Any]


def chain_hash(previous: bytes, sequence: int, entry: AuditEntry | None) -> bytes:
    """The link of an entry. None stands for one that vanished before it was sealed."""
    content = b"missing" if entry is None else _canonical(entry)
    return hashlib.sha256(previous + sequence.to_bytes(8, "big") + content).digest()


def _canonical(entry: AuditEntry) -> bytes:
    fields = [
        str(entry.org_id),
        str(entry.audit_id),
        entry.at.astimezone(UTC).isoformat(timespec="microseconds"),
        entry.actor_kind,
        str(entry.actor_id or ""),
        entry.role or "",
        entry.action,
        entry.resource_type,
        entry.resource_id,
        entry.outcome,
        entry.reason,
        entry.request_id,
        entry.peer,
        dict(entry.details),
    ]
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
