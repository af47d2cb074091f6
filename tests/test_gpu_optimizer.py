"""Optimizers on a GPU: they step as on the CPU, on the current stream, and without waiting for the device."""

import numpy as np
import pytest
from gpu import SHAPES, bits, draw, on_host, torch_on_device, training

import fastadam

cupy = pytest.importorskip("cupy")
pytestmark = pytest.mark.gpu

layouts = pytest.mark.parametrize("flat", [False, True], ids=["in place", "flat"])


@layouts
@pytest.mark.parametrize("way", ["mapping", "list", "written"])
def test_training_on_the_gpu_equals_training_on_the_cpu(way, flat):
    params, on_device = draw(0), draw(0, cupy)
    # Held arrays that are packed would be warned of.
    originals = {} if flat else dict(on_device)
    on_cpu, on_gpu = fastadam.AdamW(params, lr=0.01), fastadam.AdamW(on_device, lr=0.01, flat=flat)
    for seed in range(1, 20):
        grads, device_grads = draw(seed), draw(seed, cupy)
        on_cpu.step(grads)
        if way == "mapping":
            on_gpu.step(device_grads)
        elif way == "list":
            on_gpu.step(list(device_grads.values()))
        else:
            for name, grad in device_grads.items():
                on_gpu.grads[name] = grad
            on_gpu.step()
    for name, param in params.items():
        assert isinstance(on_device[name], cupy.ndarray)
        assert flat or on_device[name] is originals[name]
        np.testing.assert_array_equal(cupy.asnumpy(on_device[name]), param)
    assert bits(training(on_gpu)) == bits(training(on_cpu))


def test_one_flat_gradient():
    params, on_device = draw(0), draw(0, cupy)
    on_cpu, on_gpu = fastadam.Adam(params, lr=0.01), fastadam.Adam(on_device, lr=0.01, flat=True)
    for seed in range(1, 5):
        on_cpu.step(draw(seed))
        for name, grad in draw(seed, cupy).items():
            on_gpu.grads[name] = grad
        on_gpu.step(on_gpu.buffers.g.copy())
    assert bits(training(on_gpu)) == bits(training(on_cpu))


@layouts
def test_a_parameter_without_a_gradient_stands_still(flat):
    params, on_device = draw(0), draw(0, cupy)
    on_cpu, on_gpu = fastadam.NAdam(params), fastadam.NAdam(on_device, flat=flat)
    for seed in range(1, 12):
        missing = ("w", "b", None)[seed % 3]
        on_cpu.step({name: None if name == missing else grad for name, grad in draw(seed).items()})
        on_gpu.step({name: None if name == missing else grad for name, grad in draw(seed, cupy).items()})
    ours, theirs = training(on_gpu), training(on_cpu)
    assert ours["w", "step"] == theirs["w", "step"] < ours["odd", "step"]
    for key, value in theirs.items():
        np.testing.assert_allclose(ours[key], value, rtol=1e-6, atol=1e-7, err_msg=str(key))


def test_arrays_anywhere_in_memory_are_stepped_where_they_lie():
    """Views that begin off 16 bytes, and arrays in other orders."""
    memory, host = cupy.zeros(10_000, "f4"), np.zeros(10_000, "f4")
    rng = np.random.default_rng(0)
    start = rng.standard_normal(10_000).astype("f4")

    def views(memory):
        memory[...] = start if isinstance(memory, np.ndarray) else cupy.asarray(start)
        return {
            "shifted": memory[1:1_234],
            "more": memory[2_001:4_050].reshape(3, 683),
            "transposed": memory[5_000:6_000].reshape(20, 50).T,
        }

    ours, theirs = views(memory), views(host)
    on_gpu, on_cpu = fastadam.Adam(ours, lr=0.1), fastadam.Adam(theirs, lr=0.1)
    for _ in range(5):
        grads = {name: rng.standard_normal(view.shape).astype("f4") for name, view in theirs.items()}
        on_cpu.step(grads)
        on_gpu.step({name: cupy.asarray(grad) for name, grad in grads.items()})
    np.testing.assert_array_equal(cupy.asnumpy(memory), host)
    for beside in (slice(0, 1), slice(1_234, 2_001), slice(4_050, 5_000), slice(6_000, None)):
        np.testing.assert_array_equal(host[beside], start[beside])


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0, "nonfinite": "skip"}], ids=["plain", "clipped"])
@layouts
def test_a_step_allocates_no_device_memory(options, flat):
    optimizer = fastadam.Adam({"w": cupy.ones(1_000_000, "f4")}, flat=flat, **options)
    gradients = [{"w": cupy.ones(1_000_000, "f4")} for _ in range(3)]
    for grads in gradients:
        optimizer.step(grads)
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes(), pool.total_bytes()
    for grads in gradients:
        # Each lies elsewhere, so that addresses are sent.
        optimizer.step(grads)
    assert (pool.used_bytes(), pool.total_bytes()) == before


