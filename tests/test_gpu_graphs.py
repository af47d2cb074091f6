"""Steps on other streams of a GPU, and steps in CUDA graphs."""

import numpy as np
import pytest
from gpu import bits, draw, torch_on_device, training

import fastadam

cupy = pytest.importorskip("cupy")
pytestmark = pytest.mark.gpu

layouts = pytest.mark.parametrize("flat", [False, True], ids=["in place", "flat"])


def test_a_step_of_flat_arrays_runs_on_the_current_stream_and_is_not_captured():
    p, g, m, v = (cupy.ones(1_000, "f4") for _ in range(4))
    fastadam.adam_step(p, g, m, v, step=1)
    before = p.copy()
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        fastadam.adam_step(p, g, m, v, step=2)
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="`adam_step` cannot be captured"):
            fastadam.adam_step(p, g, m, v, step=3)
        stream.end_capture()
    stream.synchronize()
    assert not cupy.array_equal(p, before)


def test_gradients_on_a_side_stream_of_torch():
    torch = torch_on_device()
    params, on_device = draw(0), draw(0, cupy)
    on_cpu, on_gpu = fastadam.Adam(params), fastadam.Adam(on_device)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream), cupy.cuda.ExternalStream(stream.cuda_stream):
        for seed in range(1, 20):
            # Each is gone, and its memory in use again, when the host goes on.
            on_gpu.step({name: torch.tensor(grad, device="cuda") for name, grad in draw(seed).items()})
    torch.cuda.synchronize()
    for seed in range(1, 20):
        on_cpu.step(draw(seed))
    assert bits(training(on_gpu)) == bits(training(on_cpu))


class Captured:
    """A step of `optimizer`, with what is written into its `grads`, as a CUDA graph."""

    def __init__(self, optimizer, grads, **how):
        self.optimizer, self.stream = optimizer, cupy.cuda.Stream(non_blocking=True)
        cupy.cuda.Device().synchronize()
        with self.stream:
            self.write(grads)
            # The first step compiles, and uploads where everything lies.
            optimizer.step(**how)
            # A capture fails on any synchronisation and on work for another stream.
            self.stream.begin_capture()
            optimizer.step(**how)
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


@layouts
def test_a_clipped_step_can_be_captured_and_skips_in_the_graph(flat):
    options = {"lr": 0.01, "max_grad_norm": 1.0, "nonfinite": "skip", "flat": flat}
    params, on_device = draw(0), draw(0, cupy)
    on_cpu, on_gpu = (fastadam.Adam(each, **options) for each in (params, on_device))
    captured = Captured(on_gpu, draw(1))
    on_cpu.step(draw(1))
    bad = draw(2)
    bad["w"][0, 0] = np.nan
    for grads in (draw(3), draw(4), bad, draw(5)):
        before = {name: cupy.asnumpy(param).tobytes() for name, param in on_device.items()}
        captured.step(grads)
        on_cpu.step(grads)
        after = {name: cupy.asnumpy(param).tobytes() for name, param in on_device.items()}
        assert (before == after) == (grads is bad)
        for name, param in params.items():
            np.testing.assert_array_equal(cupy.asnumpy(on_device[name]), param)
    assert on_gpu.skipped_steps == on_cpu.skipped_steps == 1
    assert on_gpu.grad_norm == on_cpu.grad_norm
    assert {entry["step"] for entry in on_gpu.state_dict()["state"].values()} == {4}


def test_gradients_that_lie_elsewhere_are_refused_while_a_step_is_captured():
    params = draw(0, cupy)
    optimizer = fastadam.Adam(params)
    first, other = draw(1, cupy), draw(2, cupy)
    optimizer.step(first)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    before = cupy.asnumpy(params["w"])
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="while a CUDA graph is captured"):
            optimizer.step(other)
        stream.end_capture()
    np.testing.assert_array_equal(cupy.asnumpy(params["w"]), before)
    optimizer.step(other)
    assert {entry["step"] for entry in optimizer.state_dict()["state"].values()} == {2}


