"""The house's rules, as far as a machine can check them."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import trunkline_server
from trunkline.api.errors.v1 import reason_pb2
from trunkline_server.errors import AppError

ROOT = Path(__file__).parents[1]
SERVER = ROOT / "server" / "trunkline_server"
MODULES = sorted(SERVER.rglob("*.py"))
STARTED_BY_PATH = {"local/leash.py"}
# A whole table inside of a query that lists the columns it takes from it.
WHOLE_TABLES = {"imports/merge_sql.py", "members/export.py"}

_SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|MERGE|WITH)\b[^a-z]*\s")
_SELECT_ALL = re.compile(r"\bSELECT\s+(?:\w+\.)?\*(?:[^;()]*?)\sFROM\s+(\w+)\b(?!\s*\()")
_RETURNING_ALL = re.compile(r"\bRETURNING\s+(?:\w+\.)?\*")
_TABLE = re.compile(r"^CREATE TABLE public\.(\w+)", re.MULTILINE)
_RUNS_SQL = {"fetch", "fetchrow", "fetchval", "execute", "executemany", "cursor", "prepare"}
_EXECUTORS = {"Executor", "Reader", "RowReader", "Connection", "asyncpg.Connection", "Readers"}
# What a rule may not know of: the outside world, the wire, the time.
_IMPURE = {
    "aiohttp", "asyncio", "asyncpg", "google", "grpc", "logging", "os", "pathlib", "random",
    "redis", "secrets", "socket", "subprocess", "tempfile", "threading", "time", "trunkline",
}  # fmt: skip
_CLOCKS = {"now", "today", "utcnow", "monotonic", "perf_counter"}
_DURATION = re.compile(r"(TIMEOUT|TTL|INTERVAL|DELAY|GRACE|PERIOD|DEADLINE|LIFETIME|BACK_?OFF)")
_DURATION_UNIT = re.compile(
    r"_(S|MS|US|NS|MIN|MINUTES|H|HOURS|DAYS|SECONDS|RATIO|FACTOR|SHARE)(_|$)"
)
# Pages and batches are counted in what they hold, limits in calls.
_NAKED = re.compile(r"(?<!PAGE)(?<!BATCH)_SIZE(_MAX|_MIN)?$|(^|_)LENGTH(_MAX|_MIN)?$|^(MAX|MIN)$")
_REGISTRY = re.compile(
    r"pypi\.org|pythonhosted\.org|registry\.npmjs|--(extra-)?index-url|proxy\.golang|ghcr\.io"
)
_MACHINE = re.compile(r"(?<![\w./<-])/(root|home/\w|work|Users)/\w")


def name_of(path: Path) -> str:
    return path.relative_to(SERVER).as_posix()


def parsed() -> Iterator[tuple[str, ast.Module]]:
    for path in MODULES:
        yield name_of(path), ast.parse(path.read_text())


def sql_constants(tree: ast.Module) -> dict[str, ast.Assign]:
    """Module-level names of SQL texts."""
    return {
        target.id: node
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and _SQL.match(_text(node.value))
    }


def _text(node: ast.AST) -> str:
    """A literal's text; what an f-string fills in is a dot."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(_text(value) or "." for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left) + _text(right)
    return ""


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_sql_is_named() -> None:
    inline = [
        f"{name}:{node.lineno}"
        for name, tree in parsed()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _RUNS_SQL
        and node.args
        and _SQL.match(_text(node.args[0]))
    ]
    assert inline == []


def test_sql_stands_above_its_only_caller() -> None:
    wrong = []
    for name, tree in parsed():
        for constant, node in sql_constants(tree).items():
            if not constant.startswith("_"):
                continue  # shared text, imported elsewhere
            users = [
                function.lineno
                for function in tree.body
                if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
                and any(
                    isinstance(each, ast.Name) and each.id == constant
                    for each in ast.walk(function)
                )
            ]
            if users and min(users) < node.lineno:
                wrong.append(f"{name}:{node.lineno} {constant} stands below its caller")
    assert wrong == []


def test_columns_are_listed() -> None:
    """Of tables; what a function or a query in WITH gives is listed where it is written.

    In migrations RETURNING * moves rows between a table and its like.
    """
    tables = set(_TABLE.findall((ROOT / "migrations" / "schema.sql").read_text()))
    assert "members" in tables
    texts = [
        (f"{name}:{node.lineno}", _text(node))
        for name, tree in parsed()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant | ast.JoinedStr)
    ]
    texts += [(path.name, path.read_text()) for path in (ROOT / "migrations").glob("0*.sql")]
    found = [
        place
        for place, text in texts
        if (_RETURNING_ALL.search(text) and not place.endswith(".sql"))
        or any(table in tables for table in _SELECT_ALL.findall(text))
    ]
    assert [place for place in found if place.split(":")[0] not in WHOLE_TABLES] == []


