"""Generate the Python stubs from protos/ (`make gen`).

The generators pin their own protobuf, so they live in an environment of their own, `.gen-venv/`,
made from requirements/gen.txt and kept until that file changes.
"""

import argparse
import fcntl
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
STUBS = ROOT / "clients" / "python" / "src"
REQUIREMENTS = ROOT / "requirements" / "gen.txt"
ENVIRONMENT = ROOT / ".gen-venv"

# google.rpc ships with googleapis-common-protos; only buf/validate has no runtime distribution.
GENERATED_PACKAGES = ("buf/validate", "trunkline/api")
GENERATED_SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def generator_environment() -> Path:
    """Return the generators' Python, making its environment when requirements/gen.txt changed."""
    ENVIRONMENT.mkdir(exist_ok=True)
    # Parallel test workers may all find it missing.
    with (ENVIRONMENT / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _current_environment()


def _current_environment() -> Path:
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / "requirements.sha256"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    stamp.unlink(missing_ok=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    subprocess.run([*pip, "--require-hashes", "-r", str(REQUIREMENTS)], check=True)
    stamp.write_text(wanted)
    return python


def sources() -> list[str]:
    """Return the proto files we generate code for, relative to protos/."""
    return sorted(
        str(path.relative_to(PROTOS))
        for package in GENERATED_PACKAGES
        for path in (PROTOS / package).rglob("*.proto")
    )


def protoc(*arguments: str) -> None:
    python = generator_environment()
    plugins = {name: python.parent / name for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")}
    command = [
        str(python),
        "-m",
        "grpc_tools.protoc",
        f"--proto_path={PROTOS}",
        *(f"--plugin={name}={path}" for name, path in plugins.items()),
        *arguments,
    ]
    subprocess.run(command, check=True, cwd=PROTOS)


def generate(target: Path) -> None:
    """Write the stubs of every proto below `target`."""
    files = sources()
    services = [name for name in files if name.endswith("_service.proto")]
    protoc(f"--python_out={target}", f"--mypy_out=quiet:{target}", *files)
    protoc(f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}", *services)
    _mark_packages(target)


def generated_files(root: Path) -> dict[str, bytes]:
    """Return what `generate` owns below `root`: stubs and the package markers beside them."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for package in GENERATED_PACKAGES
        for path in sorted((root / package).rglob("*"))
        if path.name.endswith(GENERATED_SUFFIXES) or path.name in ("__init__.py", "py.typed")
    }


def _mark_packages(target: Path) -> None:
    # `buf` stays without __init__: other distributions may add to that namespace.
    (target / "buf" / "validate" / "py.typed").touch()
    api = target / "trunkline" / "api"
    for folder in (api, *(path for path in api.rglob("*") if path.is_dir())):
        if folder.name != "__pycache__":
            (folder / "__init__.py").touch()
    (api / "py.typed").touch()


def replace_stubs() -> int:
    """Regenerate the committed stubs; return how many files changed."""
    with tempfile.TemporaryDirectory() as name:
        fresh_root = Path(name)
        generate(fresh_root)
        before, after = generated_files(STUBS), generated_files(fresh_root)
        for gone in before.keys() - after.keys():
            (STUBS / gone).unlink()
        changed = [path for path, content in after.items() if before.get(path) != content]
        for path in changed:
            (STUBS / path).parent.mkdir(parents=True, exist_ok=True)
            (STUBS / path).write_bytes(after[path])
    return len(changed) + len(before.keys() - after.keys())


def stale_stubs() -> list[str]:
    """Return the committed stubs that differ from freshly generated ones."""
    with tempfile.TemporaryDirectory() as name:
        generate(Path(name))
        fresh, committed = generated_files(Path(name)), generated_files(STUBS)
    return sorted(p for p in fresh.keys() | committed.keys() if fresh.get(p) != committed.get(p))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the stubs are not fresh")
    if parser.parse_args().check:
        stale = stale_stubs()
        for path in stale:
            print(f"not fresh: {path}", file=sys.stderr)
        return 1 if stale else 0
    print(f"{replace_stubs()} files changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
