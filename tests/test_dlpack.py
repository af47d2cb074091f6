"""Parameters and gradients of other libraries."""

import numpy as np
import pytest
from ml_dtypes import bfloat16
from oracle import assert_same_bits, memory
from training import HYPER, both, make, pmv, sizes

import fastadam


@both
@sizes
def test_torch_tensors_stay_or_become_tensors_over_what_trains(size, flat):
    torch = pytest.importorskip("torch")
    shapes = {"w": (2, size), "b": (), "none": (0,)}
    params = {name: torch.tensor(array) for name, array in make(shapes).items()}
    before = {name: tensor.data_ptr() for name, tensor in params.items()}
    numpy = fastadam.Adam(make(shapes), **HYPER, flat=flat)
    opt = fastadam.Adam(params, **HYPER, flat=flat)
    assert all(isinstance(tensor, torch.Tensor) for tensor in params.values())
    assert ({name: tensor.data_ptr() for name, tensor in params.items()} == before) is not flat
    for name in ("w", "b"):
        assert params[name].data_ptr() == opt.params[name].data_ptr()
    for seed in (1, 2):
        opt.step({name: torch.tensor(array) for name, array in make(shapes, seed).items()})
        numpy.step(make(shapes, seed))
    assert_same_bits(pmv(opt), pmv(numpy))
    np.testing.assert_array_equal(params["w"].numpy(), numpy.params["w"])
    params["b"].fill_(4.0)
    assert opt.params["b"] == 4.0


def test_negated_views_of_torch_are_refused():
    torch = pytest.importorskip("torch")
    negated = torch._neg_view(torch.ones(3))
    message = "must hold its values in memory, got a negated view: pass `resolve_neg"
    with pytest.raises(TypeError, match=rf"`params\['w'\]` {message}"):
        fastadam.Adam({"w": negated})
    opt = fastadam.Adam({"w": torch.ones(3)})
    with pytest.raises(TypeError, match=rf"`grads\['w'\]` {message}"):
        opt.step({"w": negated})
    opt.step({"w": negated.resolve_neg()})
    assert bool((opt.params["w"] > 1.0).all())


@both
@pytest.mark.parametrize("options", [{}, {"master_weights": True}, {"moment_dtype": "float8"}], ids=str)
def test_torch_bfloat16_tensors_stay_or_become_tensors_over_what_trains(options, flat):
    torch = pytest.importorskip("torch")
    shapes = {"w": (2, 2500), "b": (), "none": (0,)}
    params = {name: torch.tensor(array).bfloat16() for name, array in make(shapes).items()}
    options = {**HYPER, **options, "flat": flat}
    numpy = fastadam.Adam({name: array.astype(bfloat16) for name, array in make(shapes).items()}, **options)
    opt = fastadam.Adam(params, **options)
    assert {tensor.dtype for tensor in params.values()} == {torch.bfloat16}
    assert [tuple(tensor.shape) for tensor in params.values()] == [(2, 2500), (), (0,)]
    assert params["w"].data_ptr() == opt.params["w"].data_ptr()
    for seed in (1, 2, 3):
        grads = {name: torch.tensor(array).bfloat16() for name, array in make(shapes, seed).items()}
        opt.step(grads)
        numpy.step({name: array.astype(bfloat16) for name, array in make(shapes, seed).items()})
    assert memory(opt) == memory(numpy)
    assert params["w"].float().numpy().tobytes() == numpy.params["w"].astype(np.float32).tobytes()
    params["b"].fill_(4.0)
    assert opt.params["b"] == 4.0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_flat_torch_tensor_of_16_bits_is_adopted(dtype):
    torch = pytest.importorskip("torch")
    flat = torch.ones(5, dtype=getattr(torch, dtype))
    opt = fastadam.Adam(flat, lr=0.5)
    assert opt.buffers.p.ctypes.data == flat.data_ptr()
    opt.step(torch.ones(5, dtype=flat.dtype))
    opt.step({0: torch.ones(5, dtype=flat.dtype)})
    np.testing.assert_allclose(flat.float().numpy(), np.zeros(5), atol=1e-2)


def test_gradients_of_torch_may_be_bfloat16_for_float32_parameters():
    torch = pytest.importorskip("torch")
    opts = [fastadam.Adam(make({"w": (3, 4)}), **HYPER, grad_dtype="bfloat16") for _ in range(2)]
    gradient = make({"w": (3, 4)}, 1)["w"]
    opts[0].step({"w": torch.tensor(gradient).bfloat16()})
    opts[1].step({"w": gradient.astype(bfloat16)})
    assert memory(opts[0]) == memory(opts[1])


