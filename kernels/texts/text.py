"""Texts in the common subset of Python and C, joined from stages.

A stage is a Python function of plain statements: assignments, + - * / <, and calls of the functions in `FUNCTIONS`.
`join` concatenates the statements of stages into a `Text`, which NumPy runs as it stands, Numba compiles, and the
CUDA compiler takes with a `;` after each statement.
"""

import ast
import inspect
import linecache
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from math import log, pow
from typing import Any

from numpy import floor, maximum, minimum, sqrt
from numpy import sign as signum

from fastadam.kernels.sources import source_of
from fastadam.kernels.texts.power import power

# `power` is of whole numbers. `signum` is 1, -1, or 0 for both zeros, and NaN for NaN.
FUNCTIONS = {
    "sqrt": sqrt,
    "pow": pow,
    "power": power,
    "log": log,
    "abs": abs,
    "floor": floor,
    "minimum": minimum,
    "maximum": maximum,
    "signum": signum,
}


@dataclass(frozen=True)
class Text:
    """The joined statements, the names that they need from outside, and the names that they assign."""

    statements: tuple[str, ...]
    arguments: tuple[str, ...]
    assigned: tuple[str, ...]

    @property
    def locals(self) -> tuple[str, ...]:
        """Names that are assigned, and are no arguments."""
        return tuple(name for name in self.assigned if name not in self.arguments)


def join(*stages: Callable) -> Text:
    """The statements of `stages`, in order; what an earlier one assigned is no argument."""
    statements, arguments, assigned = [], [], []
    for stage in stages:
        for name in inspect.signature(stage).parameters:
            if name not in assigned and name not in arguments:
                arguments.append(name)
        for statement in _body(stage):
            statements.append(ast.unparse(statement))
            target: Any = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            if target.id not in assigned:
                assigned.append(target.id)
    return Text(tuple(statements), tuple(arguments), tuple(assigned))


def _body(stage) -> list[Any]:
    (tree,) = ast.parse(textwrap.dedent(source_of(stage))).body
    assert isinstance(tree, ast.FunctionDef)
    return tree.body


def function(source: str, callees: str = "", **names: Any) -> Callable:
    """The function that `source` defines, which sees `FUNCTIONS` and `names`, with `callees` for their sources."""
    name = source.removeprefix("def ").partition("(")[0]
    # Numba names compiled functions by module and name. Machine code of two processes meets when it is loaded from the
    # cache, and of two functions with one name only one would be linked: so the name tells all that is called, too.
    unique = f"{name}_{sha256((source + callees).encode()).hexdigest()[:16]}"
    # linecache gives tracebacks and Numba the text.
    filename = f"<{__name__}: {unique}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace = {**FUNCTIONS, **names, "__name__": __name__}
    exec(compile(source, filename, "exec"), namespace)
    named = namespace[name]
    named.__name__ = named.__qualname__ = unique
    return named


def block(header: str, *lines: str) -> str:
    """The source of a Python block: `header`, and `lines` below it."""
    return "\n    ".join([header, *(line.replace("\n", "\n    ") for line in lines)])
