"""What can go wrong, as a tree: catch as broadly or as narrowly as you like.

Every error says what happened (`str(error)`), why for programs (`reason`, a name of the contract's
reasons), what to do (`remedy`), and which call it was (`request_id`, for the server's operators).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from google.protobuf.any_pb2 import Any as PackedDetail
from google.rpc import error_details_pb2, status_pb2

from trunkline._shared.reasons import REMEDIES

if TYPE_CHECKING:
    from trunkline.api.errors.v1.item_error_pb2 import ItemError
    from trunkline.api.imports.v1.imports_service_pb2 import Import

__all__ = [
    "AlreadyExists",
    "Cancelled",
    "ConfigurationError",
    "Conflict",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FieldViolation",
    "FileChanged",
    "ImportFailed",
    "Interrupted",
    "Invalid",
    "JournalError",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "RateLimited",
    "ServerError",
    "TrunklineError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
]

_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field that is wrong, and how."""

    field: str
    description: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Precondition:
    """One condition that does not hold."""

    type: str
    subject: str
    description: str


class TrunklineError(Exception):
    """The root of all errors this package raises on purpose."""

    default_remedy = "Report it with the request id if it stays."

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        request_id: str = "",
        remedy: str = "",
        code: grpc.StatusCode | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        violations: Sequence[FieldViolation] = (),
        preconditions: Sequence[Precondition] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.request_id = request_id
        self.code = code
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s
        self.violations = tuple(violations)
        self.preconditions = tuple(preconditions)
        self.remedy = remedy or REMEDIES.get(reason, "") or self.default_remedy

    def __str__(self) -> str:
        fields = "; ".join(f"{v.field}: {v.description}" for v in self.violations)
        return f"{self.message.rstrip('.')} ({fields})" if fields else self.message


class Invalid(TrunklineError):
    """The request can never succeed as it is; `violations` names the fields."""

    default_remedy = "Correct the request; the same one will always fail."


class OutOfRange(Invalid):
    """A position, date or checkpoint outside of what there is."""

    default_remedy = "Ask for something inside the range."


class Unauthenticated(TrunklineError):
    """The credential is missing, wrong or no longer valid."""

    default_remedy = "Log in again or use another key."


class PermissionDenied(TrunklineError):
    """The credential is good and its role or organisation may not do this."""

    default_remedy = "Use a credential with another role, or ask an administrator."


class NotFound(TrunklineError):
    """The organisation has no such thing."""

    default_remedy = "Check the id."


class Conflict(TrunklineError):
    """Somebody else was there first: another etag, another stream, another value."""

    default_remedy = "Read it again and repeat the change."


class AlreadyExists(Conflict):
    """The thing, or another request under the same request id, exists."""

    default_remedy = "Use what exists, or another name."


class FailedPrecondition(TrunklineError):
    """The state of things does not allow this; `preconditions` says what must hold."""

    default_remedy = "Bring about the state that is needed first."


class RateLimited(TrunklineError):
    """A quota or rate limit; wait `retry_after_s` if it is set."""

    default_remedy = "Wait and repeat it."


class Unavailable(TrunklineError):
    """No server answered, or it cannot now. Repeating later may work."""

    default_remedy = "Try again in a moment."


class DeadlineExceeded(TrunklineError):
    """No answer in time. A write may have happened."""

    default_remedy = "Repeat it with a longer timeout_s; a write with the same request_id."


class Cancelled(TrunklineError):
    """The call was cancelled."""

    default_remedy = "Repeat it if its outcome matters."


class Unimplemented(TrunklineError):
    """The server does not offer this."""

    default_remedy = "Check that address and server version are the right ones."


class ServerError(TrunklineError):
    """The server failed; `metadata["incident"]` finds the failure in its log."""

    default_remedy = "Try again; report the incident id if it stays."


class ConfigurationError(TrunklineError):
    """Profile, environment or arguments do not say what is needed."""

    default_remedy = "Correct the configuration."


class FileChanged(TrunklineError):
    """The file on disk is not the one whose upload was begun."""

    default_remedy = "Upload it anew: its first upload can only be continued with the same bytes."


class JournalError(TrunklineError):
    """The journal beside the file could not be written or read."""

    default_remedy = "Make room or make the folder writable, or upload without a journal."


class Interrupted(TrunklineError):
    """An upload stopped before its end and can be continued."""

    default_remedy = "Start the same upload again: it continues where it stopped."


class ImportFailed(TrunklineError):
    """An import ended without success, or with rejected rows nobody allowed.

    `import_` is its last state; its rejects can be listed with the import's id.
    """

    default_remedy = "Look at its rejects, correct the rows and import them with parent_import_id."

    def __init__(
        self, message: str, import_: Import, *, reason: str = "", remedy: str = ""
    ) -> None:
        super().__init__(message, reason=reason, remedy=remedy)
        self.import_ = import_


