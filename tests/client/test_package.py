"""What the distribution promises: its names, its types, its weight, its made halves."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import trunkline
from tools import remedies, unasync
from trunkline import types
from trunkline._shared import connection, version
from trunkline._sync.client import Client
from trunkline_server.rpc import options

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden" / "exports.json"
# Of CPU: what else the machine does is no fault of the package.
IMPORT_MS_MAX = 120
NAMESPACES = ("identity", "members", "imports", "content", "stats", "ops", "raw")

_IMPORT_TIME = """
import time
import grpc, grpc.aio
start = time.process_time()
import trunkline
trunkline.{name}
print((time.process_time() - start) * 1e3)
"""


def exports() -> dict[str, list[str]]:
    """Every public name, the methods of the namespaces included."""
    found = {"trunkline": sorted(trunkline.__all__), "trunkline.types": sorted(types.__all__)}
    for namespace in NAMESPACES:
        made = getattr(Client("localhost:1", api_key="x"), namespace)
        found[f"client.{namespace}"] = sorted(n for n in dir(made) if not n.startswith("_"))
    found["client"] = sorted(n for n in dir(Client) if not n.startswith("_"))
    return found


def test_public_names_change_on_purpose_only() -> None:
    """After a change on purpose: python -m tests.client.test_package."""
    assert exports() == json.loads(GOLDEN.read_text("utf-8"))


def test_all_public_names_exist() -> None:
    assert all(getattr(trunkline, name) is not None for name in trunkline.__all__)
    with pytest.raises(AttributeError):
        trunkline.nothing  # noqa: B018


def test_every_method_of_the_contract_has_its_call() -> None:
    """Unary and server-streaming methods; streams of the caller's own are in `raw`."""
    called = " ".join(path.read_text("utf-8") for path in (unasync.CLIENT / "_async").glob("*.py"))
    own_streams = {"UploadImport", "SubmitCsv", "StreamValidateMembers", "StreamEvents", "Refresh"}
    for path in sorted((ROOT / "protos" / "trunkline").rglob("*_service.proto")):
        for name in re.findall(r"^  rpc (\w+)\(", path.read_text("utf-8"), re.MULTILINE):
            assert name in own_streams or f'"{name}")' in called, name


def test_the_blocking_client_is_made_from_the_asynchronous_one() -> None:
    assert [str(path) for path, _ in unasync.stale()] == []
    made = (unasync.CLIENT / "_sync").glob("*.py")
    assert not any(re.search(r"\b(async|await|asyncio)\b", path.read_text()) for path in made)


@pytest.mark.parametrize(
    ("source", "made"),
    [
        ("async def f(a):\n    return await g(a)\n", "def f(a):\n    return g(a)\n"),
        ("async for x in aiter(y): pass\n", "for x in aiter(y): pass\n"),
        ("s: AsyncIterator[AsyncClient] = grpc.aio.x\n", "s: Iterator[Client] = grpc.x\n"),
        ('"""The asynchronous one: `await x`."""\n', '"""The blocking one: `x`."""\n'),
        ("a = (\n    await b,\n    # c\n)\n", "a = (\n    b,\n    # c\n)\n"),
    ],
)
def test_rewriting(source: str, made: str) -> None:
    assert unasync.rewritten(source) == made


def test_remedies_are_the_contract_s() -> None:
    assert remedies.TARGET.read_text("utf-8") == remedies.render()


def test_the_version_is_stated_once() -> None:
    project = tomllib.loads((ROOT / "clients" / "python" / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["version"] == version.VERSION


def test_keepalive_is_what_servers_permit() -> None:
    assert connection.KEEPALIVE_MS > options.PING_INTERVAL_MIN_MS
    assert connection.MESSAGE_BYTES_MAX == options.MESSAGE_BYTES_MAX


@pytest.mark.parametrize("name", ["Client", "AsyncClient"])
def test_importing_it_is_quick(name: str) -> None:
    times = [
        float(subprocess.check_output([sys.executable, "-c", _IMPORT_TIME.format(name=name)]))
        for _ in range(3)
    ]
    assert min(times) <= IMPORT_MS_MAX


def test_nothing_of_the_command_line_is_needed() -> None:
    code = "import sys, trunkline; trunkline.Client; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {"click", "rich", "trunkline.cli", "trunkline._async"} & set(loaded)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(exports(), indent=1) + "\n", "utf-8")
