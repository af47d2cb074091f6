"""Optimizers on a GPU: they step as on the CPU, on the current stream, and without waiting for the device."""

import numpy as np
import pytest

import fastadam

cupy = pytest.importorskip("cupy")
pytestmark = pytest.mark.gpu

SHAPES = {"w": (300, 70), "b": (70,), "scalar": (), "empty": (0, 3)}


def draw(seed, library=np):
    rng = np.random.default_rng(seed)
    return {name: library.asarray(rng.standard_normal(shape), "f4") for name, shape in SHAPES.items()}


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


OPTIONS = {
    "clipped": {"max_grad_norm": 1.0},
    "clipped by value": {"clip_value": 0.1},
    "skipping": {"nonfinite": "skip"},
    "copy": {"copy_dtype": "float16", "ema_decay": 0.9, "amsgrad": True},
    "zeroed": {"zero_grad": True, "max_grad_norm": 1.0},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_gives_what_it_gives_on_the_cpu(options):
    params, on_device = draw(0), draw(0, cupy)
    on_cpu, on_gpu = (fastadam.Adam(each, lr=0.01, **options) for each in (params, on_device))
    for seed in range(1, 20):
        grads, device_grads = draw(seed), draw(seed, cupy)
        on_cpu.step(grads)
        on_gpu.step(device_grads)
        for name, grad in device_grads.items():
            np.testing.assert_array_equal(cupy.asnumpy(grad), grads[name])
    assert on_gpu.grad_norm == on_cpu.grad_norm
    for flat in vars(on_cpu.buffers).keys() - {"g", "segments"}:
        expected = getattr(on_cpu.buffers, flat)
        np.testing.assert_array_equal(cupy.asnumpy(getattr(on_gpu.buffers, flat)), expected, err_msg=flat)


@pytest.mark.parametrize("name", ["Adam", "NAdam", "Adamax", "RAdam"])
def test_every_member_in_two_groups_gives_what_it_gives_on_the_cpu(name):
    params, on_device = draw(0), draw(0, cupy)
    for each in (params, on_device):
        groups = [{"params": {"w": each["w"]}, "lr": 0.1}, {"params": {"b": each["b"]}, "weight_decay": 0.1}]
        optimizer = getattr(fastadam, name)(groups, lr=0.01)
        for seed in range(1, 10):
            grads = draw(seed, np if each is params else cupy)
            optimizer.step({key: grads[key] for key in ("w", "b")})
        each.update(optimizer.params)
    for key in ("w", "b"):
        np.testing.assert_allclose(cupy.asnumpy(on_device[key]), params[key], rtol=1e-6, atol=1e-7)


def memory(optimizer):
    """The bytes of all flat buffers but the gradients."""
    flats = {name: flat for name, flat in vars(optimizer.buffers).items() if name not in ("g", "segments")}
    return {name: cupy.asnumpy(flat).tobytes() for name, flat in flats.items()}


def test_a_skipped_step_leaves_every_byte_and_is_counted():
    optimizer = fastadam.Adam(draw(0, cupy), nonfinite="skip", ema_decay=0.9, copy_dtype="float16", amsgrad=True)
    optimizer.step(draw(1, cupy))
    before = memory(optimizer)
    bad = draw(2, cupy)
    for value in (np.nan, np.inf, -np.inf, 1e30):
        bad["w"][7, 7] = value
        optimizer.step(bad)
        assert memory(optimizer) == before
    assert optimizer.skipped_steps == 4
    assert {entry["step"] for entry in optimizer.state_dict()["state"].values()} == {1}
    optimizer.step(draw(3, cupy))
    assert memory(optimizer) != before


class Captured:
    """A step of `optimizer`, with what is written into its `grads`, as a CUDA graph."""

    def __init__(self, optimizer, grads):
        self.optimizer, self.stream = optimizer, cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.Device().synchronize()
        with self.stream:
            self.write(grads)
            # The first step compiles, and uploads where everything lies.
            optimizer.step()
            # A capture fails on any synchronisation and on work for another stream.
            self.stream.begin_capture()
            optimizer.step()
            self.graph = self.stream.end_capture()
        self.stream.synchronize()

    def write(self, grads):
        for name, grad in grads.items():
            self.optimizer.grads[name] = cupy.asarray(grad)

    def step(self, grads):
        with self.stream:
            self.write(grads)
            self.graph.launch(self.stream)
        self.stream.synchronize()


def test_a_clipped_step_can_be_captured_and_skips_in_the_graph():
    params, on_device = draw(0), draw(0, cupy)
    on_cpu, on_gpu = (fastadam.Adam(each, lr=0.01, max_grad_norm=1.0, nonfinite="skip") for each in (params, on_device))
    captured = Captured(on_gpu, draw(1))
    on_cpu.step(draw(1))
    bad = draw(2)
    bad["w"][0, 0] = np.nan
    for grads in (draw(3), draw(4), bad, draw(5)):
        before = memory(on_gpu)
        captured.step(grads)
        on_cpu.step(grads)
        assert (memory(on_gpu) == before) == (grads is bad)
        for name, param in params.items():
            np.testing.assert_array_equal(cupy.asnumpy(on_device[name]), param)
    assert on_gpu.skipped_steps == on_cpu.skipped_steps == 1
    assert on_gpu.grad_norm == on_cpu.grad_norm
    assert {entry["step"] for entry in on_gpu.state_dict()["state"].values()} == {4}


def test_a_captured_step_writes_to_no_memory_but_its_own():
    optimizer = fastadam.Adam({"w": cupy.ones(1_000_000, "f4")}, max_grad_norm=1.0)
    captured = Captured(optimizer, {"w": np.ones(1_000_000, "f4")})
    with captured.stream:
        # As many as the pool has kept blocks for.
        others = [cupy.full(size, 7.0) for size in range(128, 128 * 200, 128)]
    captured.step({"w": np.ones(1_000_000, "f4")})
    assert all(bool((other == 7.0).all()) for other in others)


def test_a_clipped_step_allocates_no_device_memory():
    optimizer = fastadam.Adam({"w": cupy.ones(1_000_000, "f4")}, max_grad_norm=1.0, nonfinite="skip")
    grads = {"w": cupy.ones(1_000_000, "f4")}
    optimizer.step(grads)
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes(), pool.total_bytes()
    optimizer.step(grads)
    assert (pool.used_bytes(), pool.total_bytes()) == before
