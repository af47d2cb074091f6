"""Stochastic rounding: reproducible to the last bit, unbiased, and what becomes of training without it."""

import numba
import numpy as np
import pytest
from ml_dtypes import bfloat16
from oracle import memory
from training import LARGE, both, copies, make

import fastadam
from fastadam import SparseRows
from fastadam.kernels import stored
from fastadam.memory.arrays import as_bits

STORAGES = {
    "all bfloat16": (bfloat16, {"moment_dtype": "bfloat16"}),
    "codes": (bfloat16, {"moment_dtype": "float8"}),
    "v": (np.float32, {"moment_dtype": (None, "bfloat16")}),
}
storages = pytest.mark.parametrize("storage", STORAGES)
SHAPES = {"w": (LARGE + 77,), "k": (3, 1999), "b": ()}


def built(storage, shapes=SHAPES, **changes):
    dtype, options = STORAGES[storage]
    return fastadam.AdamW(make(shapes, dtype=dtype), **{"lr": 1e-3, **options, **changes})


def train(opt, seeds):
    """`opt`, after steps with gradients of these seeds."""
    for seed in seeds:
        rng = np.random.default_rng(seed)
        opt.step({name: np.asarray(rng.standard_normal(view.shape), view.dtype) for name, view in opt.grads.items()})
    return opt


def moments(opt, buffer):
    """What is stored for a buffer of the one parameter, in float32."""
    formats, flats = opt.buffers.formats, opt.buffers.flats
    return stored.load(formats, buffer, {name: as_bits(flats[name]) for name in formats.flats(buffer)})


# --- reproducible


@storages
def test_number_of_threads_changes_no_bit(storage):
    most, results = numba.get_num_threads(), []
    try:
        for threads in (1, min(2, most), 1, most):
            numba.set_num_threads(threads)
            results.append(memory(train(built(storage), range(4))))
    finally:
        numba.set_num_threads(most)
    assert all(result == results[0] for result in results)


@both
@storages
def test_resumed_run_goes_on_with_the_saved_seed(storage, flat):
    straight = train(built(storage, seed=1), range(3))
    saved, params = straight.state_dict(), copies(straight.params)
    resumed = built(storage, seed=2, flat=flat)
    for name, view in params.items():
        resumed.params[name] = view
    resumed.load_state_dict(saved)
    assert memory(resumed) == memory(straight)
    assert memory(train(resumed, range(3, 8))) == memory(train(straight, range(3, 8)))
    assert {entry["words_seed"] for entry in resumed.state_dict()["state"].values()} == {1}


@storages
def test_seed_decides(storage):
    first, same, other = (memory(train(built(storage, seed=seed), range(2))) for seed in (1, 1, 2))
    assert first == same
    assert first != other


def test_steps_and_elements_and_groups_are_rounded_independently():
    params = {"w": np.ones(1000, bfloat16)}
    opt = fastadam.Adam(params, lr=2.0**-10)
    opt.add_param_group({"params": {"k": np.ones(1000, bfloat16)}})
    changes = []
    for _ in range(2):
        before = copies(opt.params)
        opt.step({name: np.ones(1000, bfloat16) for name in "wk"})
        changes += [opt.params[name] != before[name] for name in "wk"]
    together = np.corrcoef(changes)[np.triu_indices(4, 1)]
    # Two steps in turn are spread evenly, so that they are anything but alike; groups are independent.
    assert abs(together[[0, 5]]).max() < 4.0 / np.sqrt(1000)
    assert (np.abs(together) < 0.6).all()
    assert all(0 < change.mean() < 1 for change in changes)


def test_rows_are_rounded_as_they_are_in_the_dense_table():
    grads = np.random.default_rng(0).standard_normal((50, 6)).astype(bfloat16)
    dense, sparse = (built("all bfloat16", {"table": (50, 6)}) for _ in range(2))
    rows = np.random.default_rng(1).permutation(50)[:40]
    dense.step({"table": grads})
    sparse.step({"table": SparseRows(rows, grads[rows])})
    assert sparse.params["table"][rows].tobytes() == dense.params["table"][rows].tobytes()


def test_seed_without_stochastic_rounding_changes_nothing_and_is_not_saved():
    first, second = (train(fastadam.AdamW(make(SHAPES), seed=seed), range(2)) for seed in (1, 2))
    assert memory(first) == memory(second)
    assert list(first.state_dict()["state"]["w"]) == ["step", "exp_avg", "exp_avg_sq"]


# --- unbiased

STEP = 2.0**-12  # an eighth of the distance of bfloat16 below 1


