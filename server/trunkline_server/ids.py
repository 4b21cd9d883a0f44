"""Identifiers made in the application, so that engines without uuidv7() serve as well."""

import os
import threading
import time
from uuid import UUID

_VERSION_7 = 0x7 << 76
_VARIANT = 0b10 << 62
_RANDOM_MASK = (1 << 62) - 1
_NS_PER_MS = 1_000_000

_lock = threading.Lock()
_last = 0


def uuid7() -> UUID:
    """A time-ordered UUID (RFC 9562): neighbours in time are neighbours in an index.

    Those of one process grow strictly: the fraction of the millisecond takes the place of 12
    random bits, and what would be equal is counted up.
    """
    global _last
    milliseconds, rest_ns = divmod(time.time_ns(), _NS_PER_MS)
    now = milliseconds << 12 | (rest_ns << 12) // _NS_PER_MS
    with _lock:
        _last = now = max(now, _last + 1)
    random = int.from_bytes(os.urandom(8), "big") & _RANDOM_MASK
    return UUID(int=(now >> 12) << 80 | _VERSION_7 | (now & 0xFFF) << 64 | _VARIANT | random)
