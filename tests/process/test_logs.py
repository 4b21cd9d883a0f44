"""What a log line says, and above all what it cannot say."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from trunkline_server import logs
from trunkline_server.logs import Journal, JsonFormatter, Logs
from trunkline_server.rpc.caller import CURRENT, Caller, Request, Role

CANARY = "Wilhelmina Canary A-1"
ORG = uuid.UUID(int=7)
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


class Written(io.StringIO):
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


@pytest.fixture
def stream() -> Written:
    return Written()


@pytest.fixture
def logger(stream: Written) -> Iterator[logging.Logger]:
    handler = Logs("trunkline-test", stream)
    logger = logging.getLogger("trunkline_server.tests")
    logger.propagate = False
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield logger
    logger.removeHandler(handler)
    handler.close()


def flushed(logger: logging.Logger) -> None:
    for handler in logger.handlers:
        handler.close()


def test_a_line_has_its_fields_and_only_allowed_ones(
    logger: logging.Logger, stream: Written
) -> None:
    logger.info("call done", extra={"code": "OK", "duration_s": 0.25, "member_name": CANARY})
    flushed(logger)
    [line] = stream.lines()
    assert line["message"] == "call done"
    assert line["level"] == "info"
    assert line["code"] == "OK"
    assert line["duration_s"] == 0.25
    assert line["service"] == "trunkline-test"
    assert line["pid"] == os.getpid()
    assert CANARY not in stream.getvalue()


def test_strings_are_not_formatted_into_messages(logger: logging.Logger, stream: Written) -> None:
    logger.info("member %s", CANARY)
    logger.info("%d rows for %s", 3, ORG)
    flushed(logger)
    assert [line["message"] for line in stream.lines()] == ["member %s", f"3 rows for {ORG}"]


def test_the_request_is_on_every_line_of_it(logger: logging.Logger, stream: Written) -> None:
    caller = Caller(ORG, uuid.UUID(int=8), "user", Role.AGENT, uuid.UUID(int=9), CANARY)
    request = Request(
        "/t.S/M", "req\x1b[31m\x7f\n1", lambda: "ipv4:10.1.2.3:4", caller, None,
        traceparent=f"00-{TRACE_ID}-b7ad6b7169203331-00",
    )  # fmt: skip
    token = CURRENT.set(request)
    try:
        logger.warning("slow")
    finally:
        CURRENT.reset(token)
    flushed(logger)
    [line] = stream.lines()
    assert line["method"] == "/t.S/M"
    assert line["org_id"] == str(ORG)
    assert line["trace_id"] == TRACE_ID
    assert line["request_id"] == "req\x1b[31m\x7f\n1"
    written = stream.getvalue()
    assert "\x1b" not in written
    assert "\x7f" not in written
    assert written.count("\n") == 1
    assert CANARY not in written
    assert "10.1.2.3" not in written


def raised() -> BaseException:
    try:
        try:
            raise asyncpg.UniqueViolationError(f"Key (number)=({CANARY}) already exists.")
        except asyncpg.UniqueViolationError as error:
            raise RuntimeError(f"while adding {CANARY}") from error
    except RuntimeError as error:
        return error


def test_an_exception_is_its_type_and_frames(stream: Written) -> None:
    own = logging.getLogger("trunkline_server.logs")
    handler = Logs("t", stream)
    own.addHandler(handler)
    try:
        Journal().failure("/t.S/M", "incident-1", raised())
    finally:
        own.removeHandler(handler)
        handler.close()
    [line] = stream.lines()
    assert line["incident_id"] == "incident-1"
    outer, cause = line["error"]
    assert outer["type"] == "builtins.RuntimeError"
    assert cause["type"] == "asyncpg.exceptions.UniqueViolationError"
    assert cause["sqlstate"] == "23505"
    assert outer["frames"][-1].endswith("raised")
    assert CANARY not in stream.getvalue()


async def test_asyncios_own_reports_hold_no_text(stream: Written) -> None:
    foreign = logging.getLogger("asyncio")
    handler = Logs("t", stream)
    foreign.addHandler(handler)
    try:

        async def fail() -> None:
            raise raised()

        task = asyncio.create_task(fail(), name=CANARY)
        await asyncio.wait([task])
        del task
        for _ in range(3):
            await asyncio.sleep(0)
    finally:
        foreign.removeHandler(handler)
        handler.close()
    [line] = stream.lines()
    assert line["message"].startswith("Task exception was never retrieved")
    assert CANARY not in stream.getvalue()


def test_uncaught_exceptions_of_a_process_hold_no_text() -> None:
    program = f"""
        import logging, threading, warnings
        from trunkline_server import logs
        logs.set_up("t", "info")
        def fail(): raise RuntimeError({CANARY!r})
        class Unraisable:
            def __del__(self): fail()
        thread = threading.Thread(target=fail); thread.start(); thread.join()
        Unraisable()
        warnings.warn({CANARY!r})
        logging.getLogger("grpc").error("peer said %s", {CANARY!r})
        logging.getLogger("grpc").error("value {CANARY}".replace("value", "value '") + "'")
        fail()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert [line["message"] for line in lines].count("uncaught exception") == 3
    assert len(lines) == 6
    assert CANARY not in done.stderr


def test_a_stderr_nobody_reads_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "QUEUE_LINES_MAX", 10)
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as stuck:
        handler = Logs("t", stuck)
        done = threading.Event()

        def write() -> None:
            record = logging.LogRecord("trunkline", logging.INFO, "", 0, "x" * 200, None, None)
            for _ in range(5_000):
                handler.emit(record)
            done.set()

        threading.Thread(target=write, daemon=True).start()
        assert done.wait(10)
        assert handler.dropped > 0
        os.set_blocking(read_end, False)
        while not handler._writer._lines.empty():
            try:
                os.read(read_end, 1 << 20)
            except BlockingIOError:
                continue
        handler.close()
        os.read(read_end, 1 << 20)
    os.close(read_end)


def test_no_field_may_name_a_person() -> None:
    personal = ("name", "email", "phone", "member_number", "birth", "peer", "user", "text", "query")
    assert not [f for f in logs.FIELDS if any(word in f.split("_") for word in personal)]
    # A field that a record has by itself would be written on every line.
    record = logging.LogRecord("x", logging.INFO, "p", 1, "m", None, None)
    assert not logs.FIELDS & record.__dict__.keys()
    assert json.loads(JsonFormatter("t").format(record))["message"] == "m"
