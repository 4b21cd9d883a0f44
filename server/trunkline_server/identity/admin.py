"""What the operator does from the command line: organisations, first users, first keys."""

import os
import re
from dataclasses import dataclass
from uuid import UUID

from trunkline_server import audit
from trunkline_server.db import Database
from trunkline_server.identity import queries, rules
from trunkline_server.identity.authenticator import TOPIC_ORG
from trunkline_server.identity.passwords import Passwords
from trunkline_server.identity.rules import Peppers
from trunkline_server.identity.service import GENERATED_PASSWORD_CHARS, add_secret
from trunkline_server.ids import uuid7
from trunkline_server.link import Link
from trunkline_server.rpc.caller import Role

_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")


class AdminRefused(Exception):
    """What the operator asked for cannot be done; the text says why."""


@dataclass(frozen=True, slots=True)
class NewUser:
    user_id: UUID
    password: str  # empty when the operator gave one


@dataclass(frozen=True, slots=True)
class NewKey:
    key_id: UUID
    secret: str


async def create_org(db: Database, slug: str, display_name: str) -> UUID:
    if not _SLUG.fullmatch(slug):
        raise AdminRefused("a slug has 3 to 63 small letters, digits and inner hyphens")
    org_id = uuid7()
    async with db.tenant_tx(org_id) as tx:
        if not await queries.create_org(tx, org_id, slug, display_name):
            raise AdminRefused(f"there is an organisation {slug!r} already")
        await audit.append(tx, org_id, "admin.create-org", resource_type="org", resource_id=org_id)
    return org_id


async def create_user(
    db: Database,
    passwords: Passwords,
    slug: str,
    *,
    email: str,
    display_name: str,
    role: Role,
    password: str = "",
) -> NewUser:
    """Without a password one is made and returned."""
    if not rules.user_may_have(role):
        raise AdminRefused("the role SYSTEM is for API keys")
    org_id, email = await _org(db, slug), rules.normalised_email(email)
    chosen = password or rules.base62(
        os.urandom(GENERATED_PASSWORD_CHARS), GENERATED_PASSWORD_CHARS
    )
    normalised = rules.normalised_password(chosen)
    if weakness := rules.password_weakness(normalised, email):
        raise AdminRefused(f"the password is refused: {weakness}")
    password_hash = await passwords.hash(normalised)
    user_id = uuid7()
    async with db.tenant_tx(org_id) as tx:
        await queries.lock_org(tx, org_id)
        await queries.create_user(
            tx, org_id, user_id, email, display_name, role.name, password_hash
        )
        await audit.append(
            tx,
            org_id,
            "admin.create-user",
            resource_type="user",
            resource_id=user_id,
            details={"role": role.name},
        )
    return NewUser(user_id, "" if password else chosen)


async def create_key(
    db: Database, peppers: Peppers, slug: str, *, display_name: str, role: Role
) -> NewKey:
    org_id, key_id = await _org(db, slug), uuid7()
    async with db.tenant_tx(org_id) as tx:
        await queries.create_key(
            tx,
            org_id,
            key_id,
            display_name=display_name,
            role=role.name,
            expires_at=None,
            created_by=None,
        )
        secret = await add_secret(tx, org_id, key_id, peppers)
        await audit.append(
            tx,
            org_id,
            "admin.create-key",
            resource_type="api_key",
            resource_id=key_id,
            details={"role": role.name},
        )
    return NewKey(key_id, secret)


async def set_org_state(db: Database, link: Link | None, slug: str, *, suspended: bool) -> None:
    """Suspends or resumes; every server follows within a second."""
    org_id, status = await _org(db, slug), "SUSPENDED" if suspended else "ACTIVE"
    async with db.tenant_tx(org_id) as tx:
        await queries.set_org_status(tx, org_id, status)
        await audit.append(
            tx,
            org_id,
            "admin.set-org-state",
            resource_type="org",
            resource_id=org_id,
            details={"state": status},
        )
    if link is not None:
        await link.publish(TOPIC_ORG, str(org_id))


async def _org(db: Database, slug: str) -> UUID:
    async with db.system_tx() as tx:
        org_id = await queries.org_by_slug(tx, slug)
    if org_id is None:
        raise AdminRefused(f"there is no organisation {slug!r}")
    return org_id
