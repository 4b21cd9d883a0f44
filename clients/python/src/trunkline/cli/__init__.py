"""The command `trunkline`."""

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; needs the extra: pip install 'trunkline[cli]'."""
    # grpc's own notes about connections are not for people at a terminal.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError:
        sys.exit("trunkline: the command line needs more: pip install 'trunkline[cli]'")
    from trunkline.cli.app import run

    sys.exit(run(sys.argv[1:]))
