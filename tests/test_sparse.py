"""Gradients of rows: lazy as torch's SparseAdam, exact as dense Adam; only named rows are touched."""

import numpy as np
import pytest
from oracle import assert_same_bits
from training import LARGE

import fastadam
from fastadam import SparseRows
from fastadam.kernels import catch_up, cpu

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
modes = pytest.mark.parametrize("sparse", ["lazy", "exact"])
ROWS, WIDTH = 60, 7


def draw_rows(rng, dtype, count=4, rows=ROWS, width=WIDTH, scale=1.0):
    """Row indices, some of them twice, and their gradients."""
    return rng.integers(0, rows, count), (scale * rng.standard_normal((count, width))).astype(dtype)


def dense(indices, values, rows=ROWS):
    gradient = np.zeros((rows, *values.shape[1:]), values.dtype)
    np.add.at(gradient, indices, values)
    return gradient


def model(dtype, seed=0):
    rng = np.random.default_rng(seed)
    return {"table": rng.standard_normal((ROWS, WIDTH)).astype(dtype), "bias": np.ones(5, dtype)}


# --- lazy


@dtypes
def test_lazy_is_torch_sparse_adam(dtype):
    torch = pytest.importorskip("torch")
    params = model(dtype)
    table = torch.nn.Parameter(torch.tensor(params["table"]))
    theirs = torch.optim.SparseAdam([table], lr=1e-2, eps=1e-3)
    # SparseAdam has the eps-hat convention, and no decay.
    ours = fastadam.Adam({"table": params["table"]}, lr=1e-2, eps=1e-3, convention="sklearn")
    rng = np.random.default_rng(1)
    for _ in range(200):
        indices, values = draw_rows(rng, dtype)
        table.grad = torch.sparse_coo_tensor(
            torch.tensor(indices[None]), torch.tensor(values), (ROWS, WIDTH), check_invariants=True
        )
        theirs.step()
        ours.step({"table": SparseRows(indices, values)})
    tolerance = {np.float32: 2e-6, np.float64: 1e-13}[dtype]
    np.testing.assert_allclose(ours.params["table"], table.detach().numpy(), rtol=tolerance, atol=tolerance)


@dtypes
@pytest.mark.parametrize("cls", [fastadam.AdamW, fastadam.NAdam, fastadam.Adamax, fastadam.RAdam])
def test_lazy_rows_are_stepped_like_a_dense_parameter_of_these_rows(dtype, cls):
    params = model(dtype)
    whole = cls({"table": params["table"].copy()}, weight_decay=0.1)
    indices = np.array([3, 59, 17])
    part = cls({"rows": params["table"][indices].copy()}, weight_decay=0.1)
    for seed in range(4):
        values = np.random.default_rng(seed).standard_normal((3, WIDTH)).astype(dtype)
        whole.step({"table": SparseRows(indices, values)})
        part.step({"rows": values})
    np.testing.assert_array_equal(whole.params["table"][indices], part.params["rows"])


@dtypes
def test_all_extras_reach_the_rows(dtype):
    options = {"ema_decay": 0.9, "copy_dtype": "float16", "clip_value": 0.5, "amsgrad": True}
    params = model(dtype)
    whole = fastadam.AdamW({"table": params["table"].copy()}, **options)
    indices = np.array([0, 1, 59])
    part = fastadam.AdamW({"rows": params["table"][indices].copy()}, **options)
    for seed in range(3):
        values = np.random.default_rng(seed).standard_normal((3, WIDTH)).astype(dtype)
        whole.step({"table": SparseRows(indices, values)})
        part.step({"rows": values})
    for mapping in ("params", "ema", "copies"):
        np.testing.assert_array_equal(getattr(whole, mapping)["table"][indices], getattr(part, mapping)["rows"])


@modes
def test_other_rows_are_not_touched(sparse):
    params = model(np.float32)
    opt = fastadam.AdamW(params, sparse=sparse)
    before = [flat.copy() for flat in (opt.buffers.p, opt.buffers.m, opt.buffers.v)]
    opt.step({"table": SparseRows([5], np.ones((1, WIDTH), np.float32)), "bias": np.ones(5, np.float32)})
    for old, new in zip(before, (opt.buffers.p, opt.buffers.m, opt.buffers.v), strict=True):
        changed = np.flatnonzero((opt.buffers.views(old)["table"] != opt.buffers.views(new)["table"]).any(axis=1))
        assert changed.tolist() == [5]
        assert (opt.buffers.views(old)["bias"] != opt.buffers.views(new)["bias"]).all()


