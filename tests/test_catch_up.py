"""Exact rows: dense Adam to rounding, by making up for the steps that a row has missed."""

import numpy as np
import pytest
from row_model import WIDTH, dense, draw_rows, model
from training import pmv

import fastadam
from fastadam import SparseRows
from fastadam.kernels.cpu.rows import catch_up_table

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
F4 = np.float32


@dtypes
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (fastadam.Adam, {}),
        (fastadam.AdamW, {"weight_decay": 0.1}),
        (fastadam.AdamW, {"weight_decay": 1e-3, "decouple_lr": True}),
        (fastadam.Adam, {"convention": "keras", "eps": 1e-4}),
        (fastadam.NAdam, {"weight_decay": 0.05, "decoupled_weight_decay": True}),
        (fastadam.Adam, {"betas": (0.5, 0.9)}),
        (fastadam.Adam, {"betas": (0.0, 0.99), "maximize": True}),
    ],
    ids=str,
)
def test_exact_is_dense_adam_to_rounding(cls, options, dtype):
    lr = fastadam.schedules.WarmupCosine(1e-2, 20, 300)
    there, here = model(dtype), model(dtype)
    expected, opt = cls(there, lr=lr, **options), cls(here, lr=lr, sparse="exact", **options)
    rng = np.random.default_rng(2)
    for _ in range(300):
        # Gradients of a row from far below eps to far above it.
        indices, values = draw_rows(rng, dtype, count=3, scale=10.0 ** rng.uniform(-10, 0))
        bias = rng.standard_normal(5).astype(dtype)
        expected.step({"table": dense(indices, values), "bias": bias})
        opt.step({"table": SparseRows(indices, values), "bias": bias})
    unit, tiny, (p, m, v) = np.finfo(dtype).eps, np.finfo(dtype).tiny, pmv(expected)
    scales = 1 + np.abs(p), np.abs(m) + np.sqrt(v) + tiny, v + tiny
    for name, actual, exact, scale in zip("pmv", pmv(opt), (p, m, v), scales, strict=True):
        errors = np.abs(actual.astype(float) - exact) / (scale * unit)
        assert errors.max() <= 60, (name, errors.max())


@dtypes
def test_runs_of_steps_are_made_up_for_in_few(dtype):
    opt = fastadam.Adam(model(dtype), sparse="exact")
    for row in (0, *[1] * 500):
        opt.step({"table": SparseRows([row], np.ones((1, WIDTH), dtype)), "bias": np.ones(5, dtype)})
    past = opt._engine._history
    _, history, totals = past._past[0]
    table, _ = catch_up_table(np.array([1]), 500, history, totals, np.dtype(dtype))
    late, _ = catch_up_table(np.array([300]), 500, history, totals, np.dtype(dtype))
    assert [len(table), len(late)] == ([20, 4] if dtype is np.float32 else [209, 100])


def test_dense_and_sparse_gradients_may_take_turns():
    there, here = model(np.float64), model(np.float64)
    expected, opt = fastadam.AdamW(there), fastadam.AdamW(here, sparse="exact")
    rng = np.random.default_rng(3)
    for step in range(40):
        indices, values = draw_rows(rng, np.float64)
        gradient = dense(indices, values)
        expected.step({"table": gradient, "bias": np.ones(5)})
        rows = SparseRows(indices, values)
        opt.step({"table": gradient if step % 7 == 3 else rows, "bias": np.ones(5)})
    opt.catch_up()
    np.testing.assert_allclose(here["table"], there["table"], rtol=1e-13, atol=1e-15)


def test_catching_up_twice_is_catching_up_once_and_rows_can_be_chosen():
    params = model(np.float32)
    opt = fastadam.AdamW(params, sparse="exact")
    for row in (7, 8, 9):
        opt.step({"table": SparseRows([row], np.ones((1, WIDTH), np.float32)), "bias": np.ones(5, np.float32)})
    before = params["table"].copy()
    opt.catch_up("table", [7, 7, 9])
    changed = np.flatnonzero((params["table"] != before).any(axis=1))
    assert changed.tolist() == [7]
    once = params["table"].copy()
    opt.catch_up("table", np.array([7]))
    np.testing.assert_array_equal(params["table"], once)
    opt.catch_up()
    assert (params["table"][8] != once[8]).all()


