"""Uploads a file and stops where it is told, so that a test can kill the process right there."""

import sys
import threading
from pathlib import Path

from trunkline import Client
from trunkline.types import Progress

address, api_key, file, stop_at_bytes = sys.argv[1:5]


def show(progress: Progress) -> None:
    if progress.bytes_stored >= int(stop_at_bytes):
        print(progress.bytes_stored, flush=True)
        threading.Event().wait()  # until it is killed


with Client(address, api_key=api_key) as client:
    job = client.imports.upload(Path(file), on_progress=show)
    print(job.import_id, flush=True)