def test_the_executor_comes_first_and_the_organisation_second() -> None:
    wrong = []
    for name, tree in parsed():
        if not name.endswith("/queries.py"):
            continue
        for function in tree.body:
            if not isinstance(function, ast.AsyncFunctionDef):
                continue
            arguments = [*function.args.posonlyargs, *function.args.args]
            kinds = [ast.unparse(each.annotation or ast.Constant("")) for each in arguments]
            names = [each.arg for each in arguments]
            if not kinds or kinds[0].split("[")[0] not in _EXECUTORS:
                wrong.append(f"{name}:{function.lineno} {function.name}: first is no executor")
            keywords = [each.arg for each in function.args.kwonlyargs]
            if "org_id" in [*names, *keywords] and names[1:2] != ["org_id"]:
                wrong.append(f"{name}:{function.lineno} {function.name}: org_id is not second")
    assert wrong == []


def test_rules_are_pure() -> None:
    wrong = []
    for name, tree in parsed():
        if not name.endswith("rules.py"):
            continue
        for node in ast.walk(tree):
            wrong += [
                f"{name}: imports {module}"
                for module in _imported(node)
                if module.split(".")[0] in _IMPURE
            ]
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called == "open" or ("." in called and called.split(".")[-1] in _CLOCKS):
                    wrong.append(f"{name}:{node.lineno} calls {called}")
    assert wrong == []


def _imported(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [each.name for each in names]
        case ast.ImportFrom(module=str(module)):
            return [module]
    return []


def test_limits_have_units() -> None:
    naked = []
    for name, tree in parsed():
        for node in tree.body:
            target, value = _assigned(node)
            if target is None or not _is_number(value):
                continue
            bare = target.strip("_")
            if (_DURATION.search(bare) and not _DURATION_UNIT.search(bare)) or _NAKED.search(bare):
                naked.append(f"{name}:{node.lineno} {target}")
    assert naked == []


def _assigned(node: ast.stmt) -> tuple[str | None, ast.expr | None]:
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=value) if name.isupper():
            return name, value
        case ast.AnnAssign(target=ast.Name(id=name), value=value) if name.isupper():
            return name, value
    return None, None


def _is_number(node: ast.expr | None) -> bool:
    match node:
        case ast.Constant(value=int() | float()):
            return not isinstance(node.value, bool)
        case ast.BinOp(left=left, right=right):
            return _is_number(left) and _is_number(right)
    return False


def imported_server() -> None:
    for module in pkgutil.walk_packages(trunkline_server.__path__, "trunkline_server."):
        if not module.name.endswith(("__main__", ".leash")):
            importlib.import_module(module.name)


def descendants(kind: type[AppError]) -> Iterator[type[AppError]]:
    for child in kind.__subclasses__():
        yield child
        yield from descendants(child)


def test_every_error_that_is_raised_has_a_reason() -> None:
    imported_server()
    nameless = {
        kind.__name__
        for kind in descendants(AppError)
        if kind.reason == reason_pb2.REASON_UNSPECIFIED
        and kind.__module__.startswith("trunkline_server")
    }
    assert "NotFound" in nameless  # the generic ones, which slices give a reason
    raised = [
        f"{name}:{node.lineno} {raised}"
        for name, tree in parsed()
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and (raised := _raised(node)) in nameless
    ]
    assert raised == []


def _raised(node: ast.Raise) -> str:
    call = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
    return "" if call is None else ast.unparse(call).split(".")[-1]


def test_no_module_is_dead() -> None:
    imported: set[str] = set()
    for name, tree in parsed():
        package = "trunkline_server." + name.rpartition("/")[0].replace("/", ".")
        for node in ast.walk(tree):
            imported.update(_imported(node))
            if isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    base = f"{package.rstrip('.')}.{base}".rstrip(".")
                imported.update(f"{base}.{each.name}" for each in node.names)
    dead = [
        name
        for name, _ in parsed()
        if not name.endswith(("__init__.py", "__main__.py"))
        and name not in STARTED_BY_PATH
        and f"trunkline_server.{name.removesuffix('.py').replace('/', '.')}" not in imported
    ]
    assert dead == []


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and path != Path(__file__)]


@pytest.mark.parametrize("pattern", [_REGISTRY, _MACHINE], ids=["registry", "machine"])
def test_no_registry_and_no_machine_is_named(tracked: list[Path], pattern: re.Pattern[str]) -> None:
    found = []
    for path in tracked:
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert found == []


def test_decisions_are_numbered_once() -> None:
    names = [path.name for path in (ROOT / "docs" / "adr").iterdir()]
    assert all(re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", name) for name in names), names
    numbers = Counter(name[:4] for name in names)
    assert [number for number, count in numbers.items() if count > 1] == []
    for path in (ROOT / "docs" / "adr").iterdir():
        title = path.read_text().splitlines()[0]
        assert title.startswith("# "), path.name
