"""Places where a test kills the process. Without TRUNKLINE_FAILPOINT a failpoint does nothing.

`TRUNKLINE_FAILPOINT=name` ends the process without a word when it first reaches `name`, as SIGKILL
would; `name:3` when it gets there for the third time.
"""

import os
from collections.abc import Callable

VARIABLE = "TRUNKLINE_FAILPOINT"
EXIT_CODE = 70


def _nothing(name: str) -> None:
    """What production runs."""


def _armed(wanted: str) -> Callable[[str], None]:
    name, _, times = wanted.partition(":")
    left = int(times or 1)

    def reach(reached: str) -> None:
        nonlocal left
        if reached == name:
            left -= 1
            if left == 0:
                os._exit(EXIT_CODE)

    return reach


failpoint: Callable[[str], None] = (
    _armed(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else _nothing
)
