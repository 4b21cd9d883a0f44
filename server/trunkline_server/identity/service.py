"""IdentityService: protobuf in, protobuf out."""

import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID

from google.protobuf.message import Message

from trunkline.api.identity.v1 import identity_service_pb2 as pb
from trunkline.api.options.v1 import policy_pb2
from trunkline_server import audit, facts, org_settings
from trunkline_server.db import Database, Executor, Record
from trunkline_server.errors import FieldViolation, PermissionDenied, QuotaViolation
from trunkline_server.idempotency import Write, once
from trunkline_server.identity import present, queries, rules, sessions
from trunkline_server.identity.authenticator import (
    PURPOSE_API_KEY,
    TOPIC_CREDENTIAL,
    TOPIC_ORG,
    TOPIC_USER,
)
from trunkline_server.identity.errors import (
    ApiKeyQuotaReached,
    ApiKeyRevoked,
    ApiKeyRotating,
    EtagMismatch,
    FieldInvalid,
    LastAdmin,
    LoginFailed,
    OrgSettingInvalid,
    OrgSuspended,
    PasswordMismatch,
    PasswordTooWeak,
    QuotaNotRaisable,
    RefreshTokenInvalid,
    RefreshTokenReused,
    UserQuotaReached,
    UserSuspended,
)
from trunkline_server.identity.lockout import Lockout
from trunkline_server.identity.passwords import Passwords
from trunkline_server.identity.rules import Peppers
from trunkline_server.identity.sessions import Reused, Sessions
from trunkline_server.ids import uuid7
from trunkline_server.link import Link
from trunkline_server.paging import PageTokens, page_size
from trunkline_server.rpc.caller import Caller, Role, caller, current_request

DEFAULT_OVERLAP = timedelta(days=1)
LIVE_SECRETS_MAX = 2
GENERATED_PASSWORD_CHARS = 20
_PURPOSE_REQUEST = "request"

Reply = TypeVar("Reply", bound=Message)


