"""`max_grad_norm_per_param`: the gradient of each parameter is clipped by its own norm, and nothing else changes."""

import math

import numba
import numpy as np
import pytest
from oracle import bits, memory
from training import HYPER, LARGE, both, copies, dtypes, make, ways

import fastadam
from fastadam import SparseRows
from fastadam.kernels import cpu, norm, reference
from fastadam.kernels.texts.member import CLIP

SHAPES = {"w": (3, 5), "b": (), "none": (0, 4), "large": (2, LARGE), "k": 8193}
MOST = 0.75


def factor(gradient, most=MOST, grad_scale=1.0):
    """The factor of one parameter."""
    length = grad_scale * math.sqrt(norm.squared_norm([np.ravel(gradient)]))
    assert length == pytest.approx(grad_scale * math.hypot(*np.ravel(gradient).tolist()), rel=1e-12)
    return most / max(length, most)


def apart(params, **options):
    """An optimizer for each parameter."""
    return {name: fastadam.AdamW({name: array}, **HYPER, **options) for name, array in params.items()}


@dtypes
@ways
@both
@pytest.mark.parametrize("most", [MOST, 1e6], ids=["clipped", "not clipped"])
def test_each_parameter_steps_as_with_a_gradient_scale_of_its_own(most, way, dtype, flat):
    params = make(SHAPES, dtype=dtype)
    opt, others = fastadam.AdamW(copies(params), **HYPER, flat=flat, max_grad_norm_per_param=most), apart(params)
    for seed, grad_scale in ((1, 1.0), (2, 0.3), (3, 256.0)):
        grads = make(SHAPES, seed, dtype)
        kept = copies(grads)
        way(opt, grads, grad_scale=grad_scale)
        assert bits(grads) == bits(kept)
        for name, other in others.items():
            scale = factor(grads[name], most, grad_scale)
            assert scale == 1.0 or most == MOST
            other.step({name: grads[name]}, grad_scale=grad_scale * scale)
    for name, other in others.items():
        np.testing.assert_array_equal(opt.params[name], other.params[name])


def test_threads_groups_and_order_change_no_bit():
    grads, results = make(SHAPES, 1), set()
    most = numba.get_num_threads()
    for threads in {1, most}:
        for sets in ([[*SHAPES]], [["w", "b"], ["none", "large"], ["k"]], [[name] for name in reversed(SHAPES)]):
            params = make(SHAPES)
            groups = [{"params": {name: params[name] for name in names}} for names in sets]
            opt = fastadam.AdamW(groups, **HYPER, max_grad_norm_per_param=MOST)
            numba.set_num_threads(threads)
            try:
                opt.step(dict(reversed(grads.items())))
            finally:
                numba.set_num_threads(most)
            results.add(tuple(sorted((name, array.tobytes()) for name, array in params.items())))
    assert len(results) == 1


@pytest.mark.parametrize("counts", [[1, 3, 1], [8193, 2], [5, 70_000], []], ids=str)
def test_factors_on_numpy_and_compiled(counts):
    rng, ends = np.random.default_rng(0), np.cumsum(np.array(counts, np.int64))
    sums = rng.standard_normal(max(1, sum(counts))) ** 2 * np.exp(rng.standard_normal(max(1, sum(counts))))
    clocks, kept = np.arange(len(counts))[::-1].copy(), sums.copy()
    found = []
    for backend in (cpu, reference):
        tables = backend.tables(len(counts), len(counts))
        backend.clip_each(sums, ends, clocks, 0.25, 0.3, tables)
        np.testing.assert_array_equal(sums, kept)
        found.append(tables.hyper[clocks, CLIP].tolist())
    parts = np.split(sums, ends[:-1]) if counts else []
    assert found[0] == found[1] == [0.3 / max(0.25 * math.sqrt(norm.combine(part.copy())), 0.3) for part in parts]


def test_norm_is_that_of_all_before_clipping():
    opt, other = (fastadam.Adam(make(SHAPES), **{key: 1e-3}) for key in ("max_grad_norm_per_param", "max_grad_norm"))
    for each in (opt, other):
        each.step(make(SHAPES, 1))
    assert opt.grad_norm == other.grad_norm > 1.0


