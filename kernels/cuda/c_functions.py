"""Python functions in the common subset, as C++ functions."""

import ast
import textwrap
from collections.abc import Callable

from fastadam.kernels.sources import source_of

_OPERATORS: dict[type, str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.LShift: "<<",
    ast.RShift: ">>",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^",
    ast.Lt: "<",
    ast.Gt: ">",
    ast.Eq: "==",
    ast.NotEq: "!=",
}


def c_function(function: Callable) -> str:
    """The device function of the same name, for arguments of any type."""
    (tree,) = ast.parse(textwrap.dedent(source_of(function))).body
    assert isinstance(tree, ast.FunctionDef)
    names = [argument.arg for argument in tree.args.args]
    template = ", ".join(f"class T{index}" for index in range(len(names)))
    arguments = ", ".join(f"T{index} {name}" for index, name in enumerate(names))
    header = f"template <{template}> __device__ inline auto {tree.name}({arguments}) {{"
    body = tree.body[1:] if ast.get_docstring(tree) else tree.body
    return "\n".join([header, *_statements(body, set(names)), "}"])


def _statements(tree, known):
    """The lines of statements; a local is declared where it is first assigned."""
    lines = []
    for statement in tree:
        match statement:
            case ast.Return():
                lines += [f"return {_expression(statement.value)};"]
            case ast.While():
                inside = _statements(statement.body, set(known))
                lines += [f"while ({_expression(statement.test)}) {{", *inside, "}"]
            case ast.Assign(targets=[ast.Name(id=name)]):
                lines += [f"{'' if name in known else 'auto '}{name} = {_expression(statement.value)};"]
                known.add(name)
            case _:
                raise AssertionError(ast.dump(statement))
    return [f"  {line}" for line in lines]


def _expression(node):
    match node:
        case ast.Name():
            return node.id
        case ast.Constant():
            return f"{node.value}u" if isinstance(node.value, int) else repr(node.value)
        case ast.Call():
            return f"{ast.unparse(node.func)}({', '.join(map(_expression, node.args))})"
        case ast.IfExp():
            return f"({_expression(node.test)} ? {_expression(node.body)} : {_expression(node.orelse)})"
        case ast.BinOp(op=ast.Pow()):
            return repr(ast.literal_eval(node.left) ** ast.literal_eval(node.right))
        case ast.BinOp():
            return f"({_expression(node.left)} {_OPERATORS[type(node.op)]} {_expression(node.right)})"
        case ast.Compare():
            return f"({_expression(node.left)} {_OPERATORS[type(node.ops[0])]} {_expression(node.comparators[0])})"
    raise AssertionError(ast.dump(node))
