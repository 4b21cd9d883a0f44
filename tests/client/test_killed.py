"""An uploader killed again and again ends with every byte once."""

import signal
import subprocess
import sys
from pathlib import Path

from tests.client.imports_servicer import Fault
from tests.client.stage import Stage, Thread

KILLS = 10
ROWS = 40_000


def test_ten_kills_and_every_row_once(staged: Stage, thread: Thread, tmp_path: Path) -> None:
    roster = tmp_path / "roster.csv"
    lines = ["member_number", *(f"A-{number:020}" for number in range(ROWS))]
    roster.write_text("\n".join(lines) + "\n")
    size = roster.stat().st_size
    command = [sys.executable, "-m", "tests.client.slow_upload", staged.address, str(roster)]
    for kill in range(1, KILLS + 1):
        # Hangs where it is to be killed, so that no speed of the machine decides.
        staged.imports.faults.append(Fault(size * kill // (KILLS + 2), "hang"))
        thread.run(clear(staged))
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        thread.run(until_at(staged, size * kill // (KILLS + 2)))
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == staged.imports.only.import_id
    assert bytes(staged.imports.only.stored) == roster.read_bytes()
    assert staged.imports.calls["CreateImport"] == 1
    assert list(tmp_path.glob(".*trunkline*")) == []


async def clear(staged: Stage) -> None:
    staged.imports.stored_something.clear()


async def until_at(staged: Stage, stored: int) -> None:
    while not staged.imports.held or len(staged.imports.only.stored) < stored:
        await staged.imports.stored_something.wait()
        staged.imports.stored_something.clear()