class IdentityService:
    """Organisations, users, credentials, audit."""

    def __init__(
        self,
        *,
        db: Database,
        passwords: Passwords,
        logins: Sessions,
        peppers: Peppers,
        lockout: Lockout,
        pages: PageTokens,
        link: Link | None,
        check_member_rules: Callable[[pb.MemberRules], None],
    ) -> None:
        """`check_member_rules` raises ValueError with a sentence about what is not usable."""
        self._db = db
        self._passwords = passwords
        self._logins = logins
        self._peppers = peppers
        self._lockout = lockout
        self._pages = pages
        self._link = link
        self._check_member_rules = check_member_rules

    # -- log-ins

    async def Login(self, request: pb.LoginRequest, context: object) -> pb.LoginResponse:
        email, address = rules.normalised_email(request.email), current_request().peer
        account = f"{request.org_slug}\0{email}"
        # Before the attempt is counted: being turned away for want of room is no guess.
        self._passwords.refuse_when_full()
        await self._lockout.attempt("login", account, address)
        found = await queries.find_login(self._db.readers, request.org_slug, email)
        password = rules.normalised_password(request.password)
        stored = found["password_hash"] if found else None
        if not await self._passwords.verify(stored, password) or found is None:
            await self._note_failed_login(request.org_slug, found)
            raise LoginFailed
        if found["org_status"] != "ACTIVE":
            raise OrgSuspended
        if found["user_status"] != "ACTIVE":
            raise UserSuspended
        reply = await self._open_session(found)
        await self._lockout.succeeded("login", account, address)
        if self._passwords.outdated(found["password_hash"]):
            await self._rehash(found, password)
        return reply

    async def _open_session(self, found: Record) -> pb.LoginResponse:
        org_id, user_id = found["org_id"], found["user_id"]
        async with self._db.tenant_tx(org_id) as tx:
            user = await queries.note_login(tx, org_id, user_id, found["password_hash"])
            if user is None:
                raise LoginFailed
            session_id, pair = await self._logins.open(tx, org_id, user_id)
            await audit.append(
                tx,
                org_id,
                "identity.Login",
                resource_type="session",
                resource_id=session_id,
                actor=_user_caller(org_id, user, session_id),
            )
            await _count_login(tx, org_id, user_id, facts.SIGN_IN_OK)
        return pb.LoginResponse(tokens=pair, user=present.user(user))

    async def _note_failed_login(self, slug: str, found: Record | None) -> None:
        """The same work for a known and an unknown user of an organisation."""
        org_id = await queries.org_by_slug(self._db.readers, slug)
        if org_id is None:
            return
        async with self._db.tenant_tx(org_id) as tx:
            await audit.append(
                tx,
                org_id,
                "identity.Login",
                resource_type="user",
                resource_id=found["user_id"] if found else "",
                outcome="REFUSED",
                reason=LoginFailed().reason_name,
            )
            user_id = found["user_id"] if found else None
            await _count_login(tx, org_id, user_id, facts.SIGN_IN_FAILED)

    async def _rehash(self, found: Record, password: str) -> None:
        fresh = await self._passwords.hash(password)
        async with self._db.tenant_tx(found["org_id"]) as tx:
            await queries.rehash(
                tx, found["org_id"], found["user_id"], found["password_hash"], fresh
            )

    async def Refresh(self, request: pb.RefreshRequest, context: object) -> pb.RefreshResponse:
        token_id = rules.refresh_token_id(request.refresh_token)
        if token_id is None:
            raise RefreshTokenInvalid
        org_id = await queries.refresh_token_org(self._db.readers, token_id)
        if org_id is None:
            raise RefreshTokenInvalid
        async with self._db.tenant_tx(org_id) as tx:
            found = await self._logins.refresh(tx, org_id, token_id, request.refresh_token)
            if isinstance(found, Reused):
                await sessions.audit_reuse(tx, org_id, found.session_id)
        if isinstance(found, Reused):
            await self._revoked(TOPIC_CREDENTIAL, found.session_id)
            raise RefreshTokenReused
        return pb.RefreshResponse(tokens=found)

    async def Logout(self, request: pb.LogoutRequest, context: object) -> pb.LogoutResponse:
        who = caller()
        if who.actor_kind != "user":
            return pb.LogoutResponse()  # a key has no log-in; RevokeApiKey ends it
        async with self._db.tenant_tx(who.org_id) as tx:
            if request.all_sessions:
                ended = await queries.end_sessions(tx, who.org_id, who.actor_id, "LOGOUT")
            else:
                ended = await queries.end_session(tx, who.org_id, who.credential_id, "LOGOUT")
            await audit.append(
                tx,
                who.org_id,
                "identity.Logout",
                resource_type="session",
                resource_id=who.credential_id,
                details={"sessions_ended": str(ended)},
            )
        if request.all_sessions:
            await self._revoked(TOPIC_USER, who.actor_id)
        else:
            await self._revoked(TOPIC_CREDENTIAL, who.credential_id)
        return pb.LogoutResponse(sessions_ended=ended)

    async def WhoAmI(self, request: pb.WhoAmIRequest, context: object) -> pb.WhoAmIResponse:
        who = caller()
        async with self._db.tenant_tx(who.org_id) as tx:
            org = await queries.get_org(tx, who.org_id)
            if who.actor_kind == "user":
                end = await queries.session_end(tx, who.org_id, who.credential_id)
            else:
                end = (await queries.get_key(tx, who.org_id, who.actor_id))["expires_at"]
        return pb.WhoAmIResponse(
            org_id=str(who.org_id),
            org_slug=org["slug"],
            org_display_name=org["display_name"],
            actor_kind=pb.ActorKind.Value(f"ACTOR_KIND_{who.actor_kind.upper()}"),
            actor_id=str(who.actor_id),
            actor_name=who.actor_name,
            role=present.role(who.role.name),
            expire_time=present.timestamp(end),
        )

    # -- users

    async def CreateUser(
        self, request: pb.CreateUserRequest, context: object
    ) -> pb.CreateUserResponse:
        who, email = caller(), rules.normalised_email(request.email)
        role = Role(request.role)
        if not rules.user_may_have(role):
            raise FieldInvalid(violations=[FieldViolation("role", "is for API keys only")])
        password = self._new_password(request.password, email, "password")
        password_hash = await self._passwords.hash(rules.normalised_password(password))

        async def create(tx: Executor) -> pb.CreateUserResponse:
            await self._check_user_quota(tx, who.org_id)
            user = await queries.create_user(
                tx, who.org_id, uuid7(), email, request.display_name, role.name, password_hash
            )
            await audit.append(
                tx,
                who.org_id,
                "identity.CreateUser",
                resource_type="user",
                resource_id=user["user_id"],
                details={"role": role.name},
            )
            return pb.CreateUserResponse(
                user=present.user(user), generated_password="" if request.password else password
            )

        def without_password(reply: pb.CreateUserResponse) -> pb.CreateUserResponse:
            return pb.CreateUserResponse(user=reply.user)

        return await self._write(request, pb.CreateUserResponse, create, without_password)

    async def ListUsers(
        self, request: pb.ListUsersRequest, context: object
    ) -> pb.ListUsersResponse:
        who, size = caller(), page_size(request.page_size)
        position = self._pages.open(request.page_token, request)
        async with self._db.tenant_tx(who.org_id) as tx:
            rows = await queries.list_users(
                tx,
                who.org_id,
                after_email=position[0] if position else "",
                roles=[Role(role).name for role in request.roles],
                states=[
                    pb.UserState.Name(state).removeprefix("USER_STATE_") for state in request.states
                ],
                prefix=request.prefix,
                limit=size + 1,
            )
        more = len(rows) > size
        return pb.ListUsersResponse(
            users=[present.user(row) for row in rows[:size]],
            next_page_token=self._pages.seal([rows[size - 1]["email"]], request) if more else "",
        )

    async def UpdateUser(
        self, request: pb.UpdateUserRequest, context: object
    ) -> pb.UpdateUserResponse:
        who, user_id = caller(), _uuid(request.user.user_id, "user.user_id")

        async def update(tx: Executor) -> pb.UpdateUserResponse:
            # One lock for all that counts users or administrators of the organisation.
            await queries.lock_org(tx, who.org_id)
            before = await queries.lock_user(tx, who.org_id, user_id)
            _check_etag(request.user.etag, before["version"])
            after = _changed_user(request, before)
            if before["role"] == "ADMIN" and before["status"] == "ACTIVE":
                stays = after["role"] == "ADMIN" and after["status"] == "ACTIVE"
                if not stays and not await queries.has_other_admin(tx, who.org_id, user_id):
                    raise LastAdmin
            row = await queries.update_user(tx, who.org_id, user_id, **after)
            if after["status"] == "SUSPENDED":
                await queries.end_sessions(tx, who.org_id, user_id, "USER_CHANGED")
            await audit.append(
                tx,
                who.org_id,
                "identity.UpdateUser",
                resource_type="user",
                resource_id=user_id,
                details=_user_changes(request, after),
            )
            return pb.UpdateUserResponse(user=present.user(row))

        reply = await self._write(request, pb.UpdateUserResponse, update)
        await self._revoked(TOPIC_USER, user_id)
        return reply

    async def ResetPassword(
        self, request: pb.ResetPasswordRequest, context: object
    ) -> pb.ResetPasswordResponse:
        who = caller()
        user_id = self._whose_password(request, who)
        async with self._db.tenant_tx(who.org_id) as tx:
            user = await queries.get_user(tx, who.org_id, user_id)
        if user_id == who.actor_id:
            await self._check_own_password(user_id, user["password_hash"], request)
        password = self._new_password(request.new_password, user["email"], "new_password")
        password_hash = await self._passwords.hash(rules.normalised_password(password))

        async def reset(tx: Executor) -> pb.ResetPasswordResponse:
            await queries.set_password(tx, who.org_id, user_id, password_hash)
            ended = await queries.end_sessions(tx, who.org_id, user_id, "PASSWORD_RESET")
            await audit.append(
                tx,
                who.org_id,
                "identity.ResetPassword",
                resource_type="user",
                resource_id=user_id,
                details={"sessions_ended": str(ended)},
            )
            return pb.ResetPasswordResponse(
                generated_password="" if request.new_password else password, sessions_ended=ended
            )

        def without_password(reply: pb.ResetPasswordResponse) -> pb.ResetPasswordResponse:
            return pb.ResetPasswordResponse(sessions_ended=reply.sessions_ended)

        reply = await self._write(request, pb.ResetPasswordResponse, reset, without_password)
        await self._revoked(TOPIC_USER, user_id)
        return reply

    def _whose_password(self, request: pb.ResetPasswordRequest, who: Caller) -> UUID:
        if request.user_id:
            user_id = UUID(request.user_id)
            if user_id != who.actor_id and who.role is not Role.ADMIN:
                raise PermissionDenied
            return user_id
        if who.actor_kind != "user":
            raise FieldInvalid(violations=[FieldViolation("user_id", "a key has no password")])
        return who.actor_id

    async def _check_own_password(
        self, user_id: UUID, stored: str, request: pb.ResetPasswordRequest
    ) -> None:
        """A stolen access token alone must not be enough to take the account over."""
        address = current_request().peer
        await self._lockout.attempt("password", str(user_id), address)
        given = rules.normalised_password(request.current_password)
        if not await self._passwords.verify(stored, given):
            raise PasswordMismatch
        await self._lockout.succeeded("password", str(user_id), address)

    def _new_password(self, asked: str, email: str, field: str) -> str:
        if not asked:
            return rules.base62(os.urandom(GENERATED_PASSWORD_CHARS), GENERATED_PASSWORD_CHARS)
        weakness = rules.password_weakness(rules.normalised_password(asked), email)
        if weakness is not None:
            raise PasswordTooWeak(violations=[FieldViolation(field, weakness)])
        return asked

    async def _check_user_quota(self, tx: Executor, org_id: UUID) -> None:
        quotas = await self._locked_quotas(tx, org_id)
        if await queries.count_users(tx, org_id) >= quotas.users:
            raise UserQuotaReached(quota=[QuotaViolation("users", f"at most {quotas.users}")])

    # -- API keys

    async def CreateApiKey(
        self, request: pb.CreateApiKeyRequest, context: object
    ) -> pb.CreateApiKeyResponse:
        who, role = caller(), Role(request.role)
        expires_at = (
            request.expire_time.ToDatetime(tzinfo=UTC) if request.HasField("expire_time") else None
        )

        async def create(tx: Executor) -> pb.CreateApiKeyResponse:
            quotas = await self._locked_quotas(tx, who.org_id)
            if await queries.count_keys(tx, who.org_id) >= quotas.api_keys:
                limit = QuotaViolation("api_keys", f"at most {quotas.api_keys}")
                raise ApiKeyQuotaReached(quota=[limit])
            key_id = uuid7()
            await queries.create_key(
                tx,
                who.org_id,
                key_id,
                display_name=request.display_name,
                role=role.name,
                expires_at=expires_at,
                created_by=who.actor_id,
            )
            secret = await add_secret(tx, who.org_id, key_id, self._peppers)
            await self._audit_key(tx, "identity.CreateApiKey", key_id, {"role": role.name})
            row = await queries.get_key(tx, who.org_id, key_id)
            return pb.CreateApiKeyResponse(api_key=present.api_key(row), secret=secret)

        def without_secret(reply: pb.CreateApiKeyResponse) -> pb.CreateApiKeyResponse:
            return pb.CreateApiKeyResponse(api_key=reply.api_key)

        return await self._write(request, pb.CreateApiKeyResponse, create, without_secret)

    async def ListApiKeys(
        self, request: pb.ListApiKeysRequest, context: object
    ) -> pb.ListApiKeysResponse:
        who, size = caller(), page_size(request.page_size)
        position = self._pages.open(request.page_token, request)
        async with self._db.tenant_tx(who.org_id) as tx:
            rows = await queries.list_keys(
                tx,
                who.org_id,
                before=UUID(position[0]) if position else None,
                show_revoked=request.show_revoked,
                limit=size + 1,
            )
        more = len(rows) > size
        return pb.ListApiKeysResponse(
            api_keys=[present.api_key(row) for row in rows[:size]],
            next_page_token=(
                self._pages.seal([rows[size - 1]["key_id"].hex], request) if more else ""
            ),
        )

    async def RotateApiKey(
        self, request: pb.RotateApiKeyRequest, context: object
    ) -> pb.RotateApiKeyResponse:
        who, key_id = caller(), UUID(request.key_id)
        overlap = request.overlap.ToTimedelta() if request.HasField("overlap") else DEFAULT_OVERLAP

        async def rotate(tx: Executor) -> pb.RotateApiKeyResponse:
            key = await queries.lock_key(tx, who.org_id, key_id)
            if key["ended"]:
                raise ApiKeyRevoked
            if overlap and len(key["prefixes"]) >= LIVE_SECRETS_MAX:
                raise ApiKeyRotating
            await queries.end_secrets(tx, who.org_id, key_id, overlap)
            secret = await add_secret(tx, who.org_id, key_id, self._peppers)
            details = {"overlap_s": str(int(overlap.total_seconds()))}
            await self._audit_key(tx, "identity.RotateApiKey", key_id, details)
            row = await queries.get_key(tx, who.org_id, key_id)
            return pb.RotateApiKeyResponse(api_key=present.api_key(row), secret=secret)

        def without_secret(reply: pb.RotateApiKeyResponse) -> pb.RotateApiKeyResponse:
            return pb.RotateApiKeyResponse(api_key=reply.api_key)

        reply = await self._write(request, pb.RotateApiKeyResponse, rotate, without_secret)
        # What is remembered of the old secret does not know yet when it ends.
        await self._revoked(TOPIC_CREDENTIAL, key_id)
        return reply

    async def RevokeApiKey(
        self, request: pb.RevokeApiKeyRequest, context: object
    ) -> pb.RevokeApiKeyResponse:
        who, key_id = caller(), UUID(request.key_id)

        async def revoke(tx: Executor) -> pb.RevokeApiKeyResponse:
            await queries.lock_key(tx, who.org_id, key_id)
            if await queries.revoke_key(tx, who.org_id, key_id):
                await self._audit_key(tx, "identity.RevokeApiKey", key_id, {})
            row = await queries.get_key(tx, who.org_id, key_id)
            return pb.RevokeApiKeyResponse(api_key=present.api_key(row))

        reply = await self._write(request, pb.RevokeApiKeyResponse, revoke)
        await self._revoked(TOPIC_CREDENTIAL, key_id)
        return reply

    async def _audit_key(
        self, tx: Executor, action: str, key_id: UUID, details: dict[str, str]
    ) -> None:
        await audit.append(
            tx,
            caller().org_id,
            action,
            resource_type="api_key",
            resource_id=key_id,
            details=details,
        )

    # -- the organisation

    async def GetOrg(self, request: pb.GetOrgRequest, context: object) -> pb.GetOrgResponse:
        who = caller()
        async with self._db.tenant_tx(who.org_id) as tx:
            return pb.GetOrgResponse(org=present.org(await queries.get_org(tx, who.org_id)))

    async def UpdateOrg(
        self, request: pb.UpdateOrgRequest, context: object
    ) -> pb.UpdateOrgResponse:
        who, wanted = caller(), request.org
        fields = set(request.update_mask.paths)

        async def update(tx: Executor) -> pb.UpdateOrgResponse:
            before = await queries.lock_org(tx, who.org_id)
            _check_etag(wanted.etag, before["version"])
            await self._check_settings(tx, wanted, fields, before)

            def value(field: str, new: str) -> str:
                return new if field in fields else before[field]

            row = await queries.update_org(
                tx,
                who.org_id,
                display_name=value("display_name", wanted.display_name),
                time_zone=value("time_zone", wanted.time_zone),
                quotas=value("quotas", org_settings.stored(wanted.quotas)),
                member_rules=value("member_rules", org_settings.stored(wanted.member_rules)),
                content_rules=value("content_rules", org_settings.stored(wanted.content_rules)),
                retention=value("retention", org_settings.stored(wanted.retention)),
            )
            await audit.append(
                tx,
                who.org_id,
                "identity.UpdateOrg",
                resource_type="org",
                resource_id=who.org_id,
                details={"changed": ",".join(sorted(fields))},
            )
            return pb.UpdateOrgResponse(org=present.org(row))

        reply = await self._write(request, pb.UpdateOrgResponse, update)
        await self._revoked(TOPIC_ORG, who.org_id)
        return reply

    async def _check_settings(
        self, tx: Executor, wanted: pb.Org, fields: set[str], before: Record
    ) -> None:
        if "display_name" in fields and not wanted.display_name.strip():
            raise _setting("org.display_name", "must not be empty")
        if "time_zone" in fields and not await queries.knows_time_zone(tx, wanted.time_zone):
            raise _setting("org.time_zone", "is not an IANA time zone")
        if "member_rules" in fields:
            try:
                self._check_member_rules(wanted.member_rules)
            except ValueError as refused:
                raise _setting("org.member_rules", str(refused)) from None
        if "quotas" in fields:
            ceilings = org_settings.parsed(before["quota_ceilings"], pb.Quotas)
            if too_high := org_settings.above_ceiling(wanted.quotas, ceilings):
                raise QuotaNotRaisable(
                    quota=[QuotaViolation(name, "above the ceiling") for name in too_high]
                )

    async def _locked_quotas(self, tx: Executor, org_id: UUID) -> pb.Quotas:
        """The quotas in force; locked, so that two cannot both take the last place."""
        org = await queries.lock_org(tx, org_id)
        given = org_settings.parsed(org["quotas"], pb.Quotas)
        return org_settings.in_force(given, org_settings.QUOTA_DEFAULTS)

    # -- audit

    async def ListAuditEvents(
        self, request: pb.ListAuditEventsRequest, context: object
    ) -> pb.ListAuditEventsResponse:
        who, size = caller(), page_size(request.page_size)
        position = self._pages.open(request.page_token, request)
        async with self._db.tenant_tx(who.org_id) as tx:
            rows = await queries.list_audit(
                tx,
                who.org_id,
                from_time=_moment(request, "from_time"),
                to_time=_moment(request, "to_time"),
                actor_id=UUID(request.actor_id) if request.actor_id else None,
                action=request.action,
                resource_id=request.resource_id,
                outcomes=[
                    pb.AuditOutcome.Name(outcome).removeprefix("AUDIT_OUTCOME_")
                    for outcome in request.outcomes
                ],
                before=(
                    (datetime.fromisoformat(position[0]), UUID(position[1])) if position else None
                ),
                limit=size + 1,
            )
        token = ""
        if len(rows) > size:
            last = rows[size - 1]
            token = self._pages.seal([last["at"].isoformat(), last["audit_id"].hex], request)
        return pb.ListAuditEventsResponse(
            events=[present.audit_event(row) for row in rows[:size]], next_page_token=token
        )

    async def VerifyAudit(
        self, request: pb.VerifyAuditRequest, context: object
    ) -> pb.VerifyAuditResponse:
        who = caller()
        async with self._db.tenant_tx(who.org_id) as tx:
            verdict = await audit.verify(
                tx,
                who.org_id,
                first=request.from_sequence,
                last=request.to_sequence,
                expected_hash=request.expected_hash,
            )
            await audit.append(
                tx,
                who.org_id,
                "identity.VerifyAudit",
                resource_type="org",
                resource_id=who.org_id,
                details={"intact": str(not verdict.first_broken).lower()},
            )
        return pb.VerifyAuditResponse(
            intact=not verdict.first_broken,
            events_checked=verdict.checked,
            first_broken_sequence=verdict.first_broken,
            head_sequence=verdict.head_sequence,
            head_hash=verdict.head_hash,
            unsealed_events=verdict.unsealed,
        )

    # -- shared by the writes

    async def _write(
        self,
        request: Write,
        reply_type: type[Reply],
        produce: Callable[[Executor], Awaitable[Reply]],
        remembered: Callable[[Reply], Reply] | None = None,
    ) -> Reply:
        async with self._db.tenant_tx(caller().org_id) as tx:
            return await once(
                tx,
                request,
                reply_type,
                lambda: produce(tx),
                remembered=remembered,
                # Requests may hold passwords, and a plain digest of one could be guessed against.
                digest=lambda content: self._peppers.digest(_PURPOSE_REQUEST, content),
            )

    async def _revoked(self, topic: str, identifier: UUID) -> None:
        """After commit: every process drops what it remembers."""
        if self._link is not None:
            await self._link.publish(topic, str(identifier))


