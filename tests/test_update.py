"""The update texts: their language, their composition, and the reference that they are on NumPy arrays."""

import ast
import copy
import inspect

import numpy as np
import pytest
from members import (
    HYPER,
    MEMBERS,
    NAMES_AND_DTYPES,
    RECIPES,
    Launch,
    by_reference,
    is_exponent,
    launch_of,
    random_flats,
)
from oracle import exact_adam, random_state

from fastadam.kernels import reference
from fastadam.kernels.texts import fold, text, update
from fastadam.kernels.texts.update import ADAM, ADAM_L2, ADAMW, BUFFERS, Recipe, update_of

members = pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS)
COMMON_TO_PYTHON_AND_C = (
    ast.Module, ast.Expr, ast.Assign, ast.AugAssign, ast.BinOp, ast.UnaryOp, ast.Call, ast.Name, ast.Load, ast.Store,
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.USub,
)  # fmt: skip
# A constant in the element would be a double in C, and an integer one in the fold an int.
IN_THE_FOLD = (*COMMON_TO_PYTHON_AND_C, ast.Compare, ast.Lt, ast.Gt, ast.Constant)


def tree_of(statements):
    return ast.parse("\n".join(statements))


def names(tree, context):
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, context)}


@members
def test_text_is_common_to_python_and_c(member):
    for joined, common in ((member.text, COMMON_TO_PYTHON_AND_C), (member.fold, IN_THE_FOLD), (fold.CLIP, IN_THE_FOLD)):
        tree = tree_of(joined.statements)
        foreign = [ast.dump(node) for node in ast.walk(tree) if not isinstance(node, common)]
        assert foreign == []
        constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        assert all(isinstance(value, float) for value in constants)
        functions = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert functions <= text.FUNCTIONS.keys()
        assert names(tree, ast.Store) == set(joined.assigned)
        assert names(tree, ast.Load) - functions <= {*joined.assigned, *joined.arguments}


@members
def test_no_name_is_read_before_it_is_assigned(member):
    for joined in (member.text, member.fold, fold.CLIP):
        known = set(joined.arguments)
        for statement in joined.statements:
            tree = ast.parse(statement)
            read = names(tree, ast.Load) - text.FUNCTIONS.keys()
            if isinstance(tree.body[0], ast.AugAssign):
                read |= names(tree, ast.Store)
            assert read <= known
            known |= names(tree, ast.Store)


@members
def test_fold_makes_every_scalar_from_hyperparameters_and_what_is_carried(member):
    assert {*member.fold.arguments} <= {*fold.HYPER, *fold.CARRIED, "grad_scale"}
    assert {*member.scalars} <= {*member.fold.assigned, *fold.HYPER, *fold.CARRIED}
    assert {*member.columns} <= {*member.scalars, *member.fold.assigned, *fold.HYPER}
    assert len(member.columns) <= fold.COLUMNS


ADAM_STAGES = "scale_gradient first_moment second_moment root_of_v descend"
STAGES = {
    "adam": ADAM_STAGES,
    "adam_l2": "scale_gradient couple_decay first_moment second_moment root_of_v descend",
    "adamw": "scale_gradient first_moment second_moment decouple_decay root_of_v descend",
    "adamw_free": "scale_gradient first_moment second_moment decouple_decay root_of_v descend",
    "keras": ADAM_STAGES,
    "optax": "scale_gradient first_moment second_moment root_of_shifted_v descend",
    "amsgrad": "scale_gradient first_moment second_moment root_of_largest_v descend",
    "amsgrad_optax": "scale_gradient first_moment second_moment root_of_largest_v descend",
    "amsgrad_optax_eps_root": "scale_gradient first_moment second_moment root_of_shifted_largest_v descend",
    "nadam": "scale_gradient first_moment second_moment root_of_v descend_nesterov",
    "adamax": "scale_gradient first_moment infinity_moment descend_infinity",
    "adamax_keras": "scale_gradient first_moment infinity_moment descend_infinity",
    "radam": "scale_gradient first_moment second_moment root_of_v descend_rectified",
    "radam_optax": "scale_gradient first_moment second_moment root_of_shifted_v descend_rectified",
    "short": "scale_gradient short_first_moment short_second_moment root_of_v descend",
    "clip_value": "scale_gradient clip_gradient first_moment second_moment root_of_v descend",
    "ema": f"{ADAM_STAGES} average",
    "bfloat16": f"{ADAM_STAGES} copy",
    "float16": f"{ADAM_STAGES} copy",
    "zero_grad": f"{ADAM_STAGES} zero_gradient",
    "everything": "scale_gradient clip_gradient first_moment second_moment decouple_decay root_of_shifted_largest_v "
    "descend average copy zero_gradient",
    "moments_bfloat16": ADAM_STAGES,
    "moments_dithered": ADAM_STAGES,
    "all_float16": "scale_gradient first_moment second_moment root_of_largest_v descend average",
    "all_dithered": ADAM_STAGES,
    "split": ADAM_STAGES,
    "codes": ADAM_STAGES,
    "dithered_codes": f"{ADAM_STAGES} zero_gradient",
    "split_codes": "scale_gradient couple_decay first_moment second_moment root_of_v descend",
    "v_codes": "scale_gradient first_moment second_moment root_of_largest_v descend",
    "everything_codes": "scale_gradient clip_gradient first_moment second_moment decouple_decay root_of_v "
    "descend average copy zero_gradient",
}