@layouts
def test_resume_from_a_state_on_the_host(flat):
    params = draw(0, cupy)
    optimizer = fastadam.Adam(params, flat=flat)
    optimizer.step(draw(1, cupy))
    saved = optimizer.state_dict()
    for entry in saved["state"].values():
        entry.update({key: cupy.asnumpy(entry[key]) for key in ("exp_avg", "exp_avg_sq")})
    again = {name: param.copy() for name, param in params.items()}
    resumed = fastadam.Adam(again, flat=flat)
    resumed.load_state_dict(saved)
    for each, where in ((optimizer, params), (resumed, again)):
        each.step(draw(2, cupy))
        assert where["w"].shape == SHAPES["w"]
    assert bits(training(optimizer)) == bits(training(resumed))


def test_state_of_a_gpu_resumes_on_the_cpu():
    params, on_device = draw(0), draw(0, cupy)
    on_cpu, on_gpu = fastadam.Adam(params), fastadam.Adam(on_device)
    on_gpu.step(draw(1, cupy))
    on_cpu.load_state_dict(on_gpu.state_dict())
    ours, theirs = training(on_gpu), training(on_cpu)
    for key in ours.keys() - {(name, "p") for name in SHAPES}:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=str(key))


def test_torch_cuda_tensors_through_dlpack():
    torch = torch_on_device()
    p, g, m, v = (torch.ones(1_000, device="cuda") for _ in range(4))
    before = p.data_ptr()
    fastadam.adam_step(p, g, m, v, step=1, lr=0.1)
    torch.cuda.synchronize()
    assert p.data_ptr() == before
    assert float(p[0]) < 1.0


@layouts
@pytest.mark.parametrize("options", [{}, {"zero_grad": True}], ids=["read", "zeroed"])
def test_gradients_of_torch_are_read_where_they_lie(options, flat):
    torch = torch_on_device()
    params, on_device = draw(0), draw(0, cupy)
    on_cpu, on_gpu = (
        fastadam.AdamW(params, lr=0.01, **options),
        fastadam.AdamW(on_device, lr=0.01, flat=flat, **options),
    )
    for seed in range(1, 20):
        grads = draw(seed)
        tensors = {name: torch.tensor(grad, device="cuda") for name, grad in grads.items()}
        # Those that the short way does not take go through DLPack, beside the others.
        tensors["w"] = tensors["w"].T.contiguous().T if seed % 3 == 0 else tensors["w"]
        if seed % 4 == 0:
            tensors["b"] = None
        on_gpu.step(tensors)
        on_cpu.step({name: None if tensors[name] is None else grad for name, grad in grads.items()})
        if "zero_grad" in options and tensors["b"] is not None:
            assert not tensors["b"].any()
    assert bits(training(on_gpu)) == bits(training(on_cpu))


def test_the_same_arrays_may_change_and_go():
    params, on_device = draw(0), draw(0, cupy)
    on_cpu, on_gpu = fastadam.Adam(params), fastadam.Adam(on_device)
    held = draw(1, cupy)
    for seed in range(1, 10):
        grads = draw(seed)
        if seed == 5:
            held = draw(seed, cupy)
        for name, grad in grads.items():
            held[name][...] = cupy.asarray(grad)
        on_gpu.step(held)
        on_cpu.step(grads)
    assert bits(training(on_gpu)) == bits(training(on_cpu))


def test_arrays_that_are_not_aligned_are_refused_and_the_context_lives():
    unaligned = cupy.zeros(405, np.uint8)[1:].view(np.float32)
    with pytest.raises(ValueError, match="must be aligned to 4 bytes"):
        fastadam.Adam({"w": unaligned})
    optimizer = fastadam.Adam({"w": cupy.ones(101, "f4")})
    with pytest.raises(ValueError, match=r"`grads\['w'\]` must be aligned to 4 bytes"):
        optimizer.step({"w": unaligned})
    optimizer.step({"w": cupy.ones(101, "f4")})
    assert optimizer.params["w"].get().max() < 1.0


def test_arrays_on_the_cpu_and_on_the_gpu_do_not_mix():
    with pytest.raises(ValueError, match="one device"):
        fastadam.Adam({"a": np.ones(3, "f4"), "b": cupy.ones(3, "f4")})
    optimizer = fastadam.Adam({"a": cupy.ones(3, "f4")})
    with pytest.raises(ValueError, match=r"grads\['a'\]"):
        optimizer.step({"a": np.ones(3, "f4")})


