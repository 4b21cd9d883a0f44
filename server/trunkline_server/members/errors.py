"""What can be wrong with a member, as clients are told."""

from trunkline.api.errors.v1 import reason_pb2
from trunkline_server.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    Invalid,
    NotFound,
    OutOfRange,
    PermissionDenied,
    RateLimited,
)


class MemberNotFound(NotFound):
    reason = reason_pb2.REASON_MEMBER_NOT_FOUND
    text = "There is no such member."


class MemberNumberTaken(AlreadyExists):
    reason = reason_pb2.REASON_MEMBER_NUMBER_TAKEN
    text = "Another member has this number."


class MemberNumberInvalid(Invalid):
    reason = reason_pb2.REASON_MEMBER_NUMBER_INVALID
    text = "The member number breaks the organisation's rules."


class MemberFieldInvalid(Invalid):
    reason = reason_pb2.REASON_MEMBER_FIELD_INVALID
    text = "A field of the member is not valid."


class MemberDatesInverted(Invalid):
    reason = reason_pb2.REASON_MEMBER_DATES_INVERTED
    text = "The member would end before it begins."


class MemberDeleted(FailedPrecondition):
    reason = reason_pb2.REASON_MEMBER_DELETED
    text = "The member is deleted. Undelete it first."


class MemberNotDeleted(FailedPrecondition):
    reason = reason_pb2.REASON_NOT_UNDELETABLE
    text = "The member is not deleted, so there is nothing to restore."


class MemberChanged(Aborted):
    reason = reason_pb2.REASON_ETAG_MISMATCH
    text = "The member was changed since it was read."


class AsOfOutOfRange(OutOfRange):
    reason = reason_pb2.REASON_AS_OF_OUT_OF_RANGE
    text = "The as_of date is outside of what can be answered."


class MemberQuotaReached(RateLimited):
    reason = reason_pb2.REASON_MEMBER_QUOTA_REACHED
    text = "The organisation has as many members as its quota allows."


class AttributesTooLarge(Invalid):
    reason = reason_pb2.REASON_MEMBER_ATTRIBUTES_TOO_LARGE
    text = "The attributes are too many or too large together."


class EnumerationSuspected(PermissionDenied):
    reason = reason_pb2.REASON_ENUMERATION_SUSPECTED
    text = "Validation was stopped: the look-ups resemble a search for valid numbers."


class GuardNotFound(NotFound):
    reason = reason_pb2.REASON_VALIDATION_GUARD_NOT_FOUND
    text = "No validation guard holds this actor."


class KeyRepeated(Invalid):
    reason = reason_pb2.REASON_VALIDATION_KEY_REPEATED
    text = "Two questions have the same key."
