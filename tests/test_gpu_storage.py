"""Storage formats on a GPU: the same bits as on the CPU."""

import numpy as np
import pytest
from gpu import bits, training
from ml_dtypes import bfloat16

import fastadam

cupy = pytest.importorskip("cupy")
pytestmark = pytest.mark.gpu
layouts = pytest.mark.parametrize("flat", [False, True], ids=["in place", "flat"])

SHAPES = {"w": (100, 77), "b": (70,), "scalar": (), "empty": (0, 3)}
FORMATS = {
    "bfloat16 moments": (np.float32, {"moment_dtype": "bfloat16"}),
    "float8 moments": (np.float32, {"moment_dtype": "float8"}),
    "all bfloat16": (bfloat16, {"moment_dtype": "bfloat16"}),
    "bfloat16 and float8": (bfloat16, {"moment_dtype": "float8", "max_grad_norm": 1.0, "nonfinite": "skip"}),
    "masters": (bfloat16, {"moment_dtype": "bfloat16", "master_weights": True, "ema_decay": 0.9}),
    "float16": (np.float16, {"moment_dtype": ("float16", "bfloat16"), "zero_grad": True}),
}


def draw(seed, dtype):
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


def on_device(arrays):
    """CuPy arrays; bfloat16 as its bits."""
    return {name: cupy.asarray(a.view(np.uint16) if a.dtype == bfloat16 else a) for name, a in arrays.items()}


@layouts
@pytest.mark.parametrize("chosen", FORMATS)
def test_all_that_trains_has_the_bits_of_the_cpu(chosen, flat):
    dtype, options = FORMATS[chosen]
    params = draw(0, dtype)
    on_cpu = fastadam.AdamW({name: p.copy() for name, p in params.items()}, lr=0.01, **options)
    on_gpu = fastadam.AdamW(on_device(params), lr=0.01, flat=flat, **options)
    for seed in range(1, 20):
        gradients = draw(seed, dtype)
        on_gpu.step(on_device(gradients))
        on_cpu.step(gradients)
    assert bits(training(on_gpu)) == bits(training(on_cpu))


@pytest.mark.parametrize("chosen", FORMATS)
def test_a_state_moves_from_the_cpu_to_the_gpu_and_back(chosen):
    dtype, options = FORMATS[chosen]
    params = draw(0, dtype)
    on_cpu = fastadam.Adam({name: p.copy() for name, p in params.items()}, **options)
    on_cpu.step(draw(1, dtype))
    on_gpu = fastadam.Adam(on_device(dict(on_cpu.params)), **options)
    on_gpu.load_state_dict(on_cpu.state_dict())
    again = fastadam.Adam({name: p.copy() for name, p in on_cpu.params.items()}, **options)
    again.load_state_dict(on_gpu.state_dict())
    assert bits(training(again)) == bits(training(on_cpu))


def test_bfloat16_tensors_of_torch_are_trained_where_they_lie():
    torch = pytest.importorskip("torch")
    params = {"w": torch.ones(100, 100, dtype=torch.bfloat16, device="cuda")}
    optimizer = fastadam.Adam(params, lr=0.5, moment_dtype="float8")
    optimizer.step({"w": torch.ones(100, 100, dtype=torch.bfloat16, device="cuda")})
    assert params["w"].dtype == torch.bfloat16
    assert params["w"].device.type == "cuda"
    assert torch.allclose(params["w"].float(), torch.tensor(0.5, device="cuda"), atol=2**-8)


def test_floats_are_not_written_into_bits():
    optimizer = fastadam.Adam(on_device(draw(0, bfloat16)))
    with pytest.raises(TypeError, match="`w` must be written as the bits of bfloat16, uint16"):
        optimizer.grads["w"] = cupy.ones((100, 77), "f4")
