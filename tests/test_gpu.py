"""The CUDA kernel on a GPU. Values keep clear of subnormals, which CuPy's -ftz=true flushes."""

import numpy as np
import pytest
from oracle import assert_same_bits, random_state

import fastadam
from fastadam.kernels import reference
from fastadam.kernels.fold import fold, fold_l2
from fastadam.kernels.update import ADAM, ADAM_L2

cupy = pytest.importorskip("cupy")
pytestmark = pytest.mark.gpu

SHAPES = {"w": (300, 70), "b": (70,), "scalar": (), "empty": (0, 3)}


def draw(seed, library=np):
    rng = np.random.default_rng(seed)
    return {name: library.asarray(rng.standard_normal(shape), "f4") for name, shape in SHAPES.items()}


@pytest.mark.parametrize(("update", "folder"), [(ADAM, fold), (ADAM_L2, fold_l2)], ids=["ADAM", "ADAM_L2"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("length", [1, 31, 128, 129, 100_003])
def test_kernel_equals_the_reference(update, folder, dtype, length):
    from fastadam.kernels import cuda

    state = random_state(length, dtype)
    scalars = folder(2e-3, 0.9, 0.999, 1e-8, 0.05)(3, 0.5)
    on_device = [cupy.asarray(buffer) for buffer in state]
    cuda.launcher(update, length, dtype)(*on_device, scalars)
    reference.launcher(update, length, dtype)(*state, scalars)
    actual = [cupy.asnumpy(buffer) for buffer in on_device]
    assert_same_bits((actual[0], *actual[2:]), (state[0], *state[2:]))


@pytest.mark.parametrize("way", ["mapping", "written", "flat"])
def test_training_on_the_gpu_equals_training_on_the_cpu(way):
    params, on_device = draw(0), draw(0, cupy)
    on_cpu, on_gpu = fastadam.AdamW(params, lr=0.01), fastadam.AdamW(on_device, lr=0.01)
    assert isinstance(on_device["w"], cupy.ndarray)
    for seed in range(1, 20):
        grads, device_grads = draw(seed), draw(seed, cupy)
        on_cpu.step(grads)
        if way == "mapping":
            on_gpu.step(device_grads)
            continue
        for name, grad in device_grads.items():
            on_gpu.grads[name] = grad
        on_gpu.step(on_gpu.buffers.g.copy() if way == "flat" else None)
    for name, param in params.items():
        np.testing.assert_array_equal(cupy.asnumpy(on_device[name]), param)


def test_a_step_runs_on_the_current_stream_and_can_be_captured():
    p, g, m, v = (cupy.ones(1_000, "f4") for _ in range(4))
    fastadam.adam_step(p, g, m, v, step=1)
    before = p.copy()
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        # A capture fails on any synchronisation and on work for another stream.
        stream.begin_capture()
        fastadam.adam_step(p, g, m, v, step=2)
        graph = stream.end_capture()
    np.testing.assert_array_equal(cupy.asnumpy(p), cupy.asnumpy(before))
    graph.launch(stream)
    stream.synchronize()
    assert not cupy.array_equal(p, before)


def test_a_step_allocates_no_device_memory():
    optimizer = fastadam.Adam({"w": cupy.ones(1_000_000, "f4")})
    grads = {"w": cupy.ones(1_000_000, "f4")}
    optimizer.step(grads)
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes(), pool.total_bytes()
    optimizer.step(grads)
    assert (pool.used_bytes(), pool.total_bytes()) == before


def test_resume_from_a_state_on_the_host():
    params = draw(0, cupy)
    optimizer = fastadam.Adam(params)
    optimizer.step(draw(1, cupy))
    saved = optimizer.state_dict()
    for entry in saved["state"].values():
        entry.update({key: cupy.asnumpy(entry[key]) for key in ("exp_avg", "exp_avg_sq")})
    again = {name: param.copy() for name, param in params.items()}
    resumed = fastadam.Adam(again)
    resumed.load_state_dict(saved)
    for each, where in ((optimizer, params), (resumed, again)):
        each.step(draw(2, cupy))
        assert where["w"].shape == SHAPES["w"]
    np.testing.assert_array_equal(cupy.asnumpy(params["w"]), cupy.asnumpy(again["w"]))


def test_state_of_a_gpu_resumes_on_the_cpu():
    params, on_device = draw(0), draw(0, cupy)
    on_cpu, on_gpu = fastadam.Adam(params), fastadam.Adam(on_device)
    on_gpu.step(draw(1, cupy))
    on_cpu.load_state_dict(on_gpu.state_dict())
    np.testing.assert_array_equal(on_cpu.buffers.m, cupy.asnumpy(on_gpu.buffers.m))
    np.testing.assert_array_equal(on_cpu.buffers.v, cupy.asnumpy(on_gpu.buffers.v))


def test_torch_cuda_tensors_through_dlpack():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch is built without CUDA")
    p, g, m, v = (torch.ones(1_000, device="cuda") for _ in range(4))
    before = p.data_ptr()
    fastadam.adam_step(p, g, m, v, step=1, lr=0.1)
    torch.cuda.synchronize()
    assert p.data_ptr() == before
    assert float(p[0]) < 1.0


def test_arrays_on_the_cpu_and_on_the_gpu_do_not_mix():
    with pytest.raises(ValueError, match="one device"):
        fastadam.Adam({"a": np.ones(3, "f4"), "b": cupy.ones(3, "f4")})
    optimizer = fastadam.Adam({"a": cupy.ones(3, "f4")})
    with pytest.raises(ValueError, match=r"grads\['a'\]"):
        optimizer.step({"a": np.ones(3, "f4")})
