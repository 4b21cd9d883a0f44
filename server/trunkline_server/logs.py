"""JSON logs on stderr, written so that no personal data can get in.

A line holds a fixed message, fields from an allow-list, and for an exception its type and its
frames. Texts of exceptions stay out (a driver's text holds row values), and so do strings that a
caller would have formatted into a message.
"""

from __future__ import annotations

import json
import logging
import queue
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Final, TextIO
from uuid import UUID

from trunkline_server.rpc.caller import CURRENT
from trunkline_server.traceparent import parent

QUEUE_LINES_MAX = 10_000
VALUE_CHARS_MAX = 256
FRAMES_MAX = 30
CAUSES_MAX = 4
CLOSE_TIMEOUT_S = 2.0

# Every field a log line may carry beside its message. Ids, counts, times and names of the program.
FIELDS: Final = frozenset(
    {
        "address",
        "attempt",
        "back_off_s",
        "breaker",
        "check",
        "code",
        "count",
        "dropped",
        "duration_s",
        "event",
        "exit_code",
        "file",
        "import_id",
        "in_flight",
        "incident_id",
        "job_id",
        "kind",
        "limit",
        "lost",
        "metric",
        "method",
        "migration",
        "org_id",
        "outcome",
        "partition",
        "pid",
        "pool",
        "port",
        "process_index",
        "queue",
        "reason",
        "request_id",
        "rows",
        "service",
        "signal",
        "span_id",
        "state",
        "step",
        "table",
        "task",
        "timeout_s",
        "topic",
        "trace_id",
        "version",
    }
)
_OWN: Final = ("trunkline_server", "trunkline")
# Where a foreign library's fixed words end and its values begin.
_VALUES_BEGIN = re.compile(r"[\n'\"<>\[({=]")

_log = logging.getLogger(__name__)


class Journal:
    """Writes unknown failures down under an incident id; the wrapper's only log."""

    def failure(self, method: str, incident: str, error: BaseException) -> None:
        _log.error(
            "unexpected failure",
            extra={"method": method, "incident_id": incident},
            exc_info=error,
        )


class JsonFormatter(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            "service": self._service,
            "pid": record.process,
            **_request_fields(),
        }
        for key in FIELDS & record.__dict__.keys():
            line[key] = _value(record.__dict__[key])
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = list(_errors(record.exc_info[1]))
        # ASCII only: json then escapes each control character, DEL and C1 included.
        return json.dumps(line, ensure_ascii=True, separators=(",", ":"))


def _time(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"


def _message(record: logging.LogRecord) -> str:
    """The fixed text. Values belong into fields; only numbers and ids are filled in."""
    template = str(record.msg)
    if record.name.split(".", 1)[0] not in _OWN:
        return _VALUES_BEGIN.split(template, maxsplit=1)[0].strip()[:VALUE_CHARS_MAX]
    args = record.args
    if isinstance(args, tuple) and args and all(isinstance(a, int | float | UUID) for a in args):
        return template % args
    return template[:VALUE_CHARS_MAX]


def _value(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)[:VALUE_CHARS_MAX]


def _request_fields() -> dict[str, object]:
    request = CURRENT.get(None)
    if request is None:
        return {}
    fields: dict[str, object] = {"method": request.method}
    if request.request_id:
        fields["request_id"] = _value(request.request_id)
    if request.caller is not None:
        fields["org_id"] = str(request.caller.org_id)
    if request.span is not None:
        fields["trace_id"] = request.span.trace_id
        fields["span_id"] = request.span.span_id
    elif request.traceparent and (remote := parent(request.traceparent)):
        fields["trace_id"] = remote.trace_id
    return fields


def _errors(error: BaseException) -> Iterator[dict[str, object]]:
    """The exception and its causes: type, machine-readable code, frames. Never the text."""
    seen: BaseException | None = error
    for _ in range(CAUSES_MAX):
        if seen is None:
            return
        entry: dict[str, object] = {
            "type": f"{type(seen).__module__}.{type(seen).__qualname__}",
            "frames": _frames(seen.__traceback__),
        }
        sqlstate = getattr(seen, "sqlstate", None)
        if isinstance(sqlstate, str):
            entry["sqlstate"] = sqlstate[:5]
        elif isinstance(seen, OSError) and seen.errno is not None:
            entry["errno"] = seen.errno
        yield entry
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _frames(trace: TracebackType | None) -> list[str]:
    # No source lines: looking them up reads files while a request waits.
    stack = traceback.StackSummary.extract(
        traceback.walk_tb(trace), limit=-FRAMES_MAX, lookup_lines=False
    )
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in stack]


class _Writer(threading.Thread):
    """Writes lines in its own thread: a reader of stderr that stalls must not stop the loop."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(name="log-writer", daemon=True)
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUE_LINES_MAX)
        self.dropped = 0

    def put(self, line: str) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):
                self.dropped += 1  # stderr is gone; the process is not

    def close(self, timeout_s: float) -> None:
        try:
            self._lines.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self.join(timeout_s)


class Logs(logging.Handler):
    """The root handler of a process."""

    def __init__(self, service: str, stream: TextIO) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter(service))
        self._writer = _Writer(stream)
        self._writer.start()

    @property
    def dropped(self) -> int:
        """Lines lost because nobody reads stderr."""
        return self._writer.dropped

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:
            self._writer.dropped += 1  # logging's own report would print the arguments
            return
        self._writer.put(line)

    def close(self) -> None:
        if self._writer.is_alive():
            self._writer.close(CLOSE_TIMEOUT_S)
        super().close()


def set_up(service: str, level: str, stream: TextIO | None = None) -> Logs:
    """Make `stream` (stderr) the only place that anything in this process is logged to."""
    handler = Logs(service, stream or sys.stderr)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # It warns on each attempt at a dead collector; the failures are a metric as well.
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)
    logging.captureWarnings(True)
    _catch_uncaught()
    return handler


def _catch_uncaught() -> None:
    """Python prints uncaught exceptions with their text; these do not."""

    def uncaught(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if issubclass(kind, KeyboardInterrupt):
            return
        _log.critical("uncaught exception", exc_info=(kind, error, trace))

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            uncaught(args.exc_type, args.exc_value, args.exc_traceback)

    def unraisable(args: object) -> None:
        error = getattr(args, "exc_value", None)
        if isinstance(error, BaseException):
            uncaught(type(error), error, error.__traceback__)

    sys.excepthook = uncaught
    threading.excepthook = in_thread
    sys.unraisablehook = unraisable
