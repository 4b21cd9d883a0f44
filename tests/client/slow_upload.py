"""Uploads a file with the blocking client, so that a test can kill the process on the way."""

import sys
from pathlib import Path

from trunkline import Client

with Client(sys.argv[1], api_key="test") as client:
    job = client.imports.upload(Path(sys.argv[2]))
    print(job.import_id)
