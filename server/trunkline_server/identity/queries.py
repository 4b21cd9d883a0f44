"""The SQL of users, sessions, keys and organisations."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from trunkline_server.db import Executor, Record
from trunkline_server.identity.errors import (
    ApiKeyNotFound,
    OrgNotFound,
    UserEmailTaken,
    UserNotFound,
)


class RowReader(Protocol):
    """The readers as well: these look-ups come before the tenant is known."""

    async def fetchrow(self, query: str, *args: Any) -> Record | None: ...


# -- log-in

_LOGIN = """
SELECT org_id, org_status, user_id, role, user_status, password_hash FROM auth_login($1, $2)
"""


async def find_login(db: RowReader, slug: str, email: str) -> Record | None:
    return await db.fetchrow(_LOGIN, slug, email)


_ORG_BY_SLUG = "SELECT auth_org($1) AS org_id"


async def org_by_slug(db: RowReader, slug: str) -> UUID | None:
    row = await db.fetchrow(_ORG_BY_SLUG, slug)
    return row["org_id"] if row else None


# A password that was changed since it was verified must not open a session any more.
_NOTE_LOGIN = """
UPDATE users SET last_login_at = now()
WHERE org_id = $1 AND user_id = $2 AND password_hash = $3 AND status = 'ACTIVE'
RETURNING user_id, email, display_name, role, status, version, created_at, updated_at,
    last_login_at
"""


async def note_login(db: Executor, org_id: UUID, user_id: UUID, verified: str) -> Record | None:
    return await db.fetchrow(_NOTE_LOGIN, org_id, user_id, verified)


# -- sessions

_CREATE_SESSION = """
INSERT INTO sessions (org_id, session_id, user_id, expires_at)
VALUES ($1, $2, $3, now() + $4) RETURNING expires_at
"""


async def create_session(
    db: Executor, org_id: UUID, session_id: UUID, user_id: UUID, lifetime: timedelta
) -> datetime:
    expires_at: datetime = await db.fetchval(_CREATE_SESSION, org_id, session_id, user_id, lifetime)
    return expires_at


_CREATE_REFRESH_TOKEN = """
INSERT INTO refresh_tokens (org_id, token_id, session_id, digest) VALUES ($1, $2, $3, $4)
"""


async def create_refresh_token(
    db: Executor, org_id: UUID, token_id: UUID, session_id: UUID, digest: bytes
) -> None:
    await db.execute(_CREATE_REFRESH_TOKEN, org_id, token_id, session_id, digest)


_REFRESH_TOKEN_ORG = "SELECT auth_refresh_token($1) AS org_id"


async def refresh_token_org(db: RowReader, token_id: UUID) -> UUID | None:
    row = await db.fetchrow(_REFRESH_TOKEN_ORG, token_id)
    return row["org_id"] if row else None


# The session's lock makes two uses of one token follow each other.
_LOCK_REFRESH_TOKEN = """
SELECT t.session_id, t.digest, t.successor_id, s.user_id, s.expires_at,
       s.revoked_at IS NULL AND s.expires_at > now() AS live,
       t.used_at > clock_timestamp() - $3::interval AS used_lately, t.used_at IS NOT NULL AS used,
       u.status AS user_status, o.status AS org_status
