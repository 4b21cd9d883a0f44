"""What the README tells people to type works; what the documents link to is there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.daemons import Daemon, environment

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "clients/python/README.md"]
DOCUMENTS += sorted((ROOT / "docs").rglob("*.md"))
ROSTER = "member_number,family_name\nA-1,Lovelace\nA-2,Hopper\n"
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^()\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The lines of the README's shell blocks, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", DOCUMENTS[0].read_text(), re.MULTILINE | re.DOTALL)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


class Reader:
    """Somebody who types what the README says, line by line."""

    def __init__(self, folder: Path, variables: dict[str, str], daemons: ExitStack) -> None:
        self.folder = folder
        self.variables = variables
        self.daemons = daemons
        self.address = ""
        self.said: dict[str, str] = {}

    def types(self, line: str) -> None:
        program, *words = shlex.split(line)
        match program, words[0]:
            case "make", target:  # tests/local runs what it does
                self.said[line] = self.run(f"make -n -C {shlex.quote(str(ROOT))} {target}")
            case "trunklined", "serve" | "worker":
                self.start(*words)
            case "export", _:  # with the values of this test
                secret = re.search(r"^secret = (tlk_\S+)", "\n".join(self.said.values()), re.M)
                assert secret is not None
                given = {"TRUNKLINE_ADDRESS": self.address, "TRUNKLINE_API_KEY": secret[1]}
                assert {word.partition("=")[0] for word in words} == set(given)
                self.variables.update(given)
            case "trunklined" | "trunkline", _:
                self.said[line] = self.run(line)
            case _:
                raise AssertionError(f"Nobody has said how to test: {line}")

    def start(self, *words: str) -> None:
        log = self.folder / f"{words[0]}.log"
        daemon = self.daemons.enter_context(Daemon(log, self.variables, *words))
        if words[0] == "serve":
            self.address = daemon.address

    def run(self, line: str) -> str:
        done = subprocess.run(
            line, shell=True, cwd=self.folder, env=self.variables, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        return done.stdout


def test_the_commands_of_the_readme(
    empty_database_url: str, redis_url: str, unused_tcp_port: int, tmp_path: Path
) -> None:
    (tmp_path / "june.csv").write_text(ROSTER)
    variables = environment(empty_database_url, redis_url, TRUNKLINE_PORT=str(unused_tcp_port))
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    variables["XDG_CONFIG_HOME"] = str(tmp_path)
    with ExitStack() as daemons:
        reader = Reader(tmp_path, variables, daemons)
        for line in commands():
            reader.types(line)
        assert reader.run("trunklined healthcheck") == "serving\n"
    said = reader.said
    assert "applied 0001_identity" in said["trunklined migrate up"]
    assert "FAIL" not in said["trunklined doctor"]
    shown = said["trunklined config show --origin"].splitlines()
    assert f"port = {unused_tcp_port}  (environment TRUNKLINE_PORT)" in shown
    assert variables["TRUNKLINE_KEY_PEPPER"] not in said["trunklined config show --origin"]
    assert "ELIGIBLE" in said["trunkline members validate A-1"]
    (listed,) = said["trunkline imports list -o json"].splitlines()
    assert json.loads(listed)["counters"]["created"] == "2"


# ---- links ----


def anchors(document: Path) -> set[str]:
    """What the headings of a document are called in links."""
    headings = re.findall(r"^#+ +(.+)$", FENCED.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_links_to_is_there(document: Path) -> None:
    missing = []
    for link in LINK.findall(FENCED.sub("", document.read_text())):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        found = target.exists() and target.is_relative_to(ROOT)
        if not found or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []
