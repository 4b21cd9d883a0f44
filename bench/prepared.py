"""Requests too many for a command line: the open-loop driver reads them from a file."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench import targets


@asynccontextmanager
async def several(given: Mapping[str, Any]) -> AsyncIterator[targets.Call]:
    """As `targets.several`, with `requests_file` in place of `requests`."""
    requests = json.loads(Path(given["requests_file"]).read_text())
    async with targets.several({**given, "requests": requests}) as call:
        yield call