FROM refresh_tokens t
JOIN sessions s ON s.org_id = t.org_id AND s.session_id = t.session_id
JOIN users u ON u.org_id = s.org_id AND u.user_id = s.user_id
JOIN orgs o ON o.org_id = s.org_id
WHERE t.org_id = $1 AND t.token_id = $2
FOR UPDATE OF s, t
"""


async def lock_refresh_token(
    db: Executor, org_id: UUID, token_id: UUID, grace: timedelta
) -> Record | None:
    return await db.fetchrow(_LOCK_REFRESH_TOKEN, org_id, token_id, grace)


_SUCCESSOR = """
SELECT digest, used_at IS NOT NULL AS used FROM refresh_tokens
WHERE org_id = $1 AND token_id = $2
"""


async def successor(db: Executor, org_id: UUID, token_id: UUID) -> Record | None:
    return await db.fetchrow(_SUCCESSOR, org_id, token_id)


_USE_REFRESH_TOKEN = """
UPDATE refresh_tokens SET used_at = clock_timestamp(), successor_id = $3
WHERE org_id = $1 AND token_id = $2
"""


async def use_refresh_token(db: Executor, org_id: UUID, token_id: UUID, successor_id: UUID) -> None:
    await db.execute(_USE_REFRESH_TOKEN, org_id, token_id, successor_id)


_END_SESSION = """
UPDATE sessions SET revoked_at = now(), revoked_because = $3
WHERE org_id = $1 AND session_id = $2 AND revoked_at IS NULL RETURNING session_id
"""


async def end_session(db: Executor, org_id: UUID, session_id: UUID, because: str) -> int:
    return len(await db.fetch(_END_SESSION, org_id, session_id, because))


_END_SESSIONS = """
UPDATE sessions SET revoked_at = now(), revoked_because = $3
WHERE org_id = $1 AND user_id = $2 AND revoked_at IS NULL AND expires_at > now()
RETURNING session_id
"""


async def end_sessions(db: Executor, org_id: UUID, user_id: UUID, because: str) -> int:
    return len(await db.fetch(_END_SESSIONS, org_id, user_id, because))


_SESSION_END = "SELECT expires_at FROM sessions WHERE org_id = $1 AND session_id = $2"


async def session_end(db: Executor, org_id: UUID, session_id: UUID) -> datetime | None:
    end: datetime | None = await db.fetchval(_SESSION_END, org_id, session_id)
    return end


# -- users

_CREATE_USER = """
INSERT INTO users (org_id, user_id, email, display_name, role, password_hash)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (org_id, email) DO NOTHING
RETURNING user_id, email, display_name, role, status, version, created_at, updated_at,
    last_login_at
"""


async def create_user(
    db: Executor,
    org_id: UUID,
    user_id: UUID,
    email: str,
    display_name: str,
    role: str,
    password_hash: str,
) -> Record:
    row = await db.fetchrow(_CREATE_USER, org_id, user_id, email, display_name, role, password_hash)
    if row is None:
        raise UserEmailTaken
    return row


_LOCK_USER = """
SELECT user_id, email, display_name, role, status, version, password_hash
FROM users WHERE org_id = $1 AND user_id = $2 FOR NO KEY UPDATE
"""


async def lock_user(db: Executor, org_id: UUID, user_id: UUID) -> Record:
    row = await db.fetchrow(_LOCK_USER, org_id, user_id)
    if row is None:
        raise UserNotFound
    return row


_GET_USER = """
SELECT user_id, email, display_name, role, status, version, created_at, updated_at,
    last_login_at, password_hash
FROM users WHERE org_id = $1 AND user_id = $2
"""


async def get_user(db: Executor, org_id: UUID, user_id: UUID) -> Record:
    row = await db.fetchrow(_GET_USER, org_id, user_id)
    if row is None:
        raise UserNotFound
    return row


_UPDATE_USER = """
UPDATE users SET email = $3, display_name = $4, role = $5, status = $6,
    version = version + 1, updated_at = now()
WHERE org_id = $1 AND user_id = $2
RETURNING user_id, email, display_name, role, status, version, created_at, updated_at,
    last_login_at
"""
_EMAIL_OWNER = "SELECT user_id FROM users WHERE org_id = $1 AND email = $2 AND user_id <> $3"


async def update_user(
    db: Executor,
    org_id: UUID,
    user_id: UUID,
    *,
    email: str,
    display_name: str,
    role: str,
    status: str,
) -> Record:
    """The organisation's row is locked by the caller, so the address cannot be taken meanwhile."""
    if await db.fetchval(_EMAIL_OWNER, org_id, email, user_id):
        raise UserEmailTaken
    row = await db.fetchrow(_UPDATE_USER, org_id, user_id, email, display_name, role, status)
    if row is None:
        raise UserNotFound
    return row


