"""Write the blocking client from the asynchronous one (`python -m tools.unasync [--check]`).

Token by token, so that strings and comments are told from code: `async` and `await` go, names
change as in NAMES, `grpc.aio.` becomes `grpc.`. ruff sorts and formats the result.
"""

import argparse
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLIENT = ROOT / "clients" / "python" / "src" / "trunkline"
# Source folder -> made folder.
TREES = {
    CLIENT / "_async": CLIENT / "_sync",
    ROOT / "tests" / "client" / "_async": ROOT / "tests" / "client" / "_sync",
}
NAMES = {
    "AsyncIterable": "Iterable",
    "AsyncIterator": "Iterator",
    "StopAsyncIteration": "StopIteration",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "_async": "_sync",
    "aclose": "close",
    "aclosing": "closing",
    "anext": "next",
    "asynccontextmanager": "contextmanager",
}
# In docstrings, comments and forward references.
_PHRASES = (
    (re.compile(r"\bawait "), ""),
    (re.compile(r"\basync (?=for |with |def )"), ""),
    (re.compile(r"\bgrpc\.aio\."), "grpc."),
    (re.compile(r"Async(?=[A-Z])"), ""),
    (re.compile(r"\basynchronous\b"), "blocking"),
    (re.compile(r"\b(\w+)_async\b"), r"\1_sync"),
)
_HEAD = "# Made from {source} by tools/unasync.py: change that one.\n"
_TEXTS = (tokenize.STRING, tokenize.COMMENT)


def renamed(name: str) -> str:
    """`AsyncClient` -> `Client`, `IdentityServiceAsyncStub` -> `IdentityServiceStub`."""
    if name in NAMES:
        return NAMES[name]
    if name.endswith("_async"):
        return name.removesuffix("async") + "sync"
    return name.replace("Async", "")


def reworded(text: str) -> str:
    for pattern, replacement in _PHRASES:
        text = pattern.sub(replacement, text)
    return text


def rewritten(source: str) -> str:
    """The blocking form of an asynchronous module, not yet formatted."""
    lines = source.splitlines(keepends=True)
    made: list[str] = []
    at = (1, 0)
    for token, text in _replaced(list(tokenize.generate_tokens(io.StringIO(source).readline))):
        if text is not None:
            made.append(_between(lines, at, token.start))
            made.append(text)
        at = token.end
    return "".join(made)


def _replaced(tokens: list[tokenize.TokenInfo]) -> Iterator[tuple[tokenize.TokenInfo, str | None]]:
    """Each token with its new text; None for one that goes, with the blanks before it."""
    dropped_end = -1
    for index, token in enumerate(tokens):
        if index <= dropped_end:
            yield token, None
        elif token.type in _TEXTS:
            yield token, reworded(token.string)
        elif token.type != tokenize.NAME:
            yield token, token.string
        elif token.string in ("async", "await"):
            yield _up_to_next(token, tokens[index + 1]), ""
        elif token.string == "grpc" and [t.string for t in tokens[index + 1 : index + 3]] == [
            ".",
            "aio",
        ]:
            dropped_end = index + 2
            yield token, "grpc"
        else:
            yield token, renamed(token.string)


def _up_to_next(token: tokenize.TokenInfo, following: tokenize.TokenInfo) -> tokenize.TokenInfo:
    """The token with the blank after it, so that both go."""
    return token._replace(end=following.start)


def _between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    if start[0] == end[0]:
        return lines[start[0] - 1][start[1] : end[1]] if start[0] <= len(lines) else ""
    first = lines[start[0] - 1][start[1] :]
    middle = lines[start[0] : end[0] - 1]
    last = lines[end[0] - 1][: end[1]] if end[0] <= len(lines) else ""
    return "".join((first, *middle, last))


def made_from(path: Path) -> str:
    """The formatted blocking module."""
    source = path.read_text("utf-8")
    head = _HEAD.format(source=path.relative_to(ROOT).as_posix())
    text = head + rewritten(source)
    target = str(TREES[path.parent] / path.name)
    ruff = [sys.executable, "-m", "ruff"]
    for command in (
        [
            "check",
            "--quiet",
            "--fix-only",
            "--unsafe-fixes",
            "--select",
            "I,F811,UP028",
            "--stdin-filename",
            target,
            "-",
        ],
        ["format", "--quiet", "--stdin-filename", target, "-"],
    ):
        run = subprocess.run([*ruff, *command], input=text, capture_output=True, text=True)
        if run.returncode:
            raise SystemExit(f"{path}: {run.stderr}")
        text = run.stdout
    return text


def stale() -> Iterator[tuple[Path, str | None]]:
    """Made modules that are not what they should be; None for one that should not be there."""
    for source, target in TREES.items():
        names = {path.name for path in source.glob("*.py")}
        for name in sorted(names):
            wanted = made_from(source / name)
            made = target / name
            if not made.exists() or made.read_text("utf-8") != wanted:
                yield made, wanted
        for left in sorted(path for path in target.glob("*.py") if path.name not in names):
            yield left, None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say what is not current")
    check = parser.parse_args().check
    found = list(stale())
    for path, wanted in found:
        print(("not current: " if check else "") + str(path.relative_to(ROOT)))
        if not check and wanted is None:
            path.unlink()
        elif not check and wanted is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted, "utf-8")
    return 1 if check and found else 0


if __name__ == "__main__":
    sys.exit(main())
