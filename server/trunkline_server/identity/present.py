"""Rows as messages."""

import json
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from trunkline.api.identity.v1 import identity_service_pb2 as pb
from trunkline.api.options.v1 import policy_pb2
from trunkline_server.db import Record
from trunkline_server.identity import rules
from trunkline_server.org_settings import QUOTA_DEFAULTS, RETENTION_DEFAULTS, in_force, parsed


def timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def seconds(moment: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMilliseconds(int(moment * 1000))
    return stamp


def role(name: str) -> policy_pb2.Role.ValueType:
    return policy_pb2.Role.Value(f"ROLE_{name}")


def etag(version: int) -> str:
    return f"v{version}"


def user(row: Record) -> pb.User:
    return pb.User(
        user_id=str(row["user_id"]),
        email=row["email"],
        display_name=row["display_name"],
        role=role(row["role"]),
        state=pb.UserState.Value(f"USER_STATE_{row['status']}"),
        etag=etag(row["version"]),
        create_time=timestamp(row["created_at"]),
        update_time=timestamp(row["updated_at"]),
        last_login_time=timestamp(row["last_login_at"]),
    )


def api_key(row: Record) -> pb.ApiKey:
    secrets = [
        pb.ApiKeySecret(
            prefix=rules.shown_prefix(prefix),
            create_time=timestamp(created_at),
            expire_time=timestamp(expires_at),
        )
        for prefix, created_at, expires_at in zip(
            row["prefixes"], row["secrets_created_at"], row["secrets_expire_at"], strict=True
        )
    ]
    return pb.ApiKey(
        key_id=str(row["key_id"]),
        display_name=row["display_name"],
        role=role(row["role"]),
        prefix=secrets[0].prefix if secrets else "",
        secrets=[] if row["ended"] else secrets,
        create_time=timestamp(row["created_at"]),
        expire_time=timestamp(row["expires_at"]),
        revoke_time=timestamp(row["revoked_at"]),
        last_used_time=timestamp(row["last_used_at"]),
        created_by_id=str(row["created_by"] or ""),
    )


def org(row: Record) -> pb.Org:
    return pb.Org(
        org_id=str(row["org_id"]),
        slug=row["slug"],
        display_name=row["display_name"],
        state=pb.OrgState.Value(f"ORG_STATE_{row['status']}"),
        time_zone=row["time_zone"],
        quotas=in_force(parsed(row["quotas"], pb.Quotas), QUOTA_DEFAULTS),
        member_rules=parsed(row["member_rules"], pb.MemberRules),
        content_rules=parsed(row["content_rules"], pb.ContentRules),
        retention=in_force(parsed(row["retention"], pb.Retention), RETENTION_DEFAULTS),
        etag=etag(row["version"]),
        create_time=timestamp(row["created_at"]),
        update_time=timestamp(row["updated_at"]),
    )


def audit_event(row: Record) -> pb.AuditEvent:
    return pb.AuditEvent(
        event_id=str(row["audit_id"]),
        sequence=row["sequence"],
        occur_time=timestamp(row["at"]),
        actor_kind=pb.ActorKind.Value(f"ACTOR_KIND_{row['actor_kind']}"),
        actor_id=str(row["actor_id"] or ""),
        actor_name=row["actor_name"],
        role=role(row["role"]) if row["role"] else policy_pb2.ROLE_UNSPECIFIED,
        action=row["action"],
        resource_type=row["resource_type"],
        resource_id=row["resource_id"],
        outcome=pb.AuditOutcome.Value(f"AUDIT_OUTCOME_{row['outcome']}"),
        reason=row["reason"],
        request_id=row["request_id"],
        peer=row["peer"],
        details=json.loads(row["details"]),
        hash=row["hash"],
    )
