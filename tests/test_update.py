"""The update text: its language, its composition, and the reference that it is on NumPy arrays."""

import ast
import inspect

import numpy as np
import pytest
from oracle import exact_adam, random_state

from fastadam.kernels import reference, update
from fastadam.kernels.fold import fold, fold_l2
from fastadam.kernels.update import ADAM, ADAM_L2

COMMON_TO_PYTHON_AND_C = (
    ast.Module, ast.Expr, ast.Assign, ast.AugAssign, ast.BinOp, ast.Call, ast.Name, ast.Load, ast.Store,
    ast.Add, ast.Sub, ast.Mult, ast.Div,
)  # fmt: skip
HYPERPARAMETERS = {"lr": 3e-3, "betas": (0.9, 0.999), "eps": 1e-8}


@pytest.mark.parametrize("member", [ADAM, ADAM_L2], ids=lambda member: member.name)
def test_text_is_common_to_python_and_c(member):
    tree = ast.parse("\n".join(member.statements))
    foreign = [ast.dump(node) for node in ast.walk(tree) if not isinstance(node, COMMON_TO_PYTHON_AND_C)]
    assert foreign == []
    assert {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call)} <= {"sqrt"}
    assigned = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assert assigned <= set(update.BUFFERS)


@pytest.mark.parametrize(
    ("member", "stages"),
    [
        (ADAM, (update.scale_gradient, update.adam)),
        (ADAM_L2, (update.scale_gradient, update.couple_decay, update.adam)),
    ],
    ids=["ADAM", "ADAM_L2"],
)
def test_element_function_is_the_text_of_its_stages(member, stages):
    def statements(source):
        body = ast.parse(source).body[0].body
        return [ast.dump(statement) for statement in body if not isinstance(statement, ast.Return)]

    written = [statement for stage in stages for statement in statements(inspect.getsource(stage))]
    assert statements(inspect.getsource(member.element)) == written
    assert [ast.dump(ast.parse(text).body[0]) for text in member.statements] == written


def test_scalars_come_in_the_order_of_the_text():
    assert ADAM.scalars == ("grad_scale", "decay", "blend1", "blend2", "step_size", "eps")
    assert ADAM_L2.scalars == ("grad_scale", "weight_decay", "decay", "blend1", "blend2", "step_size", "eps")
    assert len(fold(1e-3, 0.9, 0.999, 1e-8, 0.1)(1, 1.0)) == len(ADAM.scalars)
    assert len(fold_l2(1e-3, 0.9, 0.999, 1e-8, 0.1)(1, 1.0)) == len(ADAM_L2.scalars)


@pytest.mark.parametrize("step", [1, 2, 10, 1_000, 1_000_000, 2**24 + 1])
@pytest.mark.parametrize(("member", "folder", "decay"), [(ADAM, fold, "decoupled"), (ADAM_L2, fold_l2, "l2")])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_reference_is_algorithm_1_in_float64(step, member, folder, decay, sign):
    p, g, m, v = random_state(1_000, np.float64)
    expected = exact_adam(p, g, m, v, step=step, **{decay: 0.1}, grad_scale=sign * 0.5, **HYPERPARAMETERS)
    scalars = folder(3e-3, 0.9, 0.999, 1e-8, 0.1, sign)(step, 0.5)
    reference.launcher(member, p.size, p.dtype)(p, g, m, v, scalars)
    for actual, exact in zip((p, m, v), expected, strict=True):
        np.testing.assert_allclose(actual, exact, rtol=1e-12, atol=1e-15)


def test_reference_writes_in_place_and_only_reads_the_gradient():
    state = random_state(100)
    before = [buffer.copy() for buffer in state]
    reference.launcher(ADAM_L2, 100, np.float32)(*state, fold_l2(1e-3, 0.9, 0.999, 1e-8, 0.1)(1, 2.0))
    changed = [not np.array_equal(old, new) for old, new in zip(before, state, strict=True)]
    assert changed == [True, False, True, True]
    assert [buffer.dtype for buffer in state] == [np.float32] * 4
