"""How much `pip install trunkline` brings: size and distributions (`python -m tools.client_size`).

Installs the client into an empty environment of its own; needs the package index.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CLIENT = Path(__file__).resolve().parent.parent / "clients" / "python"
SIZE_MIB_MAX = 30.0
DISTRIBUTIONS_MAX = 8
_HARNESS = frozenset({"pip", "setuptools"})


def installed(environment: Path) -> tuple[list[str], float]:
    """The names of what was installed, and its MiB on disk without pip itself."""
    python = environment / "bin" / "python"
    listed = subprocess.check_output(
        [python, "-m", "pip", "--disable-pip-version-check", "list", "--format", "json"]
    )
    names = sorted(each["name"] for each in json.loads(listed) if each["name"] not in _HARNESS)
    (packages,) = environment.glob("lib/python*/site-packages")
    harness = {packages / name for name in ("pip", "setuptools", "_distutils_hack")}
    size = sum(
        path.stat().st_size
        for path in packages.rglob("*")
        if path.is_file() and not harness & set(path.parents) and "__pycache__" not in path.parts
    )
    return names, size / (1 << 20)


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "env"
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        pip = [str(environment / "bin" / "pip"), "--disable-pip-version-check", "install", "-q"]
        subprocess.run([*pip, str(CLIENT)], check=True)
        names, size_mib = installed(environment)
    print(f"{size_mib:.1f} MiB in {len(names)} distributions: {', '.join(names)}")
    return 0 if size_mib <= SIZE_MIB_MAX and len(names) <= DISTRIBUTIONS_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