@dtypes
@modes
def test_rows_named_twice_are_added_up_in_order(dtype, sparse):
    values = np.array([[1e8], [1.0], [-1e8], [3.0]], dtype)
    first, second = np.zeros((5, 1), dtype), np.zeros((5, 1), dtype)
    opt, other = (fastadam.Adam({"t": array}, sparse=sparse) for array in (first, second))
    opt.step({"t": SparseRows([4, 4, 4, 0], values)})
    total = ((values[0] + values[1]) + values[2])[None]
    other.step({"t": SparseRows([0, 4], np.concatenate([values[3:], total]))})
    assert_same_bits((opt.buffers.p, opt.buffers.m, opt.buffers.v), (other.buffers.p, other.buffers.m, other.buffers.v))


# --- exact


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
    opt.catch_up()
    unit, tiny, flats = np.finfo(dtype).eps, np.finfo(dtype).tiny, expected.buffers
    scale = {"p": 1 + np.abs(flats.p), "m": np.abs(flats.m) + np.sqrt(flats.v) + tiny, "v": flats.v + tiny}
    for name, size in scale.items():
        errors = np.abs(getattr(opt.buffers, name).astype(float) - getattr(flats, name)) / (size * unit)
        assert errors.max() <= 60, (name, errors.max())


@dtypes
@pytest.mark.parametrize("missed", [1, 2, 30, 700])
def test_quadrature_of_missed_steps(dtype, missed):
    """One row after steps that it missed, for every size of v, against the sum over these steps in float64."""
    v = np.logspace(-24, 0, 200).astype(dtype)
    m = np.sqrt(v)
    p = np.ones(200, dtype)
    steps = np.arange(1, missed + 1)
    eps = 1e-8 * np.sqrt(1 - 0.999**steps)
    history = np.column_stack(
        [np.full(missed, 1e-3), eps, np.full(missed, 1 - 1e-5), np.full(missed, 0.1), np.full(missed, 1e-3)]
    )
    totals = np.zeros((missed + 1, catch_up.TOTALS))
    for j, step in enumerate(history):
        catch_up.add_logs(totals[j], step, totals[j + 1])
    expected_p, root = p.astype(np.float64), np.sqrt(v.astype(np.float64))
    for j, (size, eps_j, decay, _, _) in enumerate(history, start=1):
        expected_p = expected_p * decay - size * m * 0.9**j / (root * 0.999 ** (j / 2) + eps_j)
    expected = expected_p, m * 0.9**missed, v * 0.999**missed
    table, starts = cpu.catch_up_table(np.array([0]), missed, history, totals, p.dtype)
    cpu.catch_up((p, m, v), np.array([[0, 200, 0]]), table, starts)
    unit = np.finfo(dtype).eps
    for actual, exact in zip((p, m, v), expected, strict=True):
        np.testing.assert_allclose(actual, exact, rtol=(4 + 2 * len(table)) * unit, atol=np.finfo(dtype).tiny)


@dtypes
def test_runs_of_steps_are_made_up_for_in_few(dtype):
    opt = fastadam.Adam(model(dtype), sparse="exact")
    for row in (0, *[1] * 500):
        opt.step({"table": SparseRows([row], np.ones((1, WIDTH), dtype)), "bias": np.ones(5, dtype)})
    past = opt._pasts[0]
    history, totals = past._history[0], past._totals[0]
    table, _ = cpu.catch_up_table(np.array([1]), 500, history, totals, np.dtype(dtype))
    late, _ = cpu.catch_up_table(np.array([300]), 500, history, totals, np.dtype(dtype))
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


@modes
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


# --- with the rest of a step


@modes
@pytest.mark.parametrize("size", [5, LARGE + 5], ids=["small", "large"])
def test_clipping_counts_the_rows(sparse, size):
    params = {"table": np.ones((ROWS, WIDTH), np.float32), "bias": np.ones(size, np.float32)}
    other = {name: array.copy() for name, array in params.items()}
    opt = fastadam.Adam(params, max_grad_norm=1.0, nonfinite="skip", sparse=sparse)
    expected = fastadam.Adam(other, max_grad_norm=1.0)
    indices, values = draw_rows(np.random.default_rng(0), np.float32)
    gradient = dense(indices, values)
    opt.step({"table": SparseRows(indices, values), "bias": np.ones(size, np.float32)})
    expected.step({"table": gradient, "bias": np.ones(size, np.float32)})
    assert opt.grad_norm == pytest.approx(expected.grad_norm, rel=1e-12)
    rows = np.unique(indices)
    np.testing.assert_allclose(params["table"][rows], other["table"][rows], rtol=1e-6)
    np.testing.assert_allclose(params["bias"], other["bias"], rtol=1e-6)
    before = opt.state_dict()["state"]
    opt.step({"table": SparseRows(indices, values * np.float32(np.nan)), "bias": np.ones(size, np.float32)})
    assert opt.skipped_steps == 1
    np.testing.assert_array_equal(opt.state_dict()["state"]["table"]["exp_avg"], before["table"]["exp_avg"])


