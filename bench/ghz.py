"""ghz, the load generator for gRPC in Go: found or built, fed, and its JSON read.

It checks our own driver: another program, in another language, on the same server.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from bench.process import ROOT
from bench.registry import CannotMeasure

BIN = ROOT / "bench" / ".bin"
SOURCE = "github.com/bojand/ghz/cmd/ghz@latest"
BUILD_TIMEOUT_S = 600
RUN_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Template:
    """One call. `body` is JSON with ghz's own placeholders, such as `{{.RequestNumber}}`.

    A list is a client stream: its items are sent one after another.
    """

    method: str  # package.Service/Method
    body: Any


@dataclass(frozen=True, slots=True)
class Load:
    calls: int
    concurrency: int = 50
    connections: int = 4
    per_s: float | None = None  # None: closed loop; else arrivals at this rate, not waiting


@dataclass(frozen=True, slots=True)
class Result:
    calls: int
    per_s: float
    mean_s: float
    latency_s: Mapping[int, float]  # by percentile
    statuses: Mapping[str, int]


def binary() -> Path:
    """On PATH, or built once into bench/.bin (a minute, from the Go module proxy)."""
    found = shutil.which("ghz") or shutil.which("ghz", path=str(BIN))
    if found:
        return Path(found)
    go = shutil.which("go")
    if go is None:
        raise CannotMeasure(
            "ghz is neither on PATH nor can it be built, because Go is missing. Put a release of "
            "github.com/bojand/ghz on PATH, or install Go 1.21 or newer."
        )
    _build(go)
    return BIN / "ghz"


def run(address: str, protoset: bytes, template: Template, load: Load, **metadata: str) -> Result:
    with tempfile.NamedTemporaryFile(suffix=".protoset") as descriptors:
        descriptors.write(protoset)
        descriptors.flush()
        command = [str(binary()), "--insecure", "--format", "json"]
        command += ["--protoset", descriptors.name, "--call", template.method]
        command += ["--data", json.dumps(template.body), "--metadata", json.dumps(metadata)]
        command += ["--total", str(load.calls), "--concurrency", str(load.concurrency)]
        command += ["--connections", str(min(load.connections, load.concurrency))]
        if load.per_s is not None:
            command += ["--rps", str(int(load.per_s)), "--async"]
        done = subprocess.run(
            [*command, address], capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
        )
    if done.returncode != 0:
        raise CannotMeasure(f"ghz failed on {template.method}: {done.stderr[-1000:]}")
    return _result(json.loads(done.stdout))


def descriptor_set(*files: FileDescriptor) -> bytes:
    """The files and all they import, imports first, as `--protoset` wants them."""
    collected = FileDescriptorSet()
    for file in _with_imports(files, set()):
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        collected.file.append(proto)
    return collected.SerializeToString()


def _with_imports(files: Iterable[FileDescriptor], seen: set[str]) -> Iterable[FileDescriptor]:
    for file in files:
        if file.name not in seen:
            seen.add(file.name)
            yield from _with_imports(file.dependencies, seen)
            yield file


def _build(go: str) -> None:
    BIN.mkdir(exist_ok=True)
    done = subprocess.run(
        [go, "install", SOURCE],
        env={**os.environ, "GOBIN": str(BIN)},
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise CannotMeasure(f"building ghz failed: {done.stderr[-1000:]}")


def _result(read: dict[str, Any]) -> Result:
    return Result(
        calls=read["count"],
        per_s=read["rps"],
        mean_s=read["average"] / 1e9,
        latency_s={
            each["percentage"]: each["latency"] / 1e9 for each in read["latencyDistribution"] or ()
        },
        statuses=read["statusCodeDistribution"],
    )
