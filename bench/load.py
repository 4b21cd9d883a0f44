"""Closed-loop load on one unary method: as many calls as the server takes.

h2load (Debian's nghttp2-client) where it is on PATH: a C client costs a tenth of the server.
Otherwise several grpc.aio client processes, which cost more than the server does; figures per
server CPU-second stay comparable.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.process import ROOT

CONNECTIONS = 4
STREAMS = 16
CLIENT_PROCESSES = 3
TIMEOUT_S = 120
_PREFIX_BYTES = 5


@dataclass(frozen=True, slots=True)
class Call:
    """One unary call, request already serialised."""

    path: str
    request: bytes
    reply_bytes: int
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    calls: int
    seconds: float


class LoadFailed(RuntimeError):
    pass


def client_name() -> str:
    return "h2load" if shutil.which("h2load") else "grpc.aio"


def run(
    address: str,
    call: Call,
    *,
    calls: int,
    connections: int = CONNECTIONS,
    streams: int = STREAMS,
) -> Outcome:
    if shutil.which("h2load"):
        return _h2load(address, call, calls, connections, streams)
    return _grpc_clients(address, call, calls, connections * streams)


def _h2load(address: str, call: Call, calls: int, connections: int, streams: int) -> Outcome:
    with tempfile.NamedTemporaryFile() as body:
        body.write(b"\0" + len(call.request).to_bytes(4, "big") + call.request)
        body.flush()
        command = ["h2load", "-n", str(calls), "-c", str(connections), "-m", str(streams)]
        command += ["-d", body.name, "-H", "content-type: application/grpc", "-H", "te: trailers"]
        for key, value in call.metadata.items():
            command += ["-H", f"{key}: {value}"]
        done = subprocess.run(
            [*command, f"http://{address}{call.path}"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    return _read_h2load(done.stdout + done.stderr, call)


def _read_h2load(text: str, call: Call) -> Outcome:
    finished = re.search(r"finished in ([\d.]+)(us|ms|s)", text)
    requests = re.search(r"(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored", text)
    replied = re.search(r"\((\d+)\) data", text)
    if not (finished and requests and replied) or int(requests[2]) == 0:
        raise LoadFailed(f"h2load could not measure:\n{text[-1500:]}")
    calls = int(requests[2])
    # h2load reads no trailers: a refused call has status 200 too, but carries no reply.
    if int(replied[1]) < calls * (call.reply_bytes + _PREFIX_BYTES):
        raise LoadFailed(f"{call.path}: some calls were refused ({replied[1]} bytes for {calls})")
    units = {"us": 1e6, "ms": 1e3, "s": 1.0}[finished[2]]
    return Outcome(calls, float(finished[1]) / units)


def _grpc_clients(address: str, call: Call, calls: int, concurrency: int) -> Outcome:
    spec = {
        "address": address,
        "path": call.path,
        "request": call.request.hex(),
        "metadata": dict(call.metadata),
        "calls": calls // CLIENT_PROCESSES,
        "concurrency": max(1, concurrency // CLIENT_PROCESSES),
    }
    clients = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.servers.closed_loop_client", json.dumps(spec)],
            cwd=Path(ROOT),
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(CLIENT_PROCESSES)
    ]
    outputs = [client.communicate(timeout=TIMEOUT_S)[0] for client in clients]
    if any(client.returncode for client in clients):
        raise LoadFailed(f"{call.path}: a client process failed")
    results = [json.loads(output) for output in outputs]
    return Outcome(sum(each["calls"] for each in results), max(each["seconds"] for each in results))