_BY_CODE: dict[grpc.StatusCode, type[TrunklineError]] = {
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.UNKNOWN: ServerError,
    grpc.StatusCode.INVALID_ARGUMENT: Invalid,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: RateLimited,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRange,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
    grpc.StatusCode.INTERNAL: ServerError,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DATA_LOSS: ServerError,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
}
_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in _BY_CODE}

# What a transport says when the two ends do not speak the same language, and what to do.
_TRANSPORT_SIGNS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("WRONG_VERSION_NUMBER", "wrong version number", "HTTP_REQUEST"),
        "The server at {address} does not speak TLS.",
        "Use tls=False (or http:// in the address) if this server is meant to be without.",
    ),
    (
        ("CERTIFICATE_VERIFY_FAILED", "certificate verify failed"),
        "The certificate of {address} is not trusted.",
        "Name its authority with ca_file, or check the host name in the address.",
    ),
    (
        ("http1.x server", "Trying to connect an http1"),
        "What listens at {address} is not a gRPC server.",
        "Check the port; trunklined listens on 7443 unless told otherwise.",
    ),
    (
        ("Connection refused", "connection refused"),
        "Nothing listens at {address}.",
        "Check host and port, and that the server runs: trunklined serve.",
    ),
    (
        ("DNS resolution failed", "Name or service not known", "lookup error"),
        "The host of {address} is not known.",
        "Check the spelling of the address.",
    ),
    (
        ("Socket closed", "socket closed", "Connection reset", "handshake", "HANDSHAKE"),
        "The connection to {address} was closed by the other side.",
        "Check the port and whether the server expects TLS (https:// in the address); "
        "if it was a restart, try again.",
    ),
)


def from_grpc(error: grpc.RpcError, address: str, call_id: str = "") -> TrunklineError:
    """The error of this tree for what grpc raised."""
    code = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
    message = (error.details() if hasattr(error, "details") else None) or code.name
    trailers = _trailers(error)
    status = _status(trailers)
    if status is None:
        return _from_transport(code, message, address, call_id)
    found = _Details(status.details)
    return _BY_CODE.get(code, ServerError)(
        status.message or message,
        code=code,
        request_id=call_id,
        reason=found.reason,
        metadata=found.metadata,
        retry_after_s=found.retry_after_s,
        violations=found.violations,
        preconditions=found.preconditions,
    )


def from_item(item: ItemError) -> TrunklineError:
    """The error of this tree for one item of a batch or stream."""
    from trunkline.api.errors.v1.reason_pb2 import Reason

    code = _BY_NUMBER.get(item.code, grpc.StatusCode.UNKNOWN)
    try:
        reason = Reason.Name(item.reason).removeprefix("REASON_")
    except ValueError:
        reason = ""  # a reason of a newer server: the code still tells what kind it is
    return _BY_CODE.get(code, ServerError)(
        item.message or reason,
        code=code,
        reason=reason,
        violations=[FieldViolation(f.field, f.description) for f in item.fields],
    )


def _from_transport(
    code: grpc.StatusCode, message: str, address: str, call_id: str
) -> TrunklineError:
    for signs, text, remedy in _TRANSPORT_SIGNS:
        if code is grpc.StatusCode.UNAVAILABLE and any(sign in message for sign in signs):
            return Unavailable(
                text.format(address=address), code=code, remedy=remedy, request_id=call_id
            )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        message = f"No answer from {address} in time."
    return _BY_CODE.get(code, ServerError)(message, code=code, request_id=call_id)


def _trailers(error: grpc.RpcError) -> dict[str, str | bytes]:
    read = getattr(error, "trailing_metadata", None)
    return dict(read() or ()) if read else {}


def _status(trailers: Mapping[str, str | bytes]) -> status_pb2.Status | None:
    packed = trailers.get(_DETAILS_KEY)
    if not isinstance(packed, bytes):
        return None
    return status_pb2.Status.FromString(packed)


class _Details:
    """The google.rpc details we know."""

    def __init__(self, packed: Iterable[PackedDetail]) -> None:
        self.reason = ""
        self.metadata: dict[str, str] = {}
        self.retry_after_s: float | None = None
        self.violations: list[FieldViolation] = []
        self.preconditions: list[Precondition] = []
        for detail in packed:
            self._read(detail)

    def _read(self, detail: PackedDetail) -> None:
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        failed = error_details_pb2.PreconditionFailure()
        if detail.Unpack(info):
            self.reason, self.metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            self.violations = [
                FieldViolation(v.field, v.description, v.reason) for v in bad.field_violations
            ]
        elif detail.Unpack(retry):
            self.retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
        elif detail.Unpack(failed):
            self.preconditions = [
                Precondition(v.type, v.subject, v.description) for v in failed.violations
            ]
