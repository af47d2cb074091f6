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
    by_reference,
    is_exponent,
    launch_of,
    random_flats,
)
from oracle import exact_adam, exact_member, random_state

from fastadam.kernels import SCALARS
from fastadam.kernels.texts import adam, adamax, ademamix, lion, members, nadam, radam, shared, text
from fastadam.kernels.texts.clip import CLIP
from fastadam.kernels.texts.formats import FORMATS, Formats
from fastadam.kernels.texts.update import Recipe, update_of

ADAM, ADAM_L2, ADAMW = MEMBERS["adam"], MEMBERS["adam_l2"], MEMBERS["adamw"]
every_member = pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS)
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


@every_member
def test_text_is_common_to_python_and_c(member):
    for joined, common in ((member.text, COMMON_TO_PYTHON_AND_C), (member.fold, IN_THE_FOLD), (CLIP, IN_THE_FOLD)):
        tree = tree_of(joined.statements)
        foreign = [ast.dump(node) for node in ast.walk(tree) if not isinstance(node, common)]
        assert foreign == []
        constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        assert all(isinstance(value, float) for value in constants)
        functions = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert functions <= text.FUNCTIONS.keys()
        assert names(tree, ast.Store) == set(joined.assigned)
        assert names(tree, ast.Load) - functions <= {*joined.assigned, *joined.arguments}


@every_member
def test_no_name_is_read_before_it_is_assigned(member):
    for joined in (member.text, member.fold, CLIP):
        known = set(joined.arguments)
        for statement in joined.statements:
            tree = ast.parse(statement)
            read = names(tree, ast.Load) - text.FUNCTIONS.keys()
            if isinstance(tree.body[0], ast.AugAssign):
                read |= names(tree, ast.Store)
            assert read <= known
            known |= names(tree, ast.Store)


@every_member
def test_fold_makes_every_scalar_from_hyperparameters_and_what_is_carried(member):
    known = {*member.hyper, *member.carried}
    assert {*member.fold.arguments} <= {*known, "grad_scale"}
    assert {*member.columns} <= {*member.fold.assigned, *known}
    assert len(member.columns) <= SCALARS


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
    "lion": "scale_gradient decouple_decay descend_by_sign momentum",
    "lion_l2": "scale_gradient couple_decay descend_by_sign small_momentum",
    "ademamix": "scale_gradient first_moment slow_moment second_moment decouple_decay root_of_v descend_by_both",
    "ademamix_optax": "scale_gradient small_first_moment small_slow_moment small_second_moment root_of_shifted_v "
    "descend_by_both",
    "small_betas": "scale_gradient small_first_moment small_second_moment root_of_v descend",
    "clip_value": "scale_gradient clip_gradient first_moment second_moment root_of_v descend",
    "clip_norm": ADAM_STAGES,
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
    "lion_dithered": "scale_gradient descend_by_sign momentum",
    "lion_codes": "scale_gradient descend_by_sign momentum",
    "ademamix_dithered": "scale_gradient first_moment slow_moment second_moment root_of_v descend_by_both",
    "ademamix_codes": "scale_gradient first_moment slow_moment second_moment root_of_v descend_by_both",
}


def stage_of(name):
    """The stage of this name, of whatever file."""
    (found,) = {vars(file)[name] for file in (shared, adam, nadam, adamax, radam, lion, ademamix) if name in vars(file)}
    return found


@pytest.mark.parametrize("name", MEMBERS)
def test_element_function_is_the_text_of_its_stages(name):
    def statements(source):
        body = ast.parse(source).body[0].body
        return [ast.dump(statement) for statement in body if not isinstance(statement, ast.Return)]

    member, stages = MEMBERS[name], [stage_of(stage) for stage in STAGES[name].split()]
    written = [statement for stage in stages for statement in statements(inspect.getsource(stage))]
    assert statements(inspect.getsource(member.element)) == written
    assert [ast.dump(ast.parse(statement).body[0]) for statement in member.text.statements] == written


def test_scalars_come_in_the_order_of_the_text():
    assert ADAM.scalars == ("grad_scale", "blend1", "blend2", "step_size", "eps")
    assert ADAM_L2.scalars == ("grad_scale", "weight_decay", "blend1", "blend2", "step_size", "eps")
    assert ADAMW.scalars == ("grad_scale", "blend1", "blend2", "decay", "step_size", "eps")


@every_member
def test_arguments_of_the_element_are_the_buffers_and_the_scalars(member):
    assert tuple(inspect.signature(member.element).parameters) == member.buffers + member.scalars
    assert [name for name in member.flats if name in member.buffers] == [name for name in member.buffers if name != "g"]
    assert set(member.written) <= set(member.buffers)