@pytest.mark.parametrize("sparse", ["lazy", "exact"])
def test_resume_is_the_same_run(sparse):
    def run(opt, steps):
        for seed in steps:
            rng = np.random.default_rng(seed)
            opt.step({"table": SparseRows(*draw_rows(rng, np.float64)), "bias": rng.standard_normal(5)})

    params = model(np.float64)
    straight = fastadam.AdamW(params, sparse=sparse)
    run(straight, range(20))
    state, copies = straight.state_dict(), {name: view.copy() for name, view in params.items()}
    run(straight, range(20, 40))
    resumed = fastadam.AdamW(copies, sparse=sparse)
    resumed.load_state_dict(state)
    run(resumed, range(20, 40))
    straight.catch_up()
    resumed.catch_up()
    np.testing.assert_array_equal(copies["table"], params["table"])


def test_catch_up_checks_its_arguments():
    opt = fastadam.Adam(model(F4), sparse="exact")
    with pytest.raises(ValueError, match="`name` must be a parameter's name, got 'x'"):
        opt.catch_up("x")
    with pytest.raises(ValueError, match=r"`indices` must be in \[0, 60\), got 99"):
        opt.catch_up("table", [99])


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (fastadam.Adam, {"amsgrad": True}),
        (fastadam.Adam, {"weight_decay": 0.1}),
        (fastadam.Adam, {"ema_decay": 0.9}),
        (fastadam.Adam, {"copy_dtype": "float16"}),
        (fastadam.Adam, {"convention": "optax", "eps_root": 1e-8}),
        (fastadam.Adamax, {}),
        (fastadam.RAdam, {}),
    ],
    ids=str,
)
def test_exact_rows_need_adam_itself(cls, options):
    params = model(F4)
    table = params["table"]
    with pytest.raises(ValueError, match=r"`sparse` must be 'lazy' unless .* got 'exact'"):
        cls(params, sparse="exact", **options)
    assert params["table"] is table


def test_loading_a_state_takes_the_parameters_as_they_are():
    opt = fastadam.Adam(model(np.float64), sparse="exact")
    for row in (1, 2, 3):
        opt.step({"table": SparseRows([row], np.ones((1, WIDTH))), "bias": np.ones(5)})
    state, saved = opt.state_dict(), opt.params["table"].copy()
    for row in (4, 5, 6):
        opt.step({"table": SparseRows([row], np.ones((1, WIDTH))), "bias": np.ones(5)})
    opt.params["table"] = saved
    opt.load_state_dict(state)
    opt.catch_up()
    np.testing.assert_array_equal(opt.params["table"], saved)


def test_a_state_of_a_decoupled_decay_is_loaded_at_once():
    state = fastadam.AdamW(np.ones(3), weight_decay=0.1, sparse="exact").state_dict()
    opt = fastadam.Adam(np.ones(3), sparse="exact")
    opt.load_state_dict(state)
    assert opt.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("betas", [(0.9, 0.5), (0.9, 0.81), (0.9, 0.0)])
def test_what_would_not_fade_is_refused(betas):
    with pytest.raises(ValueError, match=r"`betas` must have beta1 <= 0.999 \* sqrt\(beta2\)"):
        fastadam.Adam(np.ones(3), betas=betas, sparse="exact")
    opt = fastadam.Adam(np.ones(3), sparse="exact")
    with pytest.raises(ValueError, match="would not fade"):
        opt.param_groups[0]["betas"] = betas


def test_a_decay_that_is_no_factor_is_refused_before_anything_is_written():
    params = model(np.float64)
    opt = fastadam.AdamW(params, lr=lambda step: 20.0 * step, weight_decay=0.1, sparse="exact")
    grads = {"table": SparseRows([1], np.ones((1, WIDTH))), "bias": np.ones(5)}
    opt.step(grads)
    before = params["table"].copy()
    with pytest.raises(ValueError, match=r"`lr` \* `weight_decay` must be < 1 with `sparse` 'exact', got 2.0"):
        opt.step(grads)
    np.testing.assert_array_equal(params["table"], before)
    assert opt.state_dict()["state"]["table"]["step"] == 1