@pytest.mark.parametrize("name", MEMBERS)
def test_element_function_is_the_text_of_its_stages(name):
    def statements(source):
        body = ast.parse(source).body[0].body
        return [ast.dump(statement) for statement in body if not isinstance(statement, ast.Return)]

    member, stages = MEMBERS[name], [getattr(update, stage) for stage in STAGES[name].split()]
    written = [statement for stage in stages for statement in statements(inspect.getsource(stage))]
    assert statements(inspect.getsource(member.element)) == written
    assert [ast.dump(ast.parse(statement).body[0]) for statement in member.text.statements] == written


def test_scalars_come_in_the_order_of_the_text():
    assert ADAM.scalars == ("grad_scale", "blend1", "blend2", "step_size", "eps")
    assert ADAM_L2.scalars == ("grad_scale", "weight_decay", "blend1", "blend2", "step_size", "eps")
    assert ADAMW.scalars == ("grad_scale", "blend1", "blend2", "decay", "step_size", "eps")


@members
def test_arguments_of_the_element_are_the_buffers_and_the_scalars(member):
    assert tuple(inspect.signature(member.element).parameters) == member.buffers + member.scalars
    assert [name for name in member.flats if name in BUFFERS] == [name for name in member.buffers if name != "g"]
    assert set(member.written) <= set(member.buffers)


def test_buffers_of_a_recipe():
    assert ADAM.buffers == ("p", "g", "m", "v")
    assert ADAM.written == ("p", "m", "v")
    assert MEMBERS["everything"].buffers == ("p", "g", "m", "v", "v_max", "ema", "low")
    assert MEMBERS["everything"].written == ("p", "m", "v", "v_max", "ema", "low", "g")
    for name, flats in {"amsgrad": {"v_max"}, "ema": {"ema"}, "float16": {"low"}, "adamax": set()}.items():
        assert set(MEMBERS[name].flats) == {"p", "m", "v"} | flats


def test_an_update_is_made_once_a_recipe():
    assert update_of(Recipe()) is ADAM
    assert len({(member.sources, member.storage) for member in MEMBERS.values()}) == len(RECIPES)


@pytest.mark.parametrize("step", [1, 2, 10, 1_000, 1_000_000, 2**24 + 1])
@pytest.mark.parametrize(("member", "decay"), [(ADAMW, "decoupled"), (ADAM_L2, "l2")])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_reference_is_algorithm_1_in_float64(step, member, decay, sign):
    p, g, m, v = random_state(1_000, np.float64)
    settings = {"lr": HYPER["lr"], "betas": (HYPER["beta1"], HYPER["beta2"]), "eps": HYPER["eps"]}
    expected = exact_adam(p, g, m, v, step=step, **{decay: 0.1}, grad_scale=sign * 0.5, **settings)
    by_reference(launch_of(member, {"p": p, "g": g, "m": m, "v": v}, step, 0.5, sign=sign, weight_decay=0.1))
    for actual, exact in zip((p, m, v), expected, strict=True):
        np.testing.assert_allclose(actual, exact, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("name", "dtype"), NAMES_AND_DTYPES)
def test_reference_writes_in_place_what_is_written_and_nothing_else(name, dtype):
    member = MEMBERS[name]
    launch = launch_of(member, random_flats(member, dtype, 100))
    before = copy.deepcopy(launch)
    by_reference(launch)
    buffers = {**launch.flats, "g": launch.gradients[0]}
    old = {**before.flats, "g": before.gradients[0]}
    changed = {flat for flat in buffers if not np.array_equal(old[flat], buffers[flat])}
    written = {flat for buffer in member.written for flat in member.storage.flats(buffer)}
    # Most exponents stay what they are.
    assert changed | {flat for flat in written if is_exponent(flat)} == written
    assert {name: buffer.dtype for name, buffer in buffers.items()} == {name: old[name].dtype for name in old}
    assert launch.carried[0, 0] == before.carried[0, 0] + 1


def test_reference_launch_flat_is_a_launch_of_one_row():
    member = MEMBERS["everything"]
    launch: Launch = launch_of(member, random_flats(member, np.float32, 100))
    flat = copy.deepcopy(launch)
    by_reference(launch)
    arguments = tuple(flat.flats.values()), flat.gradients[0], flat.hyper[0], flat.carried[0], flat.grad_scale
    reference.launch_flat(member, *arguments)
    for name, buffer in launch.flats.items():
        np.testing.assert_array_equal(flat.flats[name], buffer)
    np.testing.assert_array_equal(flat.carried, launch.carried)
