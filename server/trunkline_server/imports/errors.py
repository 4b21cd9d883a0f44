"""What can be wrong with an import, as clients are told; and the same inside of a message."""

from __future__ import annotations

from uuid import UUID

from trunkline.api.errors.v1 import reason_pb2
from trunkline.api.errors.v1.item_error_pb2 import FieldError, ItemError
from trunkline_server.errors import (
    Aborted,
    AlreadyExists,
    AppError,
    FailedPrecondition,
    FieldViolation,
    Invalid,
    NotFound,
    OutOfRange,
    Precondition,
    RateLimited,
    Resource,
)
from trunkline_server.imports.rules import FileCode, FileRefused


class ImportNotFound(NotFound):
    reason = reason_pb2.REASON_IMPORT_NOT_FOUND
    text = "The organisation has no such import."


class WaitingListFull(RateLimited):
    reason = reason_pb2.REASON_IMPORT_QUEUE_FULL
    text = "The organisation's waiting list of imports is full."


class UploadsLimited(RateLimited):
    reason = reason_pb2.REASON_IMPORT_UPLOADS_LIMITED
    text = "The user created more uploads than the limit allows."


class FileTooLarge(FailedPrecondition):
    reason = reason_pb2.REASON_IMPORT_FILE_TOO_LARGE
    text = "The file is larger than the limit."


class TooManyColumns(FailedPrecondition):
    reason = reason_pb2.REASON_IMPORT_TOO_MANY_COLUMNS
    text = "The file has more columns than the limit."


class TooManyRows(FailedPrecondition):
    reason = reason_pb2.REASON_IMPORT_TOO_MANY_ROWS
    text = "The file has more rows than the limit."


class SameFile(AlreadyExists):
    reason = reason_pb2.REASON_IMPORT_SAME_FILE
    text = "The same file was imported before."

    @classmethod
    def as_import(cls, first: UUID) -> SameFile:
        return cls(
            metadata={"import_id": str(first)}, resource=Resource("trunkline.Import", str(first))
        )


class SpecInvalid(Invalid):
    reason = reason_pb2.REASON_IMPORT_SPEC_INVALID
    text = "The import's specification contradicts itself."

    @classmethod
    def at(cls, field: str, description: str) -> SpecInvalid:
        return cls(violations=[FieldViolation(f"spec.{field}", description)])


class ParentInvalid(FailedPrecondition):
    reason = reason_pb2.REASON_IMPORT_PARENT_INVALID
    text = "The parent import has not ended, or is not one of the organisation."


class HeaderInvalid(Invalid):
    reason = reason_pb2.REASON_IMPORT_HEADER_INVALID
    text = "The header line cannot be used."


class NotCsv(Invalid):
    reason = reason_pb2.REASON_IMPORT_NOT_CSV
    text = "The file is not CSV text in UTF-8."


class DialectUnknown(Invalid):
    reason = reason_pb2.REASON_IMPORT_DIALECT_UNKNOWN
    text = "The delimiter or the line ends could not be told from the first line."


class FileEmpty(Invalid):
    reason = reason_pb2.REASON_IMPORT_FILE_EMPTY
    text = "The file is empty."


class LineEndless(Invalid):
    reason = reason_pb2.REASON_IMPORT_LINE_ENDLESS
    text = "The file has a line longer than the limit where the header should end."


class ContentDiffers(FailedPrecondition):
    reason = reason_pb2.REASON_IMPORT_CONTENT_DIFFERS
    text = "The bytes differ from those stored under the same offsets."


class OffsetGap(OutOfRange):
    reason = reason_pb2.REASON_IMPORT_OFFSET_GAP
    text = "The chunk begins after the bytes that are stored."

    @classmethod
    def expected(cls, offset: int) -> OffsetGap:
        return cls(
            f"{cls.text[:-1]}; continue at {offset}.", metadata={"expected_offset": str(offset)}
        )


class SendLimitPassed(FailedPrecondition):
    reason = reason_pb2.REASON_IMPORT_SEND_LIMIT_PASSED
    text = "The chunk reaches past the granted send_limit."


class DigestMismatch(FailedPrecondition):
    reason = reason_pb2.REASON_IMPORT_DIGEST_MISMATCH
    text = "A digest does not match the bytes received."


