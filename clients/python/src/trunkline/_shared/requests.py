"""Arguments as people write them, made into what requests hold."""

import os
import time
from datetime import UTC, date, datetime, timedelta
from typing import overload
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

Time = datetime | Timestamp
Day = date | str


def new_request_id() -> str:
    """A UUIDv7: repeats of one write share it, and a server can tell old ones by their time."""
    milliseconds = time.time_ns() // 1_000_000
    number = (milliseconds & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
    number = number & ~(0xF << 76) | 0x7 << 76
    number = number & ~(0x3 << 62) | 0x2 << 62
    return str(UUID(int=number))


@overload
def timestamp(time: Time) -> Timestamp: ...
@overload
def timestamp(time: None) -> None: ...
def timestamp(time: Time | None) -> Timestamp | None:
    """A datetime without a zone is taken for local time, as everywhere in Python."""
    if time is None or isinstance(time, Timestamp):
        return time
    made = Timestamp()
    made.FromDatetime(time.astimezone(UTC))
    return made


def day(value: Day | None) -> str:
    """YYYY-MM-DD; empty for none."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.date().isoformat()
    return value.isoformat() if isinstance(value, date) else value


def duration(value: timedelta | float | None) -> Duration | None:
    if value is None:
        return None
    made = Duration()
    made.FromTimedelta(value if isinstance(value, timedelta) else timedelta(seconds=value))
    return made


def mask(*paths: str) -> FieldMask | None:
    """None where no path is named: the server then returns everything."""
    return FieldMask(paths=paths) if paths else None
