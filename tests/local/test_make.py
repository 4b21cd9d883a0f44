"""`make` needs nothing but make to say what it can do."""

from __future__ import annotations

import re
import subprocess

from tests.local.programs import ROOT

PROMISED = {"demo", "dev", "test", "check", "gen", "fmt", "lint", "typecheck"} | {
    *("bench", "bench-quick", "clean", "lock"),
}


def make(*arguments: str) -> str:
    return subprocess.run(
        ["make", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
    ).stdout


def test_make_alone_lists_the_targets() -> None:
    listed = set(re.findall(r"^  make ([a-z-]+) +\S", make(), re.MULTILINE))
    assert listed >= PROMISED
    assert make("help") == make()


def test_no_committed_file_names_a_registry() -> None:
    for path in [ROOT / "Makefile", ROOT / ".ci" / "run", *(ROOT / "requirements").iterdir()]:
        assert "://" not in path.read_text(), path
