"""The element update, written once.

Adam is Algorithm 1 of Kingma and Ba, arXiv 1412.6980; the decoupled decay is that of Loshchilov and Hutter,
arXiv 1711.05101. Each stage below holds statements in the common subset of Python and C. `compose` joins
stages into an `Update`: a Python function, which on NumPy arrays is the in-place reference and under Numba is the
CPU element, and the same statements as the body of the CUDA kernel.
"""

import ast
import inspect
import linecache
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy import sqrt

BUFFERS = ("p", "g", "m", "v")


def scale_gradient(g, grad_scale):
    g = grad_scale * g


def couple_decay(p, g, weight_decay):
    # L2: the decay is part of the gradient.
    g = g + weight_decay * p


def adam(p, g, m, v, decay, blend1, blend2, step_size, eps):
    # First and second moment, decoupled decay, step.
    m += blend1 * (g - m)
    v += blend2 * (g * g - v)
    p *= decay
    p -= step_size * m / (sqrt(v) + eps)


@dataclass(frozen=True, eq=False)
class Update:
    """One member of the family: `element(p, g, m, v, *scalars) -> (p, m, v)` and the text that it was made from."""

    name: str
    scalars: tuple[str, ...]
    statements: tuple[str, ...]
    source: str
    element: Callable


def compose(name: str, *stages: Callable) -> Update:
    """Join the statements of `stages`, in order, into the update that the module holds as `name`."""
    functions = [_syntax_tree(stage) for stage in stages]
    arguments = [argument.arg for function in functions for argument in function.args.args]
    scalars = tuple(dict.fromkeys(argument for argument in arguments if argument not in BUFFERS))
    statements = tuple(ast.unparse(statement) for function in functions for statement in function.body)
    source = "\n    ".join(
        [f"def {name.lower()}({', '.join(BUFFERS + scalars)}):", *statements, "return p, m, v\n"],
    )
    return Update(name, scalars, statements, source, _function(name, source))


def _syntax_tree(function) -> ast.FunctionDef:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(tree, ast.FunctionDef)
    return tree


def _function(name, source) -> Callable:
    # The function is reachable as `<module>.<name>.element`, and Numba pickles it by that path, not by value: the
    # keys of its disk cache are then the same in every process. linecache gives tracebacks and Numba the text.
    filename = f"<{__name__}.{name}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"sqrt": sqrt, "__name__": __name__}
    exec(compile(source, filename, "exec"), namespace)
    element = namespace[name.lower()]
    element.__qualname__ = f"{name}.element"
    return element


ADAM = compose("ADAM", scale_gradient, adam)
ADAM_L2 = compose("ADAM_L2", scale_gradient, couple_decay, adam)
