"""The fold: every scalar by formulas of its own, from step to step, and the same on every kernel."""

import math
from dataclasses import replace

import numpy as np
import pytest
from members import (
    HYPER,
    MEMBERS,
    NAMES_AND_DTYPES,
    RECIPES,
    by_cpu,
    by_cuda_host,
    by_reference,
    check,
    has_cuda_host,
    hyper_of,
    launch_of,
    random_flats,
    tables_of,
)
from oracle import toss, turn, warm_beta

from fastadam.kernels import SCALARS

# Members that are stored otherwise may share one fold: one of each is enough.
FOLDS = {(update.fold, update.columns): name for name, update in reversed(MEMBERS.items())}
COMPILED = [name for name in MEMBERS if name in FOLDS.values()]
names = pytest.mark.parametrize("name", COMPILED)
STEPS = [1, 2, 5, 6, 10, 1_000, 10**6, 2**24 + 1]
SETTINGS = {
    "usual": {},
    "ascent": {"sign": -1.0, "weight_decay": 0.0},
    "fast": {"beta1": 0.0, "beta2": 0.7, "momentum_decay": math.inf},
    "slow": {"beta1": 0.99, "beta2": 0.9999, "eps": 1e-3, "momentum_decay": 1.0},
    "never warm": {"alpha_warmup": 0.0, "beta3_warmup": 0.0, "beta3": 0.999999},
    "one step warm": {"alpha_warmup": 1.0, "beta3_warmup": 2.0, "beta3": 0.3},
}
settings = pytest.mark.parametrize("changed", SETTINGS.values(), ids=SETTINGS)


def unbias(beta, step):
    """1 - beta**step without cancellation."""
    return -math.expm1(step * math.log(beta)) if beta else 1.0


def momenta(h, count):
    """The first momenta of NAdam; their product is 0 in float64 long before step 20,000, or they are all 1."""
    t = np.arange(1.0, min(count, 20_000) + 1)
    return h["beta1"] * (1 - 0.5 * 0.96 ** (t * h["momentum_decay"]))


def momentum(h, step):
    return h["beta1"] * (1 - 0.5 * 0.96 ** (step * h["momentum_decay"]))


def rectification(h, step):
    """r of Liu et al., or None where the variance is not tractable."""
    rho_limit = 2 / (1 - h["beta2"]) - 1
    rho = rho_limit - 2 * step * h["beta2"] ** step / unbias(h["beta2"], step)
    if rho <= 5:
        return None
    return math.sqrt((rho - 4) * (rho - 2) * rho_limit / ((rho_limit - 4) * (rho_limit - 2) * rho))


def textbook(recipe, h, step, grad_scale):
    """Name -> what it must be of every scalar that an update can have, in float64, from the formulas of the papers:
    m and v are the moments without bias correction."""
    m_hat, v_hat = 1 / unbias(h["beta1"], step), 1 / unbias(h["beta2"], step)
    # sqrt(v_hat * v) + eps = sqrt(v_hat) * (sqrt(v) + eps / sqrt(v_hat)).
    whole, size = 1 / math.sqrt(v_hat), h["lr"] * m_hat
    values = {
        "grad_scale": h["sign"] * grad_scale * (h["clip"] if recipe.clip_norm else 1.0),
        "clip_value": h["clip_value"],
        "weight_decay": h["weight_decay"],
        "decay": 1 - h["weight_decay"] * (h["lr"] if recipe.decay == "decoupled" else 1),
        "blend1": 1 - h["beta1"],
        "blend2": 1 - h["beta2"],
        "beta1": h["beta1"],
        "beta2": h["beta2"],
        "step_size": size * whole,
        "eps": h["eps"] * whole,
        "eps_root": h["eps_root"] / v_hat,
        "correction2": 1.0,
        "one": 1.0,
        "ema_blend": 1 - h["ema_decay"],
        "zero": 0.0,
        "turn": turn(step),
        "toss": toss(step),
    }
    if recipe.amsgrad and recipe.convention == "optax":
        values |= {"step_size": size, "eps": h["eps"], "eps_root": h["eps_root"], "correction2": v_hat}
    elif recipe.convention == "keras":
        values["eps"] = h["eps"]
    if recipe.member == "nadam":
        products = np.prod(momenta(h, step)), np.prod(momenta(h, step + 1))
        rate = h["lr"] * whole
        values["gradient_size"] = rate * (1 - momentum(h, step)) / (1 - products[0])
        values["step_size"] = rate * momentum(h, step + 1) / (1 - products[1])
    if recipe.member == "adamax":
        inside = recipe.convention == "torch"
        values |= {"step_size": size, "inner_eps": h["eps"] * inside, "eps": h["eps"] * (not inside)}
    if recipe.member == "lion":
        values["step_size"] = h["lr"]
    if recipe.member == "ademamix":
        beta3 = warm_beta(step, h["beta1"], h["beta3"], h["beta3_warmup"])
        alpha = h["alpha"] * min(1.0, step / (h["alpha_warmup"] or 1))
        values |= {"beta3": beta3, "blend3": 1 - beta3, "slow_size": h["lr"] * whole * alpha}
    if recipe.member == "radam":
        r = rectification(h, step)
        values |= {"least": r is None, "most": 1.0 if r is None else math.inf}
        values["step_size"] = size if r is None else size * r * whole
        if recipe.convention == "torch":
            values["eps"] = h["eps"]
    return values


