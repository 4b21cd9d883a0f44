"""What IdentityService refuses, and why. No text tells which part of a secret is wrong."""

from trunkline.api.errors.v1 import reason_pb2
from trunkline_server import errors


class AccessTokenExpired(errors.Unauthenticated):
    reason = reason_pb2.REASON_ACCESS_TOKEN_EXPIRED
    text = "The access token has expired; call Refresh."


class LoginFailed(errors.Unauthenticated):
    reason = reason_pb2.REASON_LOGIN_FAILED
    text = "Organisation, e-mail address and password do not belong together."


class LoginLocked(errors.RateLimited):
    reason = reason_pb2.REASON_LOGIN_LOCKED
    text = "Too many failed attempts from this address; wait."


class LoginBusy(errors.Unavailable):
    reason = reason_pb2.REASON_LOGIN_BUSY
    text = "More log-ins are waiting than can be answered in time."


class RefreshTokenInvalid(errors.Unauthenticated):
    reason = reason_pb2.REASON_REFRESH_TOKEN_INVALID
    text = "The refresh token is not valid; log in again."


class RefreshTokenReused(errors.Unauthenticated):
    reason = reason_pb2.REASON_REFRESH_TOKEN_REUSED
    text = "The refresh token was used a second time; its log-in was ended."


class OrgSuspended(errors.PermissionDenied):
    reason = reason_pb2.REASON_ORG_SUSPENDED
    text = "The organisation is suspended."


class UserSuspended(errors.PermissionDenied):
    reason = reason_pb2.REASON_USER_SUSPENDED
    text = "The user is suspended."


class UserNotFound(errors.NotFound):
    reason = reason_pb2.REASON_USER_NOT_FOUND
    text = "There is no such user."


class UserEmailTaken(errors.AlreadyExists):
    reason = reason_pb2.REASON_USER_EMAIL_TAKEN
    text = "A user of the organisation has this e-mail address."


class UserQuotaReached(errors.RateLimited):
    reason = reason_pb2.REASON_USER_QUOTA_REACHED
    text = "The organisation has as many users as its quota allows."


class LastAdmin(errors.FailedPrecondition):
    reason = reason_pb2.REASON_LAST_ADMIN
    text = "The organisation would be left without an active administrator."


class PasswordTooWeak(errors.Invalid):
    reason = reason_pb2.REASON_PASSWORD_TOO_WEAK
    text = "The password is too weak."


class PasswordMismatch(errors.PermissionDenied):
    reason = reason_pb2.REASON_PASSWORD_MISMATCH
    text = "The current password is not right."


class ApiKeyNotFound(errors.NotFound):
    reason = reason_pb2.REASON_API_KEY_NOT_FOUND
    text = "There is no such API key."


class ApiKeyRevoked(errors.FailedPrecondition):
    reason = reason_pb2.REASON_API_KEY_REVOKED
    text = "The API key was revoked or has expired."


class ApiKeyRotating(errors.FailedPrecondition):
    reason = reason_pb2.REASON_API_KEY_ROTATING
    text = "The API key has two live secrets already."


class ApiKeyQuotaReached(errors.RateLimited):
    reason = reason_pb2.REASON_API_KEY_QUOTA_REACHED
    text = "The organisation has as many API keys as its quota allows."


class OrgNotFound(errors.NotFound):
    reason = reason_pb2.REASON_ORG_NOT_FOUND
    text = "There is no such organisation."


class OrgSettingInvalid(errors.Invalid):
    reason = reason_pb2.REASON_ORG_SETTING_INVALID
    text = "A setting of the organisation is not usable."


class QuotaNotRaisable(errors.PermissionDenied):
    reason = reason_pb2.REASON_QUOTA_NOT_RAISABLE
    text = "A quota may not be raised above what the operator allows."


class EtagMismatch(errors.Aborted):
    reason = reason_pb2.REASON_ETAG_MISMATCH
    text = "It was changed since it was read; read it again."


class FieldInvalid(errors.Invalid):
    reason = reason_pb2.REASON_INVALID_FIELD
