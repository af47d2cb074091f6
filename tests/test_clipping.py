"""`max_grad_norm` and `grad_norm`: the norm of all gradients, the same to the last bit however they are handed over."""

import math

import numba
import numpy as np
import pytest
import systems
from oracle import bits, memory
from training import HYPER, LARGE, both, by_mapping, copies, dtypes, make, ways

import fastadam

SHAPES = {"w": (3, 5), "b": (), "none": (0, 4), "large": (2, LARGE), "k": 8193}
BLOCKS = {"w": 70 * 8192 + 3, "b": 130}  # more blocks than are added up at once


def exact_norm(grads, grad_scale=1.0):
    return grad_scale * math.sqrt(math.fsum(x * x for g in grads.values() for x in np.ravel(g).astype(float).tolist()))


def factor(norm, most):
    return min(1.0, most / (norm + 1e-6))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 5e-5), (np.float64, 1e-12)])
def test_200_steps_as_torch_clips_them(dtype, tolerance):
    torch = pytest.importorskip("torch")
    shapes = {"w": (4, 5), "b": (), "k": 11}
    params, clipped, norms = make(shapes, dtype=dtype), [], []
    opt = fastadam.AdamW(copies(params), **HYPER, max_grad_norm=3.0)
    for seed in range(1, 201):
        grads = {
            name: np.asarray(array * dtype(10.0 ** (seed % 3 - 1))) for name, array in make(shapes, seed, dtype).items()
        }
        kept = copies(grads)
        opt.step(grads)
        assert bits(grads) == bits(kept)
        tensors = [torch.nn.Parameter(torch.tensor(gradient)) for gradient in grads.values()]
        for tensor, gradient in zip(tensors, grads.values(), strict=True):
            tensor.grad = torch.tensor(gradient)
        norms.append(float(torch.nn.utils.clip_grad_norm_(tensors, 3.0)))
        assert opt.grad_norm == pytest.approx(norms[-1], rel=1e-6 if dtype == np.float32 else 1e-14)
        clipped.append(dict(zip(grads, (tensor.grad.numpy() for tensor in tensors), strict=True)))
    assert min(norms) < 1.0 < 3.0 < max(norms)
    for name, theirs in systems.run_torch("AdamW", params, clipped, **HYPER).items():
        np.testing.assert_allclose(opt.params[name], theirs, rtol=1e-5 if dtype == np.float32 else 0.0, atol=tolerance)


@dtypes
@pytest.mark.parametrize("options", [{"max_grad_norm": 0.5}, {"nonfinite": "skip"}, {"nonfinite": "raise"}], ids=str)
@pytest.mark.parametrize("shapes", [SHAPES, BLOCKS], ids=["shapes", "many blocks"])
def test_norm_is_exact(shapes, options, dtype):
    opt, grads = fastadam.Adam(make(shapes, dtype=dtype), **options), make(shapes, 1, dtype)
    opt.step(grads, grad_scale=0.3)
    assert type(opt.grad_norm) is float
    assert opt.grad_norm == pytest.approx(exact_norm(grads, 0.3), rel=1e-12)
    opt.step({name: np.zeros_like(gradient) for name, gradient in grads.items()})
    assert opt.grad_norm == 0.0
    assert all(np.isfinite(view).all() for view in opt.params.values())


def test_norm_is_none_where_nothing_asks_for_it():
    opt = fastadam.Adam(np.ones(3), clip_value=1.0, ema_decay=0.5)
    assert opt.grad_norm is None
    opt.step(np.ones(3))
    assert opt.grad_norm is None


def test_norm_without_any_element():
    opt = fastadam.Adam({"w": np.ones((0, 3))}, max_grad_norm=1.0, nonfinite="raise")
    opt.step({"w": np.ones((0, 3))})
    assert opt.grad_norm == 0.0


LIMITS = [{"max_grad_norm": 1.0}, {"max_grad_norm_per_param": 1.0}, {"nonfinite": "skip"}]


@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_norm_without_any_gradient(limit):  # Megatron-LM#5529
    arrays = {"w": np.ones(3), "empty": np.ones((0, 3))}
    opt = fastadam.AdamW(arrays, weight_decay=0.5, **limit)
    for grads in ({"w": None, "empty": None}, {"w": None, "empty": np.ones((0, 3))}):
        opt.step(grads)
        assert opt.grad_norm == 0.0
    assert arrays["w"].tolist() == [1.0] * 3
    opt.step({"w": np.array([3.0, 0.0, 4.0]), "empty": None})
    assert opt.grad_norm == 5.0
    assert arrays["w"][0] < 1.0


# --- the step is that with the factor as a scale, to the last bit