@pytest.mark.parametrize(
    ("make_layout", "flat"),
    [
        (lambda x: x.T.contiguous().T, False),
        (lambda x: x.T.contiguous().T, True),
        (lambda x: x.repeat_interleave(2, 1)[:, ::2], True),
    ],
)
def test_torch_tensors_of_any_layout_keep_their_values(make_layout, flat):
    torch = pytest.importorskip("torch")
    array = make({"w": (3, 4)})["w"]
    params = {"w": make_layout(torch.tensor(array))}
    opt = fastadam.Adam(params, lr=0.0, flat=flat)
    opt.step({"w": make_layout(torch.tensor(array))})
    np.testing.assert_array_equal(params["w"].numpy(), array)
    np.testing.assert_allclose(opt.buffers.views(opt.buffers.m)["w"], 0.1 * array, rtol=1e-5)


def test_flat_torch_tensor_is_adopted():
    torch = pytest.importorskip("torch")
    flat = torch.ones(5)
    opt = fastadam.Adam(flat, lr=0.5)
    assert opt.buffers.p.ctypes.data == flat.data_ptr()
    opt.step(torch.ones(5))
    opt.grads[0] = torch.ones(5)
    opt.step()
    np.testing.assert_allclose(flat.numpy(), np.zeros(5), atol=1e-6)


@both
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_what_is_handed_out_of_a_torch_parameter_is_a_tensor(flat, dtype):
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    params = {"w": torch.ones(2, 3, dtype=kind).T, "b": torch.ones((), dtype=kind), "numpy": np.ones(3, np.float32)}
    copied = {"copy_dtype": "bfloat16"} if dtype in ("float32", "float64") else {}
    opt = fastadam.Adam(params, lr=0.5, ema_decay=0.0, flat=flat, **copied)
    for _ in range(2):
        opt.grads["w"] += torch.full((3, 2), 2.0, dtype=kind)
    opt.grads["b"] = torch.tensor(1.0, dtype=kind)
    opt.grads["b"] = np.float32(-1.0)
    opt.grads["numpy"] += 1.0
    assert torch.equal(opt.grads["w"], torch.full((3, 2), 4.0, dtype=kind))
    opt.step()
    torch.testing.assert_close(params["w"], torch.full((3, 2), 0.5, dtype=kind))
    torch.testing.assert_close(params["b"], torch.tensor(1.5, dtype=kind))
    for views in (opt.params, opt.ema, *([opt.copies] if copied else []), opt.masters):
        assert {name for name, view in views.items() if isinstance(view, torch.Tensor)} == {"w", "b"}
        torch.testing.assert_close(views["w"].float(), params["w"].float())
        np.testing.assert_allclose(views["numpy"].astype(np.float32), 0.5)
    opt.params["w"].zero_()
    assert not params["w"].any()
    opt.params["w"] = torch.full((3, 2), 3.0, dtype=kind)
    assert torch.equal(params["w"], torch.full((3, 2), 3.0, dtype=kind))
    with pytest.raises(TypeError, match=r"`w` must not require a gradient: pass `x.detach\(\)`"):
        opt.grads["w"] = torch.ones(3, 2, requires_grad=True)
    with pytest.raises(ValueError, match=r"`w` must have shape \(3, 2\), got \(2, 3\)"):
        opt.grads["w"] = torch.ones(2, 3, dtype=kind)


@both
def test_torch_and_numpy_parameters_share_buffers(flat):
    torch = pytest.importorskip("torch")
    params = {"torch": torch.ones(3), "numpy": np.ones(3, np.float32)}
    opt = fastadam.Adam(params, lr=0.5, flat=flat)
    assert len(opt.all_buffers) == 1
    opt.step({"torch": np.ones(3, np.float32), "numpy": torch.ones(3)})
    assert isinstance(params["torch"], torch.Tensor)
    assert isinstance(params["numpy"], np.ndarray)
    np.testing.assert_allclose(opt.params["torch"], opt.params["numpy"])
    np.testing.assert_allclose(params["torch"].numpy(), [0.5, 0.5, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"requires_grad": True}, r"must not require a gradient: pass `x.detach\(\)`"),
        ({"device": "meta"}, "must be in CPU or CUDA memory.*meta"),
    ],
    ids=["requires grad", "meta device"],
)
def test_tensors_that_cannot_be_shared_are_refused(options, message):
    torch = pytest.importorskip("torch")
    tensor = torch.ones(3, **options)
    with pytest.raises(TypeError, match=rf"`params\['w'\]`.*{message}"):
        fastadam.Adam({"w": tensor})
    optimizer = fastadam.Adam({"w": np.ones(3, np.float32)})
    with pytest.raises(TypeError, match=rf"`grads\['w'\]`.*{message}"):
        optimizer.step({"w": tensor})


class SpeaksDLPack:
    """An array of a library that fastadam has never heard of."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_dlpack_arrays_of_an_unknown_library_are_adopted_and_read():
    flat = np.ones(3)
    opt = fastadam.Adam(SpeaksDLPack(flat), lr=0.5)
    opt.step(SpeaksDLPack(np.ones(3)))
    opt.step({0: SpeaksDLPack(np.ones(3))})
    np.testing.assert_allclose(flat, [0.0, 0.0, 0.0], atol=1e-6)
