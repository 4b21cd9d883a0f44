"""Identifiers made in the application, so that engines without uuidv7() serve as well."""

import os
import time
from uuid import UUID

_VERSION_7 = 0x7 << 76
_VARIANT = 0b10 << 62
_RANDOM_BITS = (0xFFF << 64) | ((1 << 62) - 1)


def uuid7() -> UUID:
    """A time-ordered UUID (RFC 9562): neighbours in time are neighbours in an index."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big") & _RANDOM_BITS
    return UUID(int=(milliseconds & ((1 << 48) - 1)) << 80 | _VERSION_7 | _VARIANT | random)