def assert_mean(values, exact):
    """The mean of `values` over their first axis equals `exact` within 4 standard errors."""
    values = values.astype(float)
    errors = values.std(axis=0) / np.sqrt(len(values))
    assert (errors > 0.0).all()
    assert (np.abs(values.mean(axis=0) - exact) < 4.0 * errors).all()


def test_mean_over_seeds_is_the_exact_parameter():
    values, gradient = [], np.ones(8, bfloat16)
    for seed in range(2000):
        flat = np.ones(8, bfloat16)
        fastadam.Adam(flat, lr=STEP, betas=(0.0, 0.0), seed=seed).step(gradient)
        values.append(flat)
    assert set(np.unique(values)) == {1.0, 1.0 - 2.0**-8}
    assert_mean(np.array(values), 1.0 - STEP)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_mean_over_elements_follows_2000_small_steps(sign):
    flat = np.full(4096, sign, bfloat16)
    opt, gradient = fastadam.Adam(flat, lr=1e-4, betas=(0.0, 0.0)), np.full(4096, sign, bfloat16)
    for _ in range(2000):
        opt.step(gradient)
    assert_mean(flat, sign * 0.8)


def test_nearest_leaves_the_same_parameter_where_it_is():
    flat = np.ones(4096, bfloat16)
    with pytest.warns(UserWarning, match="`lr` 0.0001 is too small to change 100% of the bfloat16 parameters"):
        opt = fastadam.Adam(flat, lr=1e-4, betas=(0.0, 0.0), rounding="nearest")
    for _ in range(200):
        opt.step(np.ones(4096, bfloat16))
    np.testing.assert_array_equal(flat, np.ones(4096))


@pytest.mark.parametrize("dtype", ["bfloat16", "float8"])
def test_mean_over_seeds_is_the_exact_second_moment(dtype):
    # As the codes of a block share an exponent, one element of it is large.
    gradient, exact = np.full(4096, 1.03, np.float32), []
    gradient[::128] = 2.0
    values = []
    for seed in range(300):
        opt = fastadam.Adam(np.ones(4096, np.float32), betas=(0.9, 0.75), moment_dtype=(None, dtype), seed=seed)
        opt.step(gradient)
        values.append(moments(opt, "v")[1:128])
    exact = np.float32(0.25) * gradient[1:128] ** 2
    assert_mean(np.array(values).reshape(-1, 1), exact[:1])


# --- first moments follow constant gradients, and fade

COUNT = 2**18
# In blocks with an element of 1: two that codes have 3 bits for, and two below the lowest of a block, 2**-14, where the
# first code is 2**-17.
GRADIENTS = [0.3, 2.0**-12 * 1.3, 2.0**-16, 2.0**-19]


def first_moments(moment_dtype, beta1, gradients, rounding="stochastic"):
    """The first moments of `COUNT` elements after steps with `gradients`, without the first of each block."""
    opt = fastadam.Adam(
        np.ones(COUNT, np.float32), betas=(beta1, 0.999), moment_dtype=(moment_dtype, None), rounding=rounding
    )
    for gradient in gradients:
        flat = np.full(COUNT, gradient, np.float32)
        flat[::128] = 1.0
        opt.step(flat)
    return moments(opt, "m").reshape(-1, 128)[:, 1:].astype(float)


