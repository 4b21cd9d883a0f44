"""Write docs/reference/client.md from the client's docstrings (`python -m tools.reference_client`).

From the asynchronous source, read without importing it: signatures as they are written.
"""

import argparse
import ast
import sys
from collections.abc import Iterator

from tools import gen

SOURCE = gen.STUBS / "trunkline"
TARGET = gen.ROOT / "docs" / "reference" / "client.md"
MODULES = ("client", "identity", "members", "imports", "content", "stats", "ops", "raw")
AFTER = ("pages", "watches")
_HEAD = """<!-- Made from the client's docstrings by tools/reference_client.py. -->

# The Python client

`AsyncClient` as below; `Client` has the same without `async` and `await`, and its classes lack the
`Async` in their names. Messages are the contract's: see [the RPC reference](rpc.md).
"""

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def render() -> str:
    parts = [_HEAD]
    for name in (*MODULES, *AFTER):
        tree = ast.parse((SOURCE / "_async" / f"{name}.py").read_text("utf-8"))
        parts += [
            "\n".join(_class(node))
            for node in tree.body
            if isinstance(node, ast.ClassDef) and node.name.startswith("Async")
        ]
    parts.append("\n".join(_errors()))
    return "\n".join(parts).rstrip() + "\n"


def _class(node: ast.ClassDef) -> Iterator[str]:
    yield f"## {node.name}\n\n{_doc(node)}\n"
    for member in node.body:
        if isinstance(member, _Function) and _is_public(member):
            yield f"### {node.name}.{member.name}\n\n```python\n{_signature(member)}\n```\n"
            yield f"{_doc(member)}\n"


def _is_public(member: _Function) -> bool:
    return not member.name.startswith("_") and ast.get_docstring(member) is not None


def _signature(member: _Function) -> str:
    word = "async def" if isinstance(member, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(member.returns)}" if member.returns else ""
    arguments = ast.unparse(member.args)
    if len(arguments) > 70:
        arguments = "\n    " + ",\n    ".join(_split(arguments)) + ",\n"
    return f"{word} {member.name}({arguments}){returns}"


def _split(arguments: str) -> list[str]:
    """At the commas outside of brackets."""
    found, depth, start = [], 0, 0
    for index, char in enumerate(arguments):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            found.append(arguments[start:index].strip())
            start = index + 1
    return [*found, arguments[start:].strip()]


def _errors() -> Iterator[str]:
    yield "## Errors\n\n| error | of | what | what to do |\n|---|---|---|---|"
    tree = ast.parse((SOURCE / "errors.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.bases:
            (base,) = node.bases
            what = " ".join(_doc(node).split("\n\n")[0].split())
            yield f"| {node.name} | {ast.unparse(base)} | {what} | {_remedy(node)} |"


def _remedy(node: ast.ClassDef) -> str:
    for member in node.body:
        if isinstance(member, ast.Assign) and ast.unparse(member.targets[0]) == "default_remedy":
            return str(ast.literal_eval(member.value))
    return ""


def _doc(node: ast.ClassDef | _Function) -> str:
    return ast.get_docstring(node) or ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether it is current")
    if parser.parse_args().check:
        return 0 if TARGET.read_text("utf-8") == render() else 1
    TARGET.write_text(render(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
