"""The quick start and the examples run; the reference is current."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import Org, Running
from tools import reference_client
from trunkline_server.rpc.caller import Role

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "docs" / "guide" / "quickstart.md"


@pytest.fixture
def environment(real: Running, acme: Org, tmp_path: Path) -> dict[str, str]:
    given = {
        "TRUNKLINE_ADDRESS": real.address,
        "TRUNKLINE_API_KEY": acme.keys[Role.ADMIN],
        "XDG_CONFIG_HOME": str(tmp_path),
    }
    return {**os.environ, **given}


def run(environment: dict[str, str], folder: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_quick_start_runs(environment: dict[str, str], tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", QUICKSTART.read_text("utf-8"), re.M | re.S)
    assert len(blocks) == 4
    said = run(environment, tmp_path, "-c", "\n".join(blocks))
    assert "gold" in said
    assert "MEMBER_NOT_FOUND" in said


def test_the_examples_run(environment: dict[str, str], tmp_path: Path) -> None:
    examples = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert examples == {"validate.py", "upload.py"}
    validate = str(ROOT / "examples" / "validate.py")
    assert run(environment, tmp_path, validate, "A-7") == "NOT_FOUND\n"
    roster = tmp_path / "june.csv"
    roster.write_text("member_number,family_name\nA-1,Lovelace\n")
    said = run(environment, tmp_path, str(ROOT / "examples" / "upload.py"), str(roster))
    assert f"UPLOADING: {roster.stat().st_size} bytes" in said


def test_the_reference_is_current() -> None:
    """After a change: python -m tools.reference_client."""
    assert reference_client.TARGET.read_text("utf-8") == reference_client.render()