_SET_PASSWORD = """
UPDATE users SET password_hash = $3, version = version + 1, updated_at = now()
WHERE org_id = $1 AND user_id = $2 RETURNING user_id
"""


async def set_password(db: Executor, org_id: UUID, user_id: UUID, password_hash: str) -> None:
    if await db.fetchval(_SET_PASSWORD, org_id, user_id, password_hash) is None:
        raise UserNotFound


# Today's parameters for an unchanged password: no new version, no ended sessions.
_REHASH = """
UPDATE users SET password_hash = $4 WHERE org_id = $1 AND user_id = $2 AND password_hash = $3
"""


async def rehash(db: Executor, org_id: UUID, user_id: UUID, old: str, new: str) -> None:
    await db.execute(_REHASH, org_id, user_id, old, new)


_COUNT_USERS = "SELECT count(user_id) FROM users WHERE org_id = $1"


async def count_users(db: Executor, org_id: UUID) -> int:
    return int(await db.fetchval(_COUNT_USERS, org_id))


_OTHER_ADMINS = """
SELECT EXISTS (
    SELECT FROM users
    WHERE org_id = $1 AND user_id <> $2 AND role = 'ADMIN' AND status = 'ACTIVE'
)
"""


async def has_other_admin(db: Executor, org_id: UUID, user_id: UUID) -> bool:
    return bool(await db.fetchval(_OTHER_ADMINS, org_id, user_id))


_LIST_USERS = """
SELECT user_id, email, display_name, role, status, version, created_at, updated_at,
    last_login_at
FROM users
WHERE org_id = $1 AND email > $2
  AND (cardinality($3::text[]) = 0 OR role = ANY($3))
  AND (cardinality($4::text[]) = 0 OR status = ANY($4))
  AND (starts_with(email, $5) OR starts_with(lower(display_name), $5))
ORDER BY email LIMIT $6
"""


async def list_users(
    db: Executor,
    org_id: UUID,
    *,
    after_email: str,
    roles: Sequence[str],
    states: Sequence[str],
    prefix: str,
    limit: int,
) -> list[Record]:
    return await db.fetch(
        _LIST_USERS, org_id, after_email, list(roles), list(states), prefix.lower(), limit
    )


# -- API keys

_KEY_COLUMNS = """
k.key_id, k.display_name, k.role, k.expires_at, k.revoked_at, k.last_used_at, k.created_by,
    k.created_at,
    ARRAY(
        SELECT s.prefix FROM api_key_secrets s
        WHERE s.org_id = k.org_id AND s.key_id = k.key_id
          AND coalesce(s.expires_at > now(), true)
        ORDER BY s.created_at DESC, s.prefix
    ) AS prefixes,
    ARRAY(
        SELECT s.created_at FROM api_key_secrets s
        WHERE s.org_id = k.org_id AND s.key_id = k.key_id
          AND coalesce(s.expires_at > now(), true)
        ORDER BY s.created_at DESC, s.prefix
    ) AS secrets_created_at,
    ARRAY(
        SELECT s.expires_at FROM api_key_secrets s
        WHERE s.org_id = k.org_id AND s.key_id = k.key_id
          AND coalesce(s.expires_at > now(), true)
        ORDER BY s.created_at DESC, s.prefix
    ) AS secrets_expire_at,
    k.revoked_at IS NOT NULL OR coalesce(k.expires_at <= now(), false) AS ended
"""
_GET_KEY = f"SELECT {_KEY_COLUMNS} FROM api_keys k WHERE k.org_id = $1 AND k.key_id = $2"  # noqa: S608 - made of constants


async def get_key(db: Executor, org_id: UUID, key_id: UUID) -> Record:
    row = await db.fetchrow(_GET_KEY, org_id, key_id)
    if row is None:
        raise ApiKeyNotFound
    return row