class FileDigestMismatch(DigestMismatch):
    """Of the whole file: what is stored is not the caller's file."""

    text = "The file's digest does not match the bytes received."


class SizeMismatch(FailedPrecondition):
    reason = reason_pb2.REASON_IMPORT_SIZE_MISMATCH
    text = "Fewer or more bytes arrived than was promised."


class UploadFinished(FailedPrecondition):
    reason = reason_pb2.REASON_IMPORT_UPLOAD_FINISHED
    text = "The upload is finished and takes no more bytes."


class TakenOver(Aborted):
    reason = reason_pb2.REASON_IMPORT_UPLOAD_TAKEN_OVER
    text = "A newer stream took over this upload."


class Stalled(Aborted):
    reason = reason_pb2.REASON_IMPORT_UPLOAD_STALLED
    text = "No byte was received for too long; open again and continue at persisted_bytes."


class UploadExpired(NotFound):
    reason = reason_pb2.REASON_IMPORT_UPLOAD_EXPIRED
    text = "The upload was not finished in time and its bytes are gone."


class ContentExpired(NotFound):
    reason = reason_pb2.REASON_IMPORT_CONTENT_EXPIRED
    text = "The file or the rejects of this import are past their retention."


class PlanStale(FailedPrecondition):
    reason = reason_pb2.REASON_IMPORT_PLAN_STALE
    text = "The import has another plan by now, or none."


class SyncFuse(FailedPrecondition):
    reason = reason_pb2.REASON_IMPORT_SYNC_FUSE
    text = "Confirm exactly as many terminations as the plan has."


class TooManyRejects(FailedPrecondition):
    reason = reason_pb2.REASON_IMPORT_TOO_MANY_REJECTS
    text = "More rows were rejected than the specification allows."


class ImportDead(Aborted):
    reason = reason_pb2.REASON_IMPORT_DEAD
    text = "The import failed again and again and was given up."


class NotUndoable(FailedPrecondition):
    reason = reason_pb2.REASON_IMPORT_NOT_UNDOABLE
    text = "The import cannot be undone: it changed nothing, or its history is no longer kept."


class StateForbids(FailedPrecondition):
    reason = reason_pb2.REASON_IMPORT_STATE
    text = "The import's state does not allow this."

    @classmethod
    def found(cls, state: str, allowed: str) -> StateForbids:
        told = f"The import is {state}; this needs {allowed}."
        return cls(told, preconditions=[Precondition("IMPORT_STATE", state, told)])


class OpenMissing(Invalid):
    reason = reason_pb2.REASON_INVALID_FIELD
    text = "The first message must be Open, and only the first."

    @classmethod
    def here(cls) -> OpenMissing:
        return cls(violations=[FieldViolation("open", "first and once")])


_FILE_ERRORS: dict[FileCode, type[AppError]] = {
    FileCode.EMPTY: FileEmpty,
    FileCode.ZIP: NotCsv,
    FileCode.XLSX: NotCsv,
    FileCode.XLS: NotCsv,
    FileCode.GZIP: NotCsv,
    FileCode.PDF: NotCsv,
    FileCode.UTF16: NotCsv,
    FileCode.BARE_CR: DialectUnknown,
    FileCode.DELIMITER: DialectUnknown,
    FileCode.HEADER_TOO_LONG: LineEndless,
    FileCode.LINE_ENDLESS: LineEndless,
    FileCode.TOO_MANY_COLUMNS: TooManyColumns,
    FileCode.TOO_MANY_ROWS: TooManyRows,
}


def of_file(refused: FileRefused) -> AppError:
    """The file's own fault, as a status. The worker stores the same as the import's problem."""
    error = _FILE_ERRORS.get(refused.code, HeaderInvalid)
    violation = FieldViolation(refused.subject or "file", str(refused), str(refused.code))
    return error(str(refused), violations=[violation])


def item(error: AppError) -> ItemError:
    """The status, inside of a message."""
    return ItemError(
        code=error.code.value[0],
        reason=error.reason,
        message=error.message,
        fields=[FieldError(field=v.field, description=v.description) for v in error.violations],
    )


# The file is at fault, whichever stream brings it: the import ends.
FILE_FAULTS = (
    HeaderInvalid, NotCsv, DialectUnknown, FileEmpty, LineEndless, TooManyColumns, TooManyRows,
    FileTooLarge, FileDigestMismatch, SameFile,
)  # fmt: skip