def test_buffers_of_a_recipe():
    assert ADAM.buffers == ("p", "g", "m", "v")
    assert ADAM.written == ("p", "m", "v")
    assert MEMBERS["everything"].buffers == ("p", "g", "m", "v", "v_max", "ema", "copy")
    assert MEMBERS["everything"].written == ("p", "m", "v", "v_max", "ema", "copy", "g")
    for name, flats in {"amsgrad": {"v_max"}, "ema": {"ema"}, "float16": {"copy"}, "adamax": set()}.items():
        assert set(MEMBERS[name].flats) == {"p", "m", "v"} | flats
    assert MEMBERS["lion"].buffers == ("p", "g", "m")
    assert MEMBERS["ademamix"].buffers == ("p", "g", "m", "m_slow", "v")


def test_an_update_is_made_once_a_recipe():
    assert update_of(Recipe()) is ADAM
    assert len({(member.sources, member.storage) for member in MEMBERS.values()}) == len(RECIPES)


def test_formats_of_buffers_that_an_update_lacks_are_no_part_of_it():
    unused = Formats(v_max="bfloat16", ema="float16", m_slow="signed_slowest")
    assert update_of(Recipe(storage=unused)) is ADAM
    assert update_of(Recipe("lion", storage=Formats(v="unsigned_slow"))) is update_of(Recipe("lion"))
    assert update_of(Recipe(convention="apex")) is ADAM


# --- the declarations


@pytest.mark.parametrize("member", members.MEMBERS.values(), ids=members.MEMBERS)
def test_declaration_of_a_member(member):
    update = update_of(Recipe(member.name, amsgrad="v_max" in member.buffers))
    assert update.buffers == ("p", "g", *member.buffers)
    assert update.hyper == member.hyper_names
    assert update.carried == member.carried_names
    assert len(member.first_carried) == len(update.carried)
    speeds = [buffer.speed for buffer in member.buffers.values() if buffer.speed]
    assert len(set(speeds)) == len(speeds)
    states = [buffer.state for buffer in member.buffers.values()] + [each.state for each in member.carried.values()]
    assert len(set(states)) == len(states)
    for convention, declared in member.conventions.items():
        assert declared.hyper.keys() <= member.hyper.keys()
        assert member.hyper_defaults(convention).keys() == member.hyper.keys()
        assert update_of(Recipe(member.name, convention)).name == member.name
    for buffer in ("p", "g", "ema", "copy", *member.buffers):
        for dtype in ("native", "bfloat16", "float16"):
            assert FORMATS[member.format(buffer, dtype)].nearest == dtype


def test_formats_of_a_members_buffers():
    member = members.MEMBERS["ademamix"]
    stochastic = {name: member.format(name, "bfloat16") for name in ("p", "g", "m", "m_slow", "v")}
    assert stochastic == {
        "p": "dithered",
        "g": "bfloat16",
        "m": "dithered_fast",
        "m_slow": "dithered_slowest",
        "v": "dithered_slow",
    }
    assert member.format("m", "bfloat16", stochastic=False) == "bfloat16"
    codes = [member.format(name, "float8") for name in member.buffers]
    assert codes == ["signed_fast", "signed_slowest", "unsigned_slow"]
    assert members.MEMBERS["adam"].format("v_max", "float8") == "native"


def test_defaults_of_conventions():
    nadam_member = members.MEMBERS["nadam"]
    found = {name: nadam_member.hyper_defaults(name)["momentum_decay"] for name in nadam_member.conventions}
    assert found == {"torch": 4e-3, "optax": float("inf"), "keras": 1.0}
    assert nadam_member.first_carried == (0.0, 1.0)
    assert members.MEMBERS["ademamix"].small((0.0, 0.999, 0.3)) == (1, 3)
    assert members.MEMBERS["adamax"].small((0.3, 0.3)) == (1,)


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


def stepped(name, steps, gradients, **hyper):
    """The arrays after so many steps from zeros on the reference, in float64."""
    update, size = MEMBERS[name], gradients.shape[1]
    flats = {flat: np.zeros(size) for flat in update.buffers}
    flats["p"][:] = np.linspace(-2, 2, size)
    launch = launch_of(update, flats, 1, grad_scale=1.0, **hyper)
    for step in range(steps):
        launch.flats["g"][:] = gradients[step]
        by_reference(launch)
    return launch.flats


GRADIENTS = np.random.default_rng(3).standard_normal((60, 300))
GRADIENTS[:, ::7] = 0.0
WARM = {"beta3": 0.99, "alpha": 8.0, "alpha_warmup": 40.0, "beta3_warmup": 50.0}