OPTIONS = {
    "clipped": {"max_grad_norm": 1.0},
    "each clipped": {"max_grad_norm_per_param": 0.5},
    "clipped by value": {"clip_value": 0.1},
    "skipping": {"nonfinite": "skip"},
    "copy": {"copy_dtype": "float16", "ema_decay": 0.9, "amsgrad": True},
    "zeroed": {"zero_grad": True, "max_grad_norm": 1.0},
    "scheduled": {"lr": lambda step: 0.01 / (step + 1)},
}


@layouts
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_gives_what_it_gives_on_the_cpu(options, flat):
    params, on_device = draw(0), draw(0, cupy)
    on_cpu, on_gpu = (fastadam.Adam(each, **{"lr": 0.01, "flat": flat, **options}) for each in (params, on_device))
    for seed in range(1, 20):
        grads, device_grads = draw(seed), draw(seed, cupy)
        on_cpu.step(grads)
        on_gpu.step(device_grads)
        for name, grad in device_grads.items():
            np.testing.assert_array_equal(cupy.asnumpy(grad), grads[name])
    assert on_gpu.grad_norm == on_cpu.grad_norm
    assert bits(training(on_gpu)) == bits(training(on_cpu))


@layouts
@pytest.mark.parametrize("name", ["Adam", "NAdam", "Adamax", "RAdam"])
def test_every_member_in_two_groups_gives_what_it_gives_on_the_cpu(name, flat):
    params, on_device = draw(0), draw(0, cupy)
    for each in (params, on_device):
        groups = [{"params": {"w": each.pop("w")}, "lr": 0.1}, {"params": {"b": each.pop("b")}, "weight_decay": 0.1}]
        optimizer = getattr(fastadam, name)(groups, lr=0.01, flat=flat)
        for seed in range(1, 10):
            grads = draw(seed, np if each is params else cupy)
            optimizer.step({key: grads[key] for key in ("w", "b")})
        each.update(optimizer.params)
    for key in ("w", "b"):
        np.testing.assert_allclose(cupy.asnumpy(on_device[key]), params[key], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("sparse", ["lazy", "exact"])
def test_gradients_of_rows_give_what_they_give_on_the_cpu(sparse):
    rng = np.random.default_rng(0)
    start = rng.standard_normal((500, 33)).astype("f4")
    there, here = {"table": start.copy()}, {"table": cupy.asarray(start)}
    on_cpu, on_gpu = (fastadam.AdamW(each, lr=0.01, sparse=sparse) for each in (there, here))
    for _ in range(20):
        rows = rng.choice(500, 9, replace=False)
        values = rng.standard_normal((9, 33)).astype("f4")
        on_cpu.step({"table": fastadam.SparseRows(rows, values)})
        on_gpu.step({"table": fastadam.SparseRows(cupy.asarray(rows), cupy.asarray(values))})
    on_cpu.catch_up()
    on_gpu.catch_up()
    np.testing.assert_allclose(cupy.asnumpy(here["table"]), there["table"], rtol=1e-6, atol=1e-7)


@layouts
def test_a_skipped_step_leaves_every_byte_and_is_counted(flat):
    options = {"nonfinite": "skip", "ema_decay": 0.9, "copy_dtype": "float16", "amsgrad": True}
    optimizer = fastadam.Adam(draw(0, cupy), flat=flat, **options)

    def held():
        return bits({key: value for key, value in training(optimizer).items() if key[1] != "skipped"})

    optimizer.step(draw(1, cupy))
    before = held()
    bad = draw(2, cupy)
    for value in (np.nan, np.inf, -np.inf, 1e30):
        bad["w"][7, 7] = value
        optimizer.step(bad)
        assert held() == before
    assert optimizer.skipped_steps == 4
    assert {entry["step"] for entry in optimizer.state_dict()["state"].values()} == {1}
    optimizer.step(draw(3, cupy))
    assert held() != before


def test_many_small_parameters():
    rng = np.random.default_rng(0)
    shapes = [tuple(rng.integers(1, 40, 2)) for _ in range(300)]
    start = [rng.standard_normal(shape).astype("f4") for shape in shapes]
    there, here = [array.copy() for array in start], [cupy.asarray(array) for array in start]
    on_cpu, on_gpu = (fastadam.Adam(each, max_grad_norm=1.0) for each in (there, here))
    for _ in range(5):
        grads = [rng.standard_normal(shape).astype("f4") for shape in shapes]
        on_cpu.step(grads)
        on_gpu.step([cupy.asarray(grad) for grad in grads])
    for ours, theirs in zip(here, there, strict=True):
        np.testing.assert_array_equal(on_host(ours), theirs)
