# Made from clients/python/src/trunkline/_async/identity.py by tools/unasync.py: change that one.
"""Organisations, users and API keys, and the audit log: `client.identity`."""

from collections.abc import Sequence
from datetime import timedelta

from trunkline._shared.enums import value_of
from trunkline._shared.requests import Time, duration, mask, new_request_id, timestamp
from trunkline._sync.pages import Pager
from trunkline._sync.session import Session
from trunkline.api.identity.v1 import identity_service_pb2 as pb
from trunkline.api.identity.v1 import identity_service_pb2_grpc as stubs
from trunkline.api.options.v1.policy_pb2 import Role

_SERVICE = pb.DESCRIPTOR.services_by_name["IdentityService"]


class Identity:
    """Who may do what. The organisation always comes from the credential."""

    def __init__(self, session: Session) -> None:
        stub: stubs.IdentityServiceStub = stubs.IdentityServiceStub(session.channel)
        methods = session.methods(_SERVICE)
        self._login = methods.unary(stub.Login, "Login")
        self._logout = methods.unary(stub.Logout, "Logout")
        self._who_am_i = methods.unary(stub.WhoAmI, "WhoAmI")
        self._create_user = methods.unary(stub.CreateUser, "CreateUser")
        self._list_users = methods.unary(stub.ListUsers, "ListUsers")
        self._update_user = methods.unary(stub.UpdateUser, "UpdateUser")
        self._reset_password = methods.unary(stub.ResetPassword, "ResetPassword")
        self._create_api_key = methods.unary(stub.CreateApiKey, "CreateApiKey")
        self._list_api_keys = methods.unary(stub.ListApiKeys, "ListApiKeys")
        self._rotate_api_key = methods.unary(stub.RotateApiKey, "RotateApiKey")
        self._revoke_api_key = methods.unary(stub.RevokeApiKey, "RevokeApiKey")
        self._get_org = methods.unary(stub.GetOrg, "GetOrg")
        self._update_org = methods.unary(stub.UpdateOrg, "UpdateOrg")
        self._list_audit_events = methods.unary(stub.ListAuditEvents, "ListAuditEvents")
        self._verify_audit = methods.unary(stub.VerifyAudit, "VerifyAudit")

    def login(
        self, org_slug: str, email: str, password: str, *, timeout_s: float | None = None
    ) -> pb.LoginResponse:
        """Exchange a password for tokens, to be kept by the caller. A client that shall log in
        by itself takes `login=Login(...)` instead."""
        request = pb.LoginRequest(org_slug=org_slug, email=email, password=password)
        return self._login(request, timeout_s)

    def who_am_i(self, *, timeout_s: float | None = None) -> pb.WhoAmIResponse:
        """The organisation, name and role of the credential in use."""
        return self._who_am_i(pb.WhoAmIRequest(), timeout_s)

    def logout(self, *, all_sessions: bool = False, timeout_s: float | None = None) -> int:
        """End this log-in, or all of the user's; returns how many ended."""
        request = pb.LogoutRequest(all_sessions=all_sessions)
        return (self._logout(request, timeout_s)).sessions_ended

    def create_user(
        self,
        email: str,
        display_name: str,
        role: Role.ValueType | str,
        *,
        password: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.CreateUserResponse:
        """Create a user. Without a password one is made, and returned this once."""
        request = pb.CreateUserRequest(
            request_id=request_id or new_request_id(),
            email=email,
            display_name=display_name,
            role=value_of(Role, role),
            password=password,
        )
        return self._create_user(request, timeout_s)

    def list_users(
        self,
        *,
        roles: Sequence[Role.ValueType | str] = (),
        states: Sequence[pb.UserState.ValueType | str] = (),
        prefix: str = "",
        page_size: int = 0,
        timeout_s: float | None = None,
    ) -> Pager[pb.User, pb.ListUsersResponse]:
        """The organisation's users; `prefix` is the beginning of a name or address."""
        request = pb.ListUsersRequest(
            page_size=page_size,
            roles=[value_of(Role, role) for role in roles],
            states=[value_of(pb.UserState, state) for state in states],
            prefix=prefix,
        )
        return Pager(self._list_users, request, lambda reply: reply.users, timeout_s)

    def update_user(
        self,
        user: pb.User,
        fields: Sequence[str],
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.User:
        """Change the named fields of a user: `display_name`, `role`, `state`, `email`."""
        request = pb.UpdateUserRequest(
            request_id=request_id or new_request_id(), user=user, update_mask=mask(*fields)
        )
        return (self._update_user(request, timeout_s)).user

    def reset_password(
        self,
        user_id: str = "",
        *,
        current_password: str = "",
        new_password: str = "",
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.ResetPasswordResponse:
        """Change a password. Users must give their current one; administrators need not."""
        request = pb.ResetPasswordRequest(
            request_id=request_id or new_request_id(),
            user_id=user_id,
            current_password=current_password,
            new_password=new_password,
        )
        return self._reset_password(request, timeout_s)

    def create_api_key(
        self,
        display_name: str,
        role: Role.ValueType | str,
        *,
        expire_time: Time | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.CreateApiKeyResponse:
        """Create an API key. Its secret is in this reply and nowhere else."""
        request = pb.CreateApiKeyRequest(
            request_id=request_id or new_request_id(),
            display_name=display_name,
            role=value_of(Role, role),
            expire_time=timestamp(expire_time),
        )
        return self._create_api_key(request, timeout_s)

    def list_api_keys(
        self, *, show_revoked: bool = False, page_size: int = 0, timeout_s: float | None = None
    ) -> Pager[pb.ApiKey, pb.ListApiKeysResponse]:
        """The organisation's API keys, without their secrets."""
        request = pb.ListApiKeysRequest(page_size=page_size, show_revoked=show_revoked)
        return Pager(self._list_api_keys, request, lambda reply: reply.api_keys, timeout_s)

    def rotate_api_key(
        self,
        key_id: str,
        *,
        overlap: timedelta | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.RotateApiKeyResponse:
        """Give a key a second secret; the first one stays good for `overlap`."""
        request = pb.RotateApiKeyRequest(
            request_id=request_id or new_request_id(), key_id=key_id, overlap=duration(overlap)
        )
        return self._rotate_api_key(request, timeout_s)

    def revoke_api_key(
        self, key_id: str, *, request_id: str | None = None, timeout_s: float | None = None
    ) -> pb.ApiKey:
        """End a key at once, with all its secrets."""
        request = pb.RevokeApiKeyRequest(request_id=request_id or new_request_id(), key_id=key_id)
        return (self._revoke_api_key(request, timeout_s)).api_key

    def get_org(self, *, timeout_s: float | None = None) -> pb.Org:
        """The organisation with its quotas and rules."""
        return (self._get_org(pb.GetOrgRequest(), timeout_s)).org

    def update_org(
        self,
        org: pb.Org,
        fields: Sequence[str],
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> pb.Org:
        """Change the named settings, each as a whole: `quotas`, `member_rules`, `retention`..."""
        request = pb.UpdateOrgRequest(
            request_id=request_id or new_request_id(), org=org, update_mask=mask(*fields)
        )
        return (self._update_org(request, timeout_s)).org

    def list_audit_events(
        self,
        *,
        from_time: Time | None = None,
        to_time: Time | None = None,
        actor_id: str = "",
        action: str = "",
        resource_id: str = "",
        outcomes: Sequence[pb.AuditOutcome.ValueType | str] = (),
        page_size: int = 0,
        timeout_s: float | None = None,
    ) -> Pager[pb.AuditEvent, pb.ListAuditEventsResponse]:
        """What was done in the organisation, newest first."""
        request = pb.ListAuditEventsRequest(
            page_size=page_size,
            from_time=timestamp(from_time),
            to_time=timestamp(to_time),
            actor_id=actor_id,
            action=action,
            resource_id=resource_id,
            outcomes=[value_of(pb.AuditOutcome, outcome) for outcome in outcomes],
        )
        return Pager(self._list_audit_events, request, lambda reply: reply.events, timeout_s)

    def verify_audit(
        self,
        *,
        from_sequence: int = 0,
        to_sequence: int = 0,
        expected_hash: bytes = b"",
        timeout_s: float | None = None,
    ) -> pb.VerifyAuditResponse:
        """Check that the audit log is whole, against a hash kept elsewhere if you have one."""
        request = pb.VerifyAuditRequest(
            from_sequence=from_sequence, to_sequence=to_sequence, expected_hash=expected_hash
        )
        return self._verify_audit(request, timeout_s)
