"""Exit codes, and errors on one line with the remedy."""

from enum import IntEnum

from trunkline import errors


class Exit(IntEnum):
    """What `$?` says; the names are in the help."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_ALLOWED = 3
    NOT_FOUND = 4
    REFUSED = 5
    TRY_LATER = 6
    IMPORT_FAILED = 7
    INTERRUPTED = 8
    NOT_ELIGIBLE = 9
    CTRL_C = 130


MEANINGS = {
    Exit.DONE: "done",
    Exit.FAILED: "the server or this program failed",
    Exit.USAGE: "wrong usage or configuration",
    Exit.NOT_ALLOWED: "not logged in, or the role may not do this",
    Exit.NOT_FOUND: "there is no such thing",
    Exit.REFUSED: "the request is not valid, or conflicts with what is there",
    Exit.TRY_LATER: "no server, no answer in time, or too many requests: try again later",
    Exit.IMPORT_FAILED: "the import failed or rejected rows",
    Exit.INTERRUPTED: "an upload stopped and can be continued",
    Exit.NOT_ELIGIBLE: "members validate: not eligible, not found or to be checked",
    Exit.CTRL_C: "interrupted from the keyboard",
}

_BY_ERROR: tuple[tuple[tuple[type[errors.TrunklineError], ...], Exit], ...] = (
    ((errors.ConfigurationError,), Exit.USAGE),
    ((errors.Unauthenticated, errors.PermissionDenied), Exit.NOT_ALLOWED),
    ((errors.NotFound,), Exit.NOT_FOUND),
    ((errors.ImportFailed,), Exit.IMPORT_FAILED),
    ((errors.Interrupted,), Exit.INTERRUPTED),
    ((errors.Unavailable, errors.DeadlineExceeded, errors.RateLimited), Exit.TRY_LATER),
    (
        (
            errors.Invalid,
            errors.Conflict,
            errors.FailedPrecondition,
            errors.FileChanged,
            errors.JournalError,
        ),
        Exit.REFUSED,
    ),
)


def exit_of(error: errors.TrunklineError) -> Exit:
    for kinds, code in _BY_ERROR:
        if isinstance(error, kinds):
            return code
    return Exit.FAILED


def line_of(error: errors.TrunklineError) -> str:
    """One line: what happened, what to do, and what to quote to the server's operators."""
    parts = [f"{str(error).rstrip('.')}.", error.remedy]
    if error.retry_after_s:
        parts.append(f"Retry after {error.retry_after_s:g} s.")
    # Without a reason no server has answered that could find the request's id in its log.
    quoted = [error.reason, error.metadata.get("incident", ""), error.reason and error.request_id]
    tail = " ".join(part for part in quoted if part)
    text = " ".join((*parts, f"[{tail}]" if tail else ""))
    return " ".join(text.split())
