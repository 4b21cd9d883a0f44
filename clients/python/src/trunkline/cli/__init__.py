"""The command `trunkline`."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; needs the extra: pip install 'trunkline[cli]'."""
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError:
        sys.exit("trunkline: the command line needs more: pip install 'trunkline[cli]'")
    from trunkline.cli.app import run

    sys.exit(run(sys.argv[1:]))
