"""Gradients of rows: lazy as torch's SparseAdam, exact as dense Adam; only named rows are touched."""

import numpy as np
import pytest
from oracle import assert_same_bits, bits, memory
from row_model import ROWS, WIDTH, dense, draw_rows, model
from training import LARGE, both, copies, pmv

import fastadam
from fastadam import SparseRows
from fastadam.kernels import PARAMETER, norm
from fastadam.kernels.blocks import cut
from fastadam.step import reduction

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
modes = pytest.mark.parametrize("sparse", ["lazy", "exact"])


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
@pytest.mark.parametrize("name", ["AdamW", "NAdam", "Adamax", "RAdam", "Lion", "AdEMAMix"])
def test_lazy_rows_are_stepped_like_a_dense_parameter_of_these_rows(dtype, name):
    params, cls = model(dtype), getattr(fastadam, name)
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


def kept(opt):
    """Views of the parameters and of both moments, by name; `state_dict` would bring all rows up to date."""
    return opt.params, *(opt.buffers.views(flat) for flat in (opt.buffers.m, opt.buffers.v))


@modes
@both
def test_other_rows_are_not_touched(sparse, flat):
    opt = fastadam.AdamW(model(np.float32), sparse=sparse, flat=flat)
    before = [copies(views) for views in kept(opt)]
    opt.step({"table": SparseRows([5], np.ones((1, WIDTH), np.float32)), "bias": np.ones(5, np.float32)})
    for old, new in zip(before, kept(opt), strict=True):
        changed = np.flatnonzero((old["table"] != new["table"]).any(axis=1))
        assert changed.tolist() == [5]
        assert (old["bias"] != new["bias"]).all()


@dtypes
@modes
def test_rows_named_twice_are_added_up_in_order(dtype, sparse):
    values = np.array([[1e8], [1.0], [-1e8], [3.0]], dtype)
    first, second = np.zeros((5, 1), dtype), np.zeros((5, 1), dtype)
    opt, other = (fastadam.Adam({"t": array}, sparse=sparse) for array in (first, second))
    opt.step({"t": SparseRows([4, 4, 4, 0], values)})
    total = ((values[0] + values[1]) + values[2])[None]
    other.step({"t": SparseRows([0, 4], np.concatenate([values[3:], total]))})
    assert_same_bits(pmv(opt), pmv(other))


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


def test_norm_of_whole_gradients_and_rows_is_in_the_order_of_the_parameters():
    shapes = {"first": 9_001, "table": (ROWS, WIDTH), "middle": (3, 8_192), "other": (9_001, 2), "last": 5}
    opt = fastadam.Adam({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, max_grad_norm=1.0)
    opt.step({name: np.ones(shape, np.float32) for name, shape in shapes.items()})
    rng = np.random.default_rng(0)
    # Whole ones and rows change places, and rows their number.
    for names in (("table",), ("table", "other"), ("table", "other"), (), ("other",), ("table", "other")):
        values, gradients = {}, {}
        for name, shape in shapes.items():
            if name == "middle" and len(names) == 1:
                gradients[name] = None
                continue
            values[name] = rng.standard_normal(shape, dtype=np.float32) * np.float32(1e3)
            gradients[name] = values[name]
            if name in names:
                rows = np.sort(rng.choice(shape[0], rng.integers(1, shape[0]), replace=False))
                values[name] = values[name][rows]
                gradients[name] = SparseRows(rows, values[name])
        opt.step(gradients)
        assert opt.grad_norm == np.sqrt(norm.squared_norm([each.ravel() for each in values.values()]))


def test_whole_gradients_are_cut_once(monkeypatch):
    shapes = {"first": (5 * LARGE,), "table": (ROWS, WIDTH), "last": (LARGE,)}
    opt = fastadam.Adam({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, max_grad_norm=1.0)
    asked = []
    monkeypatch.setattr(reduction, "cut", lambda pieces: asked.append(pieces[:, PARAMETER].tolist()) or cut(pieces))
    for rows in ([1, 2], [3], [5, 7, 9]):
        whole = {name: np.ones(shapes[name], np.float32) for name in ("first", "last")}
        opt.step({**whole, "table": SparseRows(rows, np.ones((len(rows), WIDTH), np.float32))})
    assert asked == [[0, 2], [1], [1], [1]]


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
    "width": ([1], np.ones((1, 6), F4), ValueError, r"must have shape \(1, 7\) like the gradient of 1 rows.*\(1, 6\)"),
    "count": ([1, 2], np.ones((1, 7), F4), ValueError, r"shape \(2, 7\) like the gradient of 2 rows.*\(1, 7\)"),
    "dtype": ([1], np.ones((1, 7)), TypeError, "values` must be float32 like the gradient of 1 rows, got float64"),
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


@modes
@pytest.mark.parametrize("zero_grad", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_policies_hold_for_rows_too(sparse, zero_grad, value):
    params = model(np.float32)
    grads = {"table": SparseRows([7, 2], np.full((2, WIDTH), 0.5, np.float32)), "bias": np.ones(5, np.float32)}
    grads["table"].values[0, 3] = value
    skip = fastadam.Adam(params, nonfinite="skip", sparse=sparse, zero_grad=zero_grad)
    before = params["table"].copy()
    skip.step(grads)
    assert skip.skipped_steps == 1
    np.testing.assert_array_equal(params["table"], before)
    assert grads["bias"].any() != zero_grad
    refuse = fastadam.Adam(model(np.float32), nonfinite="raise", sparse=sparse)
    with pytest.raises(FloatingPointError, match=rf"gradient of 'table' must be finite, got {value} at index \(7, 3\)"):
        refuse.step(grads)


def test_values_may_lie_in_the_optimizers_own_memory():
    opt, expected = (fastadam.Adam(model(np.float32)) for _ in range(2))
    bias = np.ones(5, np.float32)
    for one, value in ((opt, lambda array: array), (expected, np.copy)):
        one.step({"table": SparseRows([5, 6], np.ones((2, WIDTH), np.float32)), "bias": bias})
        moments = one.buffers.views(one.buffers.m)["table"]
        one.step({"table": SparseRows([6, 7], value(moments[5:7])), "bias": bias})
    assert memory(opt) == memory(expected)


def test_values_must_not_lie_inside_of_a_parameter():
    params = model(np.float32)
    opt, before = fastadam.Adam(params), copies(params)
    with pytest.raises(ValueError, match=r"`grads\['table'\]` must not share memory with a parameter"):
        opt.step({"table": SparseRows([6, 7], params["table"][5:7]), "bias": np.ones(5, np.float32)})
    assert bits(params) == bits(before)


def test_values_may_lie_in_the_gradients_of_another_parameter():
    rows = np.ones((5, 1), np.float32)
    small = fastadam.Adam({"table": rows, "bias": np.zeros((5, 1), np.float32)})
    small.grads["bias"] = 0.5
    small.step({"bias": np.ones((5, 1), np.float32), "table": SparseRows(range(5), small.grads["bias"])})
    np.testing.assert_allclose(small.buffers.views(small.buffers.m)["table"], 0.05, rtol=1e-6)