def check_step_is_one_with_a_gradient_scale(kind, most, way, dtype, **options):
    clipped, scaled = (kind(make(SHAPES, dtype=dtype), **options, **more) for more in ({"max_grad_norm": most}, {}))
    for seed, grad_scale in ((1, 1.0), (2, 0.3), (3, 256.0)):
        grads = make(SHAPES, seed, dtype)
        way(clipped, grads, grad_scale=grad_scale)
        scaled.step(grads, grad_scale=grad_scale * factor(clipped.grad_norm, most))
        assert clipped.grad_norm == pytest.approx(exact_norm(grads, grad_scale), rel=1e-12)
    assert memory(clipped) == memory(scaled)


@dtypes
@ways
@both
@pytest.mark.parametrize("most", [1e-3, 1e6], ids=["clipped", "not clipped"])
def test_step_is_one_with_a_gradient_scale(most, way, dtype, flat):
    check_step_is_one_with_a_gradient_scale(fastadam.AdamW, most, way, dtype, flat=flat, **HYPER)


@pytest.mark.parametrize("kind", [fastadam.Lion, fastadam.AdEMAMix])
@pytest.mark.parametrize("most", [1e-3, 1e6], ids=["clipped", "not clipped"])
def test_other_members_are_clipped_alike(kind, most):
    check_step_is_one_with_a_gradient_scale(kind, most, by_mapping, np.float32, weight_decay=0.1)


def test_threads_and_groups_change_no_bit():
    grads, results = make(SHAPES, 1), set()
    most = numba.get_num_threads()
    for threads in {1, most}:
        for sets in ([[*SHAPES]], [["w", "b"], ["none", "large"], ["k"]], [[name] for name in SHAPES]):
            params = make(SHAPES)
            groups = [{"params": {name: params[name] for name in names}} for names in sets]
            opt = fastadam.AdamW(groups, **HYPER, max_grad_norm=1e-3)
            numba.set_num_threads(threads)
            try:
                opt.step(grads)
            finally:
                numba.set_num_threads(most)
            results.add((opt.grad_norm, *bits(opt.params).values()))
    assert len(results) == 1


def test_order_of_the_mapping_changes_no_bit():
    opts = [fastadam.Adam(make(SHAPES), max_grad_norm=1e-3) for _ in range(2)]
    grads = make(SHAPES, 1)
    opts[0].step(grads)
    opts[1].step(dict(reversed(grads.items())))
    assert opts[0].grad_norm == opts[1].grad_norm
    assert memory(opts[0]) == memory(opts[1])


def test_maximize_changes_nothing_about_the_norm():
    up, down = (fastadam.AdamW(make(SHAPES), maximize=up, max_grad_norm=0.1, **HYPER) for up in (True, False))
    grads = make(SHAPES, 1)
    up.step(grads)
    down.step({name: -gradient for name, gradient in grads.items()})
    assert up.grad_norm == down.grad_norm > 0.0
    assert memory(up) == memory(down)


# --- several buffers


@pytest.mark.parametrize("kind", [fastadam.AdamW, fastadam.Adamax])
def test_one_norm_for_all_buffers(kind):
    def built(**options):
        params = make({"w": (3, 5), "b": ()})
        flat32, flat64 = np.ones(LARGE + 1, np.float32), np.ones(9)
        opt = kind([{"params": flat64, "lr": 0.5}, {"params": params}, {"params": flat32}], **HYPER, **options)
        opt.step({name: np.ones_like(view) for name, view in opt.params.items()})
        opt.add_param_group({"params": [np.ones(5, np.float64)]})
        return opt

    clipped, scaled = built(max_grad_norm=0.25), built()
    assert len(clipped.all_buffers) == 4
    # Both have taken one step already, the one clipped: start from the same state.
    clipped.load_state_dict(scaled.state_dict())
    for name, view in clipped.params.items():
        view[...] = scaled.params[name]
    rng = np.random.default_rng(0)
    for written in (False, True):
        grads = {name: np.asarray(rng.standard_normal(view.shape), view.dtype) for name, view in clipped.params.items()}
        if written:
            for name, gradient in grads.items():
                clipped.grads[name] = gradient
            clipped.step()
        else:
            clipped.step(grads)
        assert clipped.grad_norm == pytest.approx(exact_norm(grads), rel=1e-12)
        scaled.step(grads, grad_scale=factor(clipped.grad_norm, 0.25))
        assert memory(clipped) == memory(scaled)


def test_norm_counts_a_group_added_later():
    opt = fastadam.Adam({"w": np.ones(4)}, max_grad_norm=1.0)
    opt.step({"w": np.full(4, 2.0)})
    assert opt.grad_norm == 4.0
    opt.add_param_group({"params": {"b": np.ones(9)}})
    opt.step({"w": np.full(4, 2.0), "b": np.ones(9)})
    assert opt.grad_norm == 5.0
