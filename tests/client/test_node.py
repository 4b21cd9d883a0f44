"""The contract from another language: Node's grpc-js, where Node and npm are."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.running import Org, Running
from trunkline_server.rpc.caller import Role

ROOT = Path(__file__).parents[2]
INSTALL_TIMEOUT_S = 60
PACKAGES = ("@grpc/grpc-js@^1.13", "@grpc/proto-loader@^0.8")


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("needs node and npm")
    folder = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--silent", "--no-fund", "--no-audit", *PACKAGES]
    try:
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, timeout=INSTALL_TIMEOUT_S
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip("npm could not install @grpc/grpc-js: is there a network?")
    return folder


def test_node_s_grpc_js_speaks_the_contract(modules: Path, real: Running, acme: Org) -> None:
    script = shutil.copy(Path(__file__).with_name("node_smoke.js"), modules)
    done = subprocess.run(
        ["node", script, real.address, acme.keys[Role.ADMIN], str(ROOT / "protos")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [acme.slug, "ROLE_ADMIN", "DECISION_NOT_FOUND"]
