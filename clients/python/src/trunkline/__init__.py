"""The Trunkline client: `Client` blocks, `AsyncClient` does not; both are the same otherwise.

The generated messages are in `trunkline.api`; the ones callers meet most are in `trunkline.types`.
"""

from trunkline._async.client import AsyncClient
from trunkline._shared.credentials import Login
from trunkline._shared.version import VERSION
from trunkline._sync.client import Client
from trunkline.errors import *  # noqa: F403
from trunkline.errors import __all__ as _errors

__version__ = VERSION

__all__ = ["AsyncClient", "Client", "Login", "__version__", *_errors]