def test_values_are_only_read():
    values = np.ones((2, WIDTH), np.float32)
    values.flags.writeable = False
    opt = fastadam.Adam(model(np.float32), zero_grad=True)
    opt.step({"table": SparseRows([3, 1], values), "bias": np.ones(5, np.float32)})
    assert (values == 1).all()


@modes
@pytest.mark.parametrize("indices", [[], np.array([], np.int32), np.array([2], np.uint8), np.array([58, 2], np.int64)])
def test_kinds_of_indices(sparse, indices):
    opt = fastadam.Adam(model(np.float32), sparse=sparse)
    values = np.ones((len(indices), WIDTH), np.float32)
    opt.step({"table": SparseRows(indices, values), "bias": np.ones(5, np.float32)})
    touched = np.flatnonzero(opt.buffers.views(opt.buffers.m)["table"].any(axis=1))
    assert touched.tolist() == sorted(int(index) for index in indices)


@modes
def test_rows_of_vectors_and_of_higher_arrays(sparse):
    params = {"vector": np.zeros(9), "cube": np.zeros((4, 2, 3))}
    opt = fastadam.Adam(params, lr=0.1, sparse=sparse)
    opt.step({"vector": SparseRows([8], np.ones(1)), "cube": SparseRows([2], np.ones((1, 2, 3)))})
    np.testing.assert_allclose(params["vector"], [0.0] * 8 + [-0.1], rtol=1e-6)
    np.testing.assert_allclose(params["cube"].sum(axis=(1, 2)), [0, 0, -0.6, 0], rtol=1e-6)


def test_torch_tensors_are_rows_too():
    torch = pytest.importorskip("torch")
    opt = fastadam.Adam(model(np.float32))
    rows = SparseRows(torch.tensor([4, 2]), torch.ones(2, WIDTH))
    opt.step({"table": rows, "bias": np.ones(5, np.float32)})
    assert np.flatnonzero(opt.buffers.views(opt.buffers.m)["table"].any(axis=1)).tolist() == [2, 4]


F4 = np.float32
BAD = {
    "too large": ([60], np.ones((1, 7), F4), ValueError, r"`grads\['table'\].indices` must be in \[0, 60\), got 60"),
    "negative": ([-1], np.ones((1, 7), F4), ValueError, r"indices` must be in \[0, 60\), got -1"),
    "floats": ([0.5], np.ones((1, 7), F4), TypeError, "indices` must be integers, got float64"),
    "booleans": ([True], np.ones((1, 7), F4), TypeError, "indices` must be integers, got bool"),
    "matrix": ([[1]], np.ones((1, 7), F4), ValueError, r"indices` must be 1-D, got shape \(1, 1\)"),
    "width": ([1], np.ones((1, 6), F4), ValueError, r"values` must have shape \(1, 7\) like 1 rows of .*\(1, 6\)"),
    "count": ([1, 2], np.ones((1, 7), F4), ValueError, r"values` must have shape \(2, 7\) like 2 rows.*\(1, 7\)"),
    "dtype": ([1], np.ones((1, 7)), TypeError, "values` must be float32 like 1 rows of its parameter, got float64"),
    "no array": ([1], "x", TypeError, "values` must be a NumPy or CuPy array.*got str"),
}


@modes
@pytest.mark.parametrize(("indices", "values", "error", "message"), BAD.values(), ids=BAD.keys())
def test_bad_rows_are_refused_and_nothing_is_written(sparse, indices, values, error, message):
    params = model(F4)
    opt = fastadam.AdamW(params, sparse=sparse)
    before = {name: view.copy() for name, view in params.items()}
    with pytest.raises(error, match=message):
        opt.step({"table": SparseRows(indices, values), "bias": np.ones(5, F4)})
    for name, view in params.items():
        np.testing.assert_array_equal(view, before[name])
    opt.step({"table": SparseRows([1], np.ones((1, 7), F4)), "bias": np.ones(5, F4)})
    assert opt.state_dict()["state"]["table"]["step"] == 1


def test_a_parameter_without_rows_is_refused():
    opt = fastadam.Adam({"scalar": np.zeros((), F4)})
    with pytest.raises(ValueError, match=r"`grads\['scalar'\]` must be an array for a parameter without rows"):
        opt.step({"scalar": SparseRows([0], np.ones(1, F4))})


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