_LOCK_KEY = "SELECT key_id FROM api_keys WHERE org_id = $1 AND key_id = $2 FOR NO KEY UPDATE"


async def lock_key(db: Executor, org_id: UUID, key_id: UUID) -> Record:
    await db.execute(_LOCK_KEY, org_id, key_id)
    return await get_key(db, org_id, key_id)


_CREATE_KEY = """
INSERT INTO api_keys (org_id, key_id, display_name, role, expires_at, created_by)
VALUES ($1, $2, $3, $4, $5, $6)
"""


async def create_key(
    db: Executor,
    org_id: UUID,
    key_id: UUID,
    *,
    display_name: str,
    role: str,
    expires_at: datetime | None,
    created_by: UUID | None,
) -> None:
    await db.execute(_CREATE_KEY, org_id, key_id, display_name, role, expires_at, created_by)


# clock_timestamp: the second secret of one transaction is the newer one.
_CREATE_SECRET = """
INSERT INTO api_key_secrets (org_id, prefix, key_id, digest, created_at)
VALUES ($1, $2, $3, $4, clock_timestamp())
"""


async def create_secret(
    db: Executor, org_id: UUID, key_id: UUID, prefix: str, digest: bytes
) -> None:
    await db.execute(_CREATE_SECRET, org_id, prefix, key_id, digest)


_COUNT_KEYS = """
SELECT count(key_id) FROM api_keys
WHERE org_id = $1 AND revoked_at IS NULL AND coalesce(expires_at > now(), true)
"""


async def count_keys(db: Executor, org_id: UUID) -> int:
    return int(await db.fetchval(_COUNT_KEYS, org_id))


_DROP_DEAD_SECRETS = """
DELETE FROM api_key_secrets WHERE org_id = $1 AND key_id = $2 AND expires_at <= now()
"""
_END_SECRETS = """
UPDATE api_key_secrets SET expires_at = least(expires_at, now() + $3)
WHERE org_id = $1 AND key_id = $2
"""


async def end_secrets(db: Executor, org_id: UUID, key_id: UUID, overlap: timedelta) -> None:
    await db.execute(_END_SECRETS, org_id, key_id, overlap)
    await db.execute(_DROP_DEAD_SECRETS, org_id, key_id)


_REVOKE_KEY = """
UPDATE api_keys SET revoked_at = now()
WHERE org_id = $1 AND key_id = $2 AND revoked_at IS NULL RETURNING key_id
"""


async def revoke_key(db: Executor, org_id: UUID, key_id: UUID) -> bool:
    return await db.fetchval(_REVOKE_KEY, org_id, key_id) is not None


_LIST_KEYS = f"""
SELECT {_KEY_COLUMNS} FROM api_keys k
WHERE k.org_id = $1 AND ($2::uuid IS NULL OR k.key_id < $2)
  AND ($3 OR (k.revoked_at IS NULL AND coalesce(k.expires_at > now(), true)))
ORDER BY k.key_id DESC LIMIT $4
"""  # noqa: S608 - made of constants


async def list_keys(
    db: Executor, org_id: UUID, *, before: UUID | None, show_revoked: bool, limit: int
) -> list[Record]:
    return await db.fetch(_LIST_KEYS, org_id, before, show_revoked, limit)


# -- organisations

_ORG_COLUMNS = """
org_id, slug, display_name, status, time_zone, quotas, quota_ceilings, member_rules,
    content_rules, retention, version, created_at, updated_at
"""
_GET_ORG = f"SELECT {_ORG_COLUMNS} FROM orgs WHERE org_id = $1"  # noqa: S608 - made of constants


async def get_org(db: Executor, org_id: UUID) -> Record:
    row = await db.fetchrow(_GET_ORG, org_id)
    if row is None:
        raise OrgNotFound
    return row


# NO KEY: rows that refer to the organisation can be inserted meanwhile.
_LOCK_ORG = _GET_ORG + " FOR NO KEY UPDATE"


async def lock_org(db: Executor, org_id: UUID) -> Record:
    row = await db.fetchrow(_LOCK_ORG, org_id)
    if row is None:
        raise OrgNotFound
    return row