def folded(update, hyper, carried, grad_scale, dtype=np.float64):
    table = np.full(SCALARS, 7.0, dtype)
    with np.errstate(over="ignore", divide="ignore"):
        update.fold_row(hyper, carried, grad_scale, table)
    return dict(zip(update.columns, table, strict=False)), table[len(update.columns) :]


def carried_of(name, step, product):
    """What is carried into a step."""
    return np.array([step - 1.0, product][: len(MEMBERS[name].carried)])


def check_fold(name, h, step, carried):
    actual, rest = folded(MEMBERS[name], hyper_of(MEMBERS[name], **h), carried, 0.5)
    expected = textbook(RECIPES[name], h, step, 0.5)
    # In the length of RAdam's average most digits cancel, as in torch's.
    tolerance = 1e-6 if "least" in actual else 1e-11
    for scalar, value in actual.items():
        if scalar == "most":
            assert value == expected[scalar] or value >= 1e300
        else:
            np.testing.assert_allclose(value, expected[scalar], rtol=tolerance, err_msg=f"{scalar} at step {step}")
    np.testing.assert_array_equal(rest, 7.0)
    assert carried[0] == step


@names
@settings
def test_scalars_are_those_of_the_papers(name, changed):
    h = {**HYPER, **changed}
    for step in STEPS:
        check_fold(name, h, step, carried_of(name, step, np.prod(momenta(h, step - 1))))


@names
@settings
def test_fold_carries_on_from_step_to_step(name, changed):
    h, carried = {**HYPER, **changed}, carried_of(name, 1, 1.0)
    for step in range(1, 30):
        check_fold(name, h, step, carried)
    np.testing.assert_allclose(carried, carried_of(name, 30, np.prod(momenta(h, 29))), rtol=1e-12)


@pytest.mark.parametrize("beta2", [0.0, 0.1, 0.5, 0.6, 2 / 3, 0.7, 0.9])
def test_radam_is_rectified_only_if_the_average_is_long_enough(beta2):
    h = {**HYPER, "beta2": beta2}
    for step in (1, 3, 7, 50, 10**6):
        check_fold("radam", h, step, carried_of("radam", step, 1.0))


@names
def test_each_scalar_is_rounded_once(name):
    update, carried = MEMBERS[name], carried_of(name, 10, 0.3)
    hyper = hyper_of(update)
    double, _ = folded(update, hyper, carried.copy(), 0.3)
    single, _ = folded(update, hyper, carried.copy(), 0.3, np.float32)
    with np.errstate(over="ignore"):
        assert single == {scalar: np.float32(value) for scalar, value in double.items()}


def random_clocks(update, dtype, count):
    """A launch without elements of so many clocks with random hyperparameters and steps."""
    rng = np.random.default_rng(count)
    launch = launch_of(update, random_flats(update, dtype, 0))
    drawn = {
        "lr": 10 ** rng.uniform(-6, 0, count),
        "beta1": rng.choice([0.0, 0.5, 0.9, 0.95, 0.99], count),
        "beta2": 1 - 10 ** rng.uniform(-7, 0, count),
        "beta3": 1 - 10 ** rng.uniform(-7, 0, count),
        "momentum_decay": rng.choice([0.0, 4e-3, 1.0, math.inf], count),
        "weight_decay": rng.uniform(0, 1, count),
        "alpha_warmup": rng.choice([0.0, 1.0, 10.0, 1e5], count),
        "beta3_warmup": rng.choice([0.0, 1.0, 10.0, 1e5], count),
    }
    tables = tables_of(update, 1, np.floor(10 ** rng.uniform(0, 8, count)) - 1)
    for name in drawn.keys() & set(update.hyper):
        tables.hyper[:, update.hyper.index(name)] = drawn[name]
    tables.carried[:, 1 : len(update.carried)] = rng.uniform(0, 1, (count, len(update.carried) - 1))
    return replace(launch, pieces=[], clocks=np.arange(count), tables=tables)


@pytest.mark.parametrize(("name", "dtype"), [pair for pair in NAMES_AND_DTYPES if pair[0] in COMPILED])
def test_compiled_fold_equals_that_of_python(name, dtype):
    check(random_clocks(MEMBERS[name], dtype, 300), by_cpu(False))


@pytest.mark.parametrize("name", COMPILED)
def test_cuda_fold_equals_that_of_python(name):
    if not has_cuda_host():
        pytest.skip("needs CuPy and g++")
    check(random_clocks(MEMBERS[name], dict(NAMES_AND_DTYPES)[name], 300), by_cuda_host(guarded=False))


def test_check_notices_another_fold():
    launch = random_clocks(MEMBERS["adam"], np.float64, 300)

    def run(launch):
        by_reference(replace(launch, update=MEMBERS["keras"]))

    with pytest.raises(AssertionError, match="table"):
        check(launch, run)
