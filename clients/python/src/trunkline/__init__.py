"""The Trunkline client: `Client` blocks, `AsyncClient` does not; both are the same otherwise.

The generated messages are in `trunkline.api`; the ones callers meet most are in `trunkline.types`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from trunkline._shared.credentials import Login
from trunkline._shared.version import VERSION
from trunkline.errors import (
    AlreadyExists,
    Cancelled,
    ConfigurationError,
    Conflict,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    FileChanged,
    ImportFailed,
    Interrupted,
    Invalid,
    JournalError,
    NotFound,
    OutOfRange,
    PermissionDenied,
    RateLimited,
    ServerError,
    TrunklineError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)

if TYPE_CHECKING:
    from trunkline._async.client import AsyncClient
    from trunkline._sync.client import Client

__version__ = VERSION

__all__ = [
    "AlreadyExists",
    "AsyncClient",
    "Cancelled",
    "Client",
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
    "Login",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "RateLimited",
    "ServerError",
    "TrunklineError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "__version__",
]


_CLIENTS = {"AsyncClient": "trunkline._async.client", "Client": "trunkline._sync.client"}


def __getattr__(name: str) -> object:
    """Loads the one of the two clients that is asked for: nobody pays for both."""
    if name in _CLIENTS:
        return getattr(import_module(_CLIENTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