@pytest.mark.parametrize("moment_dtype", ["bfloat16", "float8"])
@pytest.mark.parametrize("beta1", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("gradient", [*GRADIENTS, -0.3])
def test_first_moment_of_a_constant_gradient_is_that_gradient_on_average(moment_dtype, beta1, gradient):
    opt = fastadam.Adam(np.ones(8_192, np.float32), betas=(beta1, 0.999), moment_dtype=(moment_dtype, None))
    flat = np.full(8_192, gradient, np.float32)
    flat[::128] = 1.0
    means = []
    # The elements share what changes from step to step, so the average is one over steps as well.
    for step in range(10_000):
        opt.step(flat)
        if step >= 1_000 and step % 10 == 0:
            m = moments(opt, "m").reshape(-1, 128)[:, 1:]
            means.append(m.mean(dtype=np.float64) / gradient)
    parts = np.mean(np.reshape(means, (20, -1)), axis=1)
    error = parts.std(ddof=1) / np.sqrt(20)
    assert error < 0.02
    assert abs(np.mean(means) - 1.0) < max(4 * error, 2e-3)


def test_first_moment_stays_short_of_a_constant_gradient_if_rounded_to_nearest():
    m = first_moments("bfloat16", 0.99, [0.3] * 300, "nearest") / (0.3 * (1.0 - 0.99**300))
    assert (m < 0.9).all()


@pytest.mark.parametrize("moment_dtype", ["bfloat16", "float8"])
@pytest.mark.parametrize("gradient", [*GRADIENTS, -0.3])
def test_first_moment_fades(moment_dtype, gradient):
    start = first_moments(moment_dtype, 0.95, [gradient] * 100)
    m = first_moments(moment_dtype, 0.95, [gradient] * 100 + [0.0] * 1000)
    assert np.abs(m).max() < 0.01 * np.abs(start).mean()


# --- what becomes of a fading second moment

FADING = 0.999**0.75  # of the gradients, from step to step: slower than the second moment can fade


def run_fading(moment_dtype, rounding, steps=3000):
    flat, rng = np.zeros(4096, np.float32), np.random.default_rng(0)
    opt = fastadam.Adam(flat, moment_dtype=(None, moment_dtype), rounding=rounding)
    exact = np.zeros(4096)
    for step in range(steps):
        gradient = ((0.5 + rng.random(4096)) * FADING**step).astype(np.float32)
        opt.step(gradient)
        exact += 0.001 * (gradient.astype(float) ** 2 - exact)
    return np.sqrt(moments(opt, "v")), np.sqrt(exact)


def test_second_moment_follows_fading_gradients_if_rounded_stochastically():
    actual, exact = run_fading("bfloat16", "stochastic")
    errors = actual / exact - 1.0
    assert np.quantile(np.abs(errors), 0.999) < 0.05
    assert abs(errors.mean()) < 0.005


def test_second_moment_is_stuck_if_rounded_to_nearest():
    actual, exact = run_fading("bfloat16", "nearest")
    assert (actual / exact > 1.5).all()
    assert np.unique(actual).size < 10


def test_8_bit_second_moment_follows_fading_gradients_whatever_the_rounding():
    (actual, exact), (same, _) = (run_fading("float8", rounding) for rounding in ("stochastic", "nearest"))
    assert actual.tobytes() == same.tobytes()
    errors = actual / exact - 1.0
    assert np.sqrt(np.mean(errors**2)) < 0.1
    assert abs(errors.mean()) < 0.04


# --- a learning rate too small to change what is rounded to nearest

WHY = "which are rounded to nearest: "


@pytest.mark.parametrize(
    ("dtype", "options", "lr", "remedy"),
    [
        (bfloat16, {"rounding": "nearest"}, 1e-4, "use `rounding` 'stochastic' or `master_weights`$"),
        (np.float16, {}, 1e-4, "use float32 parameters$"),
    ],
)
@pytest.mark.parametrize("kind", [fastadam.Adam, fastadam.AdamW, fastadam.NAdam, fastadam.Adamax, fastadam.RAdam])
def test_vanishing_steps_are_warned_of_where_the_optimizer_is_made(kind, dtype, options, lr, remedy):
    with pytest.warns(UserWarning, match=rf"`lr` {lr} is too small to change 100% of the .*, {WHY}{remedy}") as caught:
        kind({"w": np.ones(500, dtype)}, lr=lr, **options)
    assert [warning.filename for warning in caught] == [__file__]


def test_vanishing_steps_of_a_later_group_are_warned_of():
    opt = fastadam.Adam({"w": np.ones(500, bfloat16)}, lr=0.1, rounding="nearest")
    with pytest.warns(UserWarning, match="`lr` 0.0001 is too small") as caught:
        opt.add_param_group({"params": {"k": np.ones(500, bfloat16)}, "lr": 1e-4})
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (bfloat16, {}),
        (bfloat16, {"master_weights": True}),
        (bfloat16, {"rounding": "nearest", "lr": 2.0**-8}),
        (np.float16, {"lr": 2.0**-11}),
        (bfloat16, {"rounding": "nearest", "lr": lambda step: 1e-4}),
        (bfloat16, {"rounding": "nearest", "lr": 0.0}),
        (np.float32, {"lr": 1e-9}),
    ],
)
def test_steps_that_do_not_vanish_are_not_warned_of(dtype, options):
    fastadam.Adam({"w": np.ones(500, dtype)}, **{"lr": 1e-4, **options})  # a warning is an error


def test_share_of_stuck_parameters_is_told():
    params = {"w": np.repeat([1.0, 2.0**-8], [300, 100]).astype(bfloat16)}
    with pytest.warns(UserWarning, match="to change 75% of the bfloat16 parameters"):
        fastadam.Adam(params, lr=1e-4, rounding="nearest")
