"""The errors a client may see: code, reason, and what to do about it.

Slices subclass the generic errors and set `reason`; the wrapper turns them into a status, once.
Messages hold no personal data: they are read in logs as well as by clients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from trunkline.api.errors.v1 import reason_pb2
from trunkline.api.errors.v1.reason_pb2 import Reason

DOMAIN = "trunkline"
_PREFIX = "REASON_"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    field: str
    description: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class QuotaViolation:
    subject: str
    description: str


@dataclass(frozen=True, slots=True)
class Precondition:
    type: str
    subject: str
    description: str


@dataclass(frozen=True, slots=True)
class Resource:
    type: str
    name: str
    description: str = ""


class AppError(Exception):
    """An answer other than OK. Subclasses name the code and the reason."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    reason: ClassVar[Reason.ValueType] = reason_pb2.REASON_INTERNAL
    text: ClassVar[str] = "Something went wrong on our side."

    def __init__(
        self,
        message: str = "",
        *,
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        quota: Sequence[QuotaViolation] = (),
        preconditions: Sequence[Precondition] = (),
        resource: Resource | None = None,
    ) -> None:
        super().__init__(message or self.text)
        self.message = message or self.text
        self.retry_after_s = retry_after_s
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.quota = tuple(quota)
        self.preconditions = tuple(preconditions)
        self.resource = resource

    @property
    def reason_name(self) -> str:
        return Reason.Name(self.reason).removeprefix(_PREFIX)


class Invalid(AppError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = reason_pb2.REASON_INVALID_FIELD
    text = "The request is not valid."


class Unauthenticated(AppError):
    code = grpc.StatusCode.UNAUTHENTICATED
    reason = reason_pb2.REASON_CREDENTIAL_INVALID
    # One text for every cause: which part was wrong is for the rightful owner to know.
    text = "The credential is missing or not valid."


class PermissionDenied(AppError):
    code = grpc.StatusCode.PERMISSION_DENIED
    reason = reason_pb2.REASON_ROLE_NOT_ALLOWED
    text = "The caller's role may not do this."


class NotFound(AppError):
    code = grpc.StatusCode.NOT_FOUND
    reason = reason_pb2.REASON_UNSPECIFIED  # a subclass names it
    text = "There is no such resource."


class AlreadyExists(AppError):
    code = grpc.StatusCode.ALREADY_EXISTS
    reason = reason_pb2.REASON_UNSPECIFIED  # a subclass names it
    text = "It exists already."


class FailedPrecondition(AppError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = reason_pb2.REASON_UNSPECIFIED  # a subclass names it
    text = "The state of the resource does not allow this."


class Aborted(AppError):
    code = grpc.StatusCode.ABORTED
    reason = reason_pb2.REASON_CONFLICT
    text = "Another writer was faster; read again and repeat."


class OutOfRange(AppError):
    code = grpc.StatusCode.OUT_OF_RANGE
    reason = reason_pb2.REASON_UNSPECIFIED  # a subclass names it
    text = "The position is outside of what is there."


class RateLimited(AppError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = reason_pb2.REASON_RATE_LIMITED
    text = "Too many requests; retry after the stated time."


class TooLarge(AppError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = reason_pb2.REASON_MESSAGE_TOO_LARGE
    text = "The request is larger than allowed."


class Unavailable(AppError):
    code = grpc.StatusCode.UNAVAILABLE
    reason = reason_pb2.REASON_DEPENDENCY_UNAVAILABLE
    text = "A part of the service is not available; retry."


class DeadlineExceeded(AppError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = reason_pb2.REASON_DEADLINE_EXCEEDED
    text = "The deadline passed before the answer was ready."


class Unimplemented(AppError):
    code = grpc.StatusCode.UNIMPLEMENTED
    reason = reason_pb2.REASON_NOT_IMPLEMENTED
    text = "This server does not offer the method."


class Internal(AppError):
    """What an unknown exception becomes; the incident id leads to the log entry."""


def to_status(error: AppError) -> status_pb2.Status:
    """google.rpc.Status with every detail the error carries."""
    status = status_pb2.Status(code=error.code.value[0], message=error.message)
    for detail in _details(error):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _details(error: AppError) -> list[Message]:
    details = error_details_pb2
    found: list[Message] = [
        details.ErrorInfo(reason=error.reason_name, domain=DOMAIN, metadata=error.metadata)
    ]
    if error.violations:
        found.append(
            details.BadRequest(
                field_violations=[
                    details.BadRequest.FieldViolation(
                        field=v.field, description=v.description, reason=v.reason
                    )
                    for v in error.violations
                ]
            )
        )
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(max(0, int(error.retry_after_s * 1e9)))
        found.append(details.RetryInfo(retry_delay=delay))
    if error.quota:
        found.append(
            details.QuotaFailure(
                violations=[
                    details.QuotaFailure.Violation(subject=q.subject, description=q.description)
                    for q in error.quota
                ]
            )
        )
    if error.preconditions:
        found.append(
            details.PreconditionFailure(
                violations=[
                    details.PreconditionFailure.Violation(
                        type=p.type, subject=p.subject, description=p.description
                    )
                    for p in error.preconditions
                ]
            )
        )
    if error.resource is not None:
        found.append(
            details.ResourceInfo(
                resource_type=error.resource.type,
                resource_name=error.resource.name,
                description=error.resource.description,
            )
        )
    return found
