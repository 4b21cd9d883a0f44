"""Upload a roster and follow it: python examples/upload.py june.csv."""

import sys
from pathlib import Path

from trunkline import Client, TrunklineError
from trunkline.types import Progress


def show(progress: Progress) -> None:
    print(f"{progress.state}: {progress.bytes_stored} bytes, {progress.rows_read} rows")


def main(path: Path) -> int:
    with Client.from_env() as client:
        try:
            job = client.imports.upload(path, allow_same_file=True, on_progress=show)
        except TrunklineError as error:
            print(f"{error} {error.remedy}", file=sys.stderr)
            return 1
        print(job.import_id)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
