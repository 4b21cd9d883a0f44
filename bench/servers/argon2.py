"""argon2id and nothing else: each number read from stdin is that many verifications, all at once.

Answers with the seconds they took. One thread per core, the parameters the product has.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher
from argon2.low_level import Type

from trunkline_server.identity.passwords import LANES, MEMORY_KIB, PASSES

_PASSWORD = "correct horse battery staple"


def main() -> None:
    hasher = PasswordHasher(
        time_cost=PASSES, memory_cost=MEMORY_KIB, parallelism=LANES, type=Type.ID
    )
    stored = hasher.hash(_PASSWORD)
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        print("ready", flush=True)
        for line in sys.stdin:
            started = time.perf_counter()
            list(threads.map(lambda _: hasher.verify(stored, _PASSWORD), range(int(line))))
            print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