def test_parameters_without_a_gradient_stand_still():
    params = make(SHAPES)
    opt, others = fastadam.AdamW(copies(params), **HYPER, max_grad_norm_per_param=MOST), apart(params)
    for seed, missing in ((1, "w"), (2, "large"), (3, "w"), (4, None)):
        grads = {name: None if name == missing else each for name, each in make(SHAPES, seed).items()}
        opt.step(grads)
        for name, other in others.items():
            if grads[name] is not None:
                other.step({name: grads[name]}, grad_scale=factor(grads[name]))
    steps = {name: entry["step"] for name, entry in opt.state_dict()["state"].items()}
    assert steps == {name: other.state_dict()["state"][name]["step"] for name, other in others.items()}
    for name, other in others.items():
        np.testing.assert_array_equal(opt.params[name], other.params[name])


def test_rows_that_are_named_twice_are_added_up_first():
    params = {"table": np.ones((50, 3)), "w": np.ones(4)}
    opts = [fastadam.Adam(copies(params), lr=0.1, max_grad_norm_per_param=MOST) for _ in range(2)]
    values = np.random.default_rng(0).standard_normal((4, 3))
    dense = np.zeros((50, 3))
    np.add.at(dense, [7, 3, 7, 9], values)
    opts[0].step({"table": SparseRows([7, 3, 7, 9], values), "w": np.ones(4)})
    opts[1].step({"table": dense, "w": np.ones(4)})
    for name in params:
        np.testing.assert_allclose(opts[0].params[name], opts[1].params[name], rtol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_parameter(value):
    params, grads = make({"a": (5,), "b": (4,)}), make({"a": (5,), "b": (4,)}, 1)
    opt, other = fastadam.Adam(copies(params), max_grad_norm_per_param=MOST), fastadam.Adam({"b": params["b"].copy()})
    grads["a"][2] = value
    opt.step(grads)
    other.step({"b": grads["b"]}, grad_scale=factor(grads["b"]))
    assert np.isnan(opt.params["a"][2])
    np.testing.assert_array_equal(opt.params["b"], other.params["b"])


def test_policies_for_what_is_not_finite():
    grads = {"a": np.full(5, 1e30, np.float32), "b": np.ones(4, np.float32)}
    for policy in ("skip", "raise"):
        opt = fastadam.Adam(make({"a": (5,), "b": (4,)}), nonfinite=policy, max_grad_norm_per_param=MOST)
        opt.step(grads)  # its square overflows, but not after it was clipped
        before = memory(opt)
        grads["a"][0] = np.nan
        if policy == "raise":
            with pytest.raises(FloatingPointError, match="the gradient of 'a' must be finite, got nan at index"):
                opt.step(grads)
        else:
            opt.step(grads)
            assert opt.skipped_steps == 1
        assert memory(opt) == before
        grads["a"][0] = 1e30
    opt = fastadam.Adam(make({"a": (5,)}), nonfinite="skip", max_grad_norm_per_param=1e30)
    opt.step({"a": grads["a"]})  # clipped to what has a square that overflows
    assert opt.skipped_steps == 1
    fastadam.Adam(make({"a": (5,)}), max_grad_norm_per_param=1e200).step(make({"a": (5,)}, 1))


def test_a_checkpoint_says_what_it_was_and_goes_on(tmp_path):
    opts = [fastadam.Adam(make({"a": (5,), "b": (4,)}), max_grad_norm_per_param=most) for most in (MOST, MOST, None)]
    grads = [make({"a": (5,), "b": (4,)}, seed) for seed in (1, 2)]
    opts[0].step(grads[0])
    opts[0].save(tmp_path / "run.safetensors")
    changed = [opt.load(tmp_path / "run.safetensors").changed for opt in opts[1:]]
    assert changed == [{}, {"max_grad_norm_per_param": (MOST, None)}]
    for opt in opts[:2]:
        opt.step(grads[1])
    assert memory(opts[0]) == memory(opts[1])