_UPDATE_ORG = f"""
UPDATE orgs SET display_name = $2, time_zone = $3, quotas = $4::jsonb, member_rules = $5::jsonb,
    content_rules = $6::jsonb, retention = $7::jsonb, version = version + 1, updated_at = now()
WHERE org_id = $1 RETURNING {_ORG_COLUMNS}
"""  # noqa: S608 - made of constants


async def update_org(
    db: Executor,
    org_id: UUID,
    *,
    display_name: str,
    time_zone: str,
    quotas: str,
    member_rules: str,
    content_rules: str,
    retention: str,
) -> Record:
    row = await db.fetchrow(
        _UPDATE_ORG, org_id, display_name, time_zone, quotas, member_rules, content_rules, retention
    )
    if row is None:
        raise OrgNotFound
    return row


_KNOWN_TIME_ZONE = "SELECT EXISTS (SELECT FROM pg_timezone_names WHERE name = $1)"


async def knows_time_zone(db: Executor, name: str) -> bool:
    return bool(await db.fetchval(_KNOWN_TIME_ZONE, name))


_CREATE_ORG = """
INSERT INTO orgs (org_id, slug, display_name) VALUES ($1, $2, $3)
ON CONFLICT (slug) DO NOTHING RETURNING org_id
"""


async def create_org(db: Executor, org_id: UUID, slug: str, display_name: str) -> bool:
    """False when the slug is taken."""
    return await db.fetchval(_CREATE_ORG, org_id, slug, display_name) is not None


_SET_ORG_STATUS = """
UPDATE orgs SET status = $2, version = version + 1, updated_at = now() WHERE org_id = $1
"""


async def set_org_status(db: Executor, org_id: UUID, status: str) -> None:
    await db.execute(_SET_ORG_STATUS, org_id, status)


# -- audit

# The name is looked up, not stored: a log that is never changed must not hold personal data.
_LIST_AUDIT = """
SELECT l.audit_id, l.at, l.actor_kind, l.actor_id, l.role, l.action, l.resource_type,
       l.resource_id, l.outcome, l.reason, l.request_id, l.peer, l.details,
       coalesce(u.display_name, k.display_name, '') AS actor_name,
       coalesce(s.sequence, 0) AS sequence, coalesce(s.hash, ''::bytea) AS hash
FROM audit_log l
LEFT JOIN audit_seals s ON s.org_id = l.org_id AND s.audit_id = l.audit_id
LEFT JOIN users u ON u.org_id = l.org_id AND u.user_id = l.actor_id
LEFT JOIN api_keys k ON k.org_id = l.org_id AND k.key_id = l.actor_id
WHERE l.org_id = $1
  AND ($2::timestamptz IS NULL OR l.at >= $2) AND ($3::timestamptz IS NULL OR l.at < $3)
  AND ($4::uuid IS NULL OR l.actor_id = $4)
  AND ($5 = '' OR l.action = $5 OR (right($5, 1) = '.' AND starts_with(l.action, $5)))
  AND ($6 = '' OR l.resource_id = $6)
  AND (cardinality($7::text[]) = 0 OR l.outcome = ANY($7))
  AND ($8::timestamptz IS NULL OR (l.at, l.audit_id) < ($8, $9::uuid))
ORDER BY l.at DESC, l.audit_id DESC LIMIT $10
"""


async def list_audit(
    db: Executor,
    org_id: UUID,
    *,
    from_time: datetime | None,
    to_time: datetime | None,
    actor_id: UUID | None,
    action: str,
    resource_id: str,
    outcomes: Sequence[str],
    before: tuple[datetime, UUID] | None,
    limit: int,
) -> list[Record]:
    at, audit_id = before or (None, None)
    return await db.fetch(
        _LIST_AUDIT, org_id, from_time, to_time, actor_id, action, resource_id, list(outcomes),
        at, audit_id, limit,
    )  # fmt: skip