REFUSED = {
    "a schedule": ({"lr": lambda step: 0.1}, "`lr` must be a number while a CUDA graph is captured"),
    "raise": ({"nonfinite": "raise"}, "`nonfinite` must not be 'raise' while"),
    "exact": ({"sparse": "exact"}, "`sparse` must not be 'exact' while"),
    "another pattern": ({}, "must have been taken once before it is captured"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_captured_says_so_and_the_optimizer_goes_on(why):
    options, message = REFUSED[why]
    optimizer = fastadam.Adam(draw(0, cupy), **options)
    grads = draw(1, cupy)
    optimizer.step(grads)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match=message):
            optimizer.step({**grads, "b": None} if why == "another pattern" else grads)
        stream.end_capture()
    optimizer.step(grads)
    assert {entry["step"] for entry in optimizer.state_dict()["state"].values()} == {2}


def test_rates_change_between_replays_and_states_count_them():
    params, on_device = draw(0), draw(0, cupy)
    on_cpu, on_gpu = fastadam.Adam(params, lr=0.1), fastadam.Adam(on_device, lr=0.1)
    captured = Captured(on_gpu, draw(1))
    on_cpu.step(draw(1))
    with captured.stream:
        captured.stream.begin_capture()
        with pytest.raises(RuntimeError, match="must not be written while a CUDA graph is captured"):
            on_gpu.param_groups[0]["lr"] = 0.5
        captured.stream.end_capture()
    for seed, lr in ((2, 0.1), (3, 0.01), (4, 0.02)):
        with captured.stream:
            on_gpu.param_groups[0]["lr"] = lr
        on_cpu.param_groups[0]["lr"] = lr
        captured.step(draw(seed))
        on_cpu.step(draw(seed))
    ours, theirs = training(on_gpu), training(on_cpu)
    assert bits(ours) == bits(theirs)
    again = fastadam.Adam(draw(0))
    again.load_state_dict(on_gpu.state_dict())
    assert {entry["step"] for entry in again.state_dict()["state"].values()} == {4}


@pytest.mark.parametrize("options", [{}, {"max_grad_norm_per_param": 0.5}], ids=["plain", "each clipped"])
def test_replays_keep_their_gradients_and_read_their_scale(options):
    params, on_device = draw(0), draw(0, cupy)
    on_cpu, on_gpu = (fastadam.Adam(each, **options) for each in (params, on_device))
    scale = cupy.full(1, 0.5, "f4")
    captured = Captured(on_gpu, draw(1), grad_scale=scale)
    on_cpu.step(draw(1), grad_scale=0.5)
    # A step between replays, whose gradients are gone after it, and one of which is none.
    with captured.stream:
        on_gpu.step({name: None if name == "b" else grad * 3 for name, grad in draw(2, cupy).items()}, grad_scale=2.0)
    # The graph steps the clocks as they were when it was captured: a parameter that was left out has one of its own.
    for seed, factor in ((3, 0.25), (4, 8.0)):
        with captured.stream:
            scale.fill(factor)
        captured.step(draw(seed))
    captured.stream.synchronize()
    # What the others become depends on their clocks; that one has gone on as if nothing had been between.
    for seed, factor in ((3, 0.25), (4, 8.0)):
        on_cpu.step(draw(seed), grad_scale=factor)
    np.testing.assert_array_equal(cupy.asnumpy(on_device["b"]), params["b"])


def test_a_captured_step_writes_to_no_memory_but_its_own():
    optimizer = fastadam.Adam({"w": cupy.ones(1_000_000, "f4")}, max_grad_norm=1.0)
    captured = Captured(optimizer, {"w": np.ones(1_000_000, "f4")})
    with captured.stream:
        # As many as the pool has kept blocks for.
        others = [cupy.full(size, 7.0) for size in range(128, 128 * 200, 128)]
    captured.step({"w": np.ones(1_000_000, "f4")})
    assert all(bool((other == 7.0).all()) for other in others)