async def add_secret(tx: Executor, org_id: UUID, key_id: UUID, peppers: Peppers) -> str:
    prefix, secret = rules.api_key(os.urandom(48))
    digest = peppers.digest(PURPOSE_API_KEY, secret.encode())
    await queries.create_secret(tx, org_id, key_id, prefix, digest)
    return secret


async def _count_login(tx: Executor, org_id: UUID, user_id: UUID | None, outcome: str) -> None:
    await facts.append(tx, org_id, [facts.Fact("SIGN_IN", datetime.now(UTC), user_id, outcome)])


def _user_caller(org_id: UUID, user: Record, session_id: UUID) -> Caller:
    return Caller(
        org_id=org_id,
        actor_id=user["user_id"],
        actor_kind="user",
        role=Role[user["role"]],
        credential_id=session_id,
        actor_name=user["display_name"],
    )


def _changed_user(request: pb.UpdateUserRequest, before: Record) -> dict[str, str]:
    after = {field: before[field] for field in ("email", "display_name", "role", "status")}
    wanted = request.user
    for field in request.update_mask.paths:
        match field:
            case "email":
                after["email"] = rules.normalised_email(wanted.email)
                if not after["email"]:
                    raise _field("user.email", "must not be empty")
            case "display_name":
                after["display_name"] = wanted.display_name
                if not wanted.display_name.strip():
                    raise _field("user.display_name", "must not be empty")
            case "role":
                if wanted.role == policy_pb2.ROLE_UNSPECIFIED:
                    raise _field("user.role", "must be given")
                if not rules.user_may_have(Role(wanted.role)):
                    raise _field("user.role", "is for API keys only")
                after["role"] = Role(wanted.role).name
            case "state":
                if wanted.state == pb.USER_STATE_UNSPECIFIED:
                    raise _field("user.state", "must be given")
                after["status"] = pb.UserState.Name(wanted.state).removeprefix("USER_STATE_")
            case _:
                raise _field("update_mask", "names a field that cannot be changed")
    return after


def _user_changes(request: pb.UpdateUserRequest, after: dict[str, str]) -> dict[str, str]:
    """Which fields changed; the new value only where it says nothing about the person."""
    changes = {"changed": ",".join(sorted(set(request.update_mask.paths)))}
    if "role" in request.update_mask.paths:
        changes["role"] = after["role"]
    if "state" in request.update_mask.paths:
        changes["state"] = after["status"]
    return changes


def _check_etag(given: str, version: int) -> None:
    if given and given != present.etag(version):
        raise EtagMismatch


def _uuid(text: str, field: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise _field(field, "must be a UUID") from None


def _moment(request: pb.ListAuditEventsRequest, field: str) -> datetime | None:
    if not request.HasField(field):  # type: ignore[arg-type]
        return None
    moment: datetime = getattr(request, field).ToDatetime(tzinfo=UTC)
    return moment


def _field(field: str, description: str) -> FieldInvalid:
    return FieldInvalid(violations=[FieldViolation(field, description)])


def _setting(field: str, description: str) -> OrgSettingInvalid:
    return OrgSettingInvalid(violations=[FieldViolation(field, description)])
