"""The benches there are: every module of bench/suites with its docstring and its `run(plan)`."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from bench.figures import Figure

_SUITES = Path(__file__).parent / "suites"
T = TypeVar("T")


class CannotMeasure(RuntimeError):
    """The machine lacks something that a bench needs; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much work a bench may do. Quick means fewer rounds and rows, never another method."""

    quick: bool = False

    def pick(self, *, full: T, quick: T) -> T:
        return quick if self.quick else full


Run = Callable[[Plan], Iterable[Figure]]


def names() -> list[str]:
    return sorted(path.stem for path in _SUITES.glob("*.py") if not path.stem.startswith("_"))


def description(name: str) -> str:
    # Read, not imported: the list must not fail because one bench lacks a library.
    module = ast.parse((_SUITES / f"{name}.py").read_text())
    return (ast.get_docstring(module) or "").partition("\n")[0]


def load_bench(name: str) -> Run:
    return cast(Run, importlib.import_module(f"bench.suites.{name}").run)