def test_lion_is_that_of_its_paper():
    for name, decay in (("lion", "decoupled"), ("lion_l2", "l2")):
        p, m = np.linspace(-2, 2, 300), np.zeros(300)
        hyper = {"beta1": 0.9, "beta2": 0.99 if name == "lion" else 0.3, "lr": 1e-3, "weight_decay": 0.1}
        settings = {"betas": (hyper["beta1"], hyper["beta2"]), "lr": 1e-3, "eps": 0.0, decay: 0.1}
        for step, g in enumerate(GRADIENTS, start=1):
            p, m, *_ = exact_member("lion", p, g, m, 0.0, step=step, **settings)
        flats = stepped(name, 60, GRADIENTS, **hyper)
        np.testing.assert_allclose(flats["p"], p, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(flats["m"], m, rtol=1e-12, atol=1e-15)


def test_sign_of_nothing_is_nothing_and_of_nan_nan():
    m = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1.0, 2.0**-1022])
    flats = {"p": np.ones(7), "m": m.copy(), "g": np.array([0.0, -0.0, 1.0, 1.0, 1.0, np.nan, 0.0])}
    by_reference(launch_of(MEMBERS["lion"], flats, weight_decay=0.0, lr=0.25, grad_scale=1.0, beta1=1.0))
    np.testing.assert_array_equal(flats["p"], [1.0, 1.0, np.nan, 0.75, 1.25, np.nan, 0.75])


@pytest.mark.parametrize("warm", [{}, WARM, {**WARM, "beta1": 0.0}], ids=["", "warm", "no first moment"])
def test_ademamix_is_that_of_its_paper(warm):
    for name, changed in (("ademamix", {}), ("ademamix_optax", {"beta1": 0.3, "beta2": 0.4, "beta3": 0.45})):
        hyper = {**HYPER, "beta3": 0.9999, "alpha_warmup": 0.0, "beta3_warmup": 0.0, **warm, **changed}
        settings = {key: hyper[key] for key in ("lr", "eps", "alpha", "alpha_warmup", "beta3_warmup")}
        settings["betas"] = hyper["beta1"], hyper["beta2"], hyper["beta3"]
        settings |= {"decoupled": hyper["weight_decay"]} if name == "ademamix" else {"eps_root": hyper["eps_root"]}
        p, m, v, slow = np.linspace(-2, 2, 300), *np.zeros((3, 300))
        for step, g in enumerate(GRADIENTS, start=1):
            p, m, v, slow = exact_member("ademamix", p, g, m, v, slow, step=step, **settings)
        flats = stepped(name, 60, GRADIENTS, **hyper)
        for flat, exact in {"p": p, "m": m, "v": v, "m_slow": slow}.items():
            np.testing.assert_allclose(flats[flat], exact, rtol=1e-11, atol=1e-15, err_msg=f"{flat} of {name}")


def optax_steps(make):
    """The parameters after the steps of an optimizer of optax in float64."""
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    with jax.enable_x64(True):
        p = jax.numpy.linspace(-2, 2, 300)
        optimizer = make(optax)
        state = optimizer.init(p)
        for g in GRADIENTS:
            updates, state = optimizer.update(jax.numpy.asarray(g), state, p)
            p = optax.apply_updates(p, updates)
        return np.asarray(p)


def test_lion_is_that_of_optax():
    expected = optax_steps(lambda optax: optax.lion(1e-3, b1=0.9, b2=0.98, weight_decay=0.1))
    hyper = {"beta1": 0.9, "beta2": 0.98, "lr": 1e-3, "weight_decay": 0.1}
    np.testing.assert_allclose(stepped("lion", 60, GRADIENTS, **hyper)["p"], expected, rtol=1e-11)


def test_ademamix_is_that_of_optax():
    # optax counts the steps before this one, the paper this one as well.
    def make(optax):
        return optax.contrib.ademamix(
            1e-2,
            b3=lambda count: warm_beta(count + 1),
            alpha=lambda count: 8.0 * minimum(1.0, (count + 1) / 40.0),
            weight_decay=0.1,
        )

    jax = pytest.importorskip("jax")
    minimum = jax.numpy.minimum

    def warm_beta(step):
        # The half-life grows evenly.
        halves = [np.log(0.5) / np.log(beta) for beta in (0.9, 0.99)]
        return 0.5 ** (1 / (halves[0] + minimum(1.0, step / 50.0) * (halves[1] - halves[0])))

    flats = stepped("ademamix", 60, GRADIENTS, **WARM, lr=1e-2, weight_decay=0.1)
    np.testing.assert_allclose(flats["p"], optax_steps(make), rtol=1e-10)


@pytest.mark.parametrize(("name", "dtype"), NAMES_AND_DTYPES)
def test_reference_writes_in_place_what_is_written_and_nothing_else(name, dtype):
    member = MEMBERS[name]
    launch = launch_of(member, random_flats(member, dtype, 100))
    before = copy.deepcopy(launch)
    by_reference(launch)
    buffers, old = launch.flats, before.flats
    changed = {flat for flat in buffers if not np.array_equal(old[flat], buffers[flat])}
    written = {flat for buffer in member.written for flat in member.storage.flats(buffer)}
    # Most exponents stay what they are.
    assert changed | {flat for flat in written if is_exponent(flat)} == written
    assert {name: buffer.dtype for name, buffer in buffers.items()} == {name: old[name].dtype for name in old}
    assert launch.tables.carried[0, 0] == before.tables.carried[0, 0] + 1
