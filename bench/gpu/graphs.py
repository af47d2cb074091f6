"""Captured steps, side streams and memory: what is right, as booleans, and what an error says."""

from contextlib import contextmanager
from typing import Any

import fastadam
from fastadam.bench.gpu.results import Results
from fastadam.bench.gpu.rig import Rig
from fastadam.bench.gpu.speed import CLIPPED, SKIPPING

SHAPES = [(10_000,), (70, 3)]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped": CLIPPED,
    "skipping": SKIPPING,
    "each clipped": {"max_grad_norm_per_param": 1.0},
    "8-bit": {"moment_dtype": "float8"},
    "flat=True": {"flat": True},
}
REFUSED: dict[str, dict[str, Any]] = {
    "a schedule": {"lr": lambda step: 1e-3},
    "nonfinite='raise'": {"nonfinite": "raise"},
    "gradients elsewhere": {},
}


def graphs(rig: Rig, results: Results) -> None:
    """Replays of a captured step equal steps that are not captured; what cannot be captured says so."""
    for name, options in CASES.items():
        results.attempt(name, _replayed, rig, options)
    for name, options in REFUSED.items():
        results.attempt(f"{name}: refused", _refused, rig, options, name == "gradients elsewhere")


@contextmanager
def _on_side_stream(rig):
    """Let torch and CuPy work on one stream beside the default one."""
    if rig.dry:
        yield
        return
    stream = rig.torch.cuda.Stream()
    rig.wait()
    with rig.torch.cuda.stream(stream), rig.xp.cuda.ExternalStream(stream.cuda_stream):
        yield
    rig.wait()


def _captured(rig, step):
    """`step`, which has been taken once, as a function that takes it again by a graph of torch."""
    if rig.dry:
        return step
    graph, stream = rig.torch.cuda.CUDAGraph(), rig.torch.cuda.current_stream()
    with rig.torch.cuda.graph(graph, stream=stream), rig.xp.cuda.ExternalStream(stream.cuda_stream):
        step()
    return graph.replay


def _replayed(rig, options):
    (captured, gradients), (plain, _) = rig.many(SHAPES, **options), rig.many(SHAPES, **options)
    with _on_side_stream(rig):
        captured.step(gradients)
        replay = _captured(rig, lambda: captured.step(gradients))
        for number in range(4):
            if number == 2:
                captured.param_groups[0]["lr"] = 0.01
            replay()
    for number in range(5):
        if number == 3:
            plain.param_groups[0]["lr"] = 0.01
        plain.step(gradients)
    steps = {entry["step"] for entry in captured.state_dict()["state"].values()}
    return {"equal": _equal(captured, plain), "steps": sorted(steps)}


def _refused(rig, options, elsewhere):
    """What the error says, and whether steps go on after it."""
    optimizer, gradients = rig.many(SHAPES, **options)
    others = {name: gradient.copy() for name, gradient in gradients.items()} if elsewhere else gradients
    said = "nothing"
    with _on_side_stream(rig):
        optimizer.step(gradients)

        def attempt():
            nonlocal said
            try:
                optimizer.step(others)
            except RuntimeError as error:
                said = str(error)

        _captured(rig, attempt)
        optimizer.step(gradients)
    return {"says": said}


def streams(rig: Rig, results: Results) -> None:
    """Steps on a side stream of torch, whose gradients are gone after each; and a host that runs ahead."""
    results.attempt("side stream", _beside, rig)
    results.attempt("host ahead", _ahead, rig)


def _beside(rig):
    here, there = rig.many(SHAPES)[0], rig.many(SHAPES)[0]
    for seed in range(20):
        here.step(_tensors(rig, seed))
    with _on_side_stream(rig):
        for seed in range(20):
            there.step(_tensors(rig, seed))
    return {"equal": _equal(here, there)}


def _tensors(rig, seed):
    rig.torch.manual_seed(seed)
    return {index: rig.tensor(shape) for index, shape in enumerate(SHAPES)}


def _ahead(rig):
    """The device is held up while the host makes 40 steps, each with a gradient in another place."""
    size, optimizer_of = rig.size(5_000_000), fastadam.Adam
    optimizer = optimizer_of({0: rig.array(size, "float32", 0)})
    steps = [{0: rig.xp.full(size, float(number), "float32")} for number in range(1, 41)]
    if not rig.dry:
        rig.torch.cuda._sleep(100_000_000)
    moment = 0.0
    for number, gradients in enumerate(steps, 1):
        optimizer.step(gradients)
        moment += 0.1 * (number - moment)
    found = [float(optimizer.buffers.m[place]) for place in (0, size - 1)]
    return {"equal": all(abs(value / moment - 1.0) < 1e-5 for value in found)}


def memory(rig: Rig, results: Results) -> None:
    """Bytes of device memory that steps allocate, with gradients elsewhere each time."""
    for name, options in CASES.items():
        results.attempt(name, _allocated, rig, options)


def _allocated(rig, options):
    optimizer, first = rig.many(SHAPES, **options)
    turns = [first, rig.arrays(SHAPES, "float32", 9_000)]
    for gradients in turns:
        optimizer.step(gradients)
    if rig.dry:
        return 0
    pool = rig.xp.get_default_memory_pool()
    before = pool.used_bytes()
    for gradients in turns * 3:
        optimizer.step(gradients)
    return pool.used_bytes() - before


def adapter(rig: Rig, results: Results) -> None:
    """Optimizers of `fastadam.torch` on the device: what they become on the CPU, with a scale and skipped steps."""
    for name, (dtype, options) in ADAPTED.items():
        results.attempt(name, _adapted, rig, dtype, options)
    results.attempt("captured", _adapted_and_captured, rig)


ADAPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("float32", {}),
    "clipped": ("float32", CLIPPED),
    "skipping": ("float32", SKIPPING),
    "bfloat16": ("bfloat16", {}),
}


def _parameters(rig, device, dtype):
    rig.torch.manual_seed(0)
    tensors = [rig.torch.randn(shape).to(device, getattr(rig.torch, dtype)) for shape in SHAPES]
    for tensor in tensors:
        tensor.grad = rig.torch.randn(tensor.shape).to(device, tensor.dtype)
    return tensors


def _adapted(rig, dtype, options):
    from fastadam.torch import AdamW

    trained, steps = [], []
    for device in (rig.device, "cpu"):
        parameters = _parameters(rig, device, dtype)
        optimizer = AdamW(parameters, fused=True, **options)
        optimizer.grad_scale = rig.torch.full((), 8.0, device=device)
        for number in range(6):
            optimizer.found_inf = rig.torch.full((), float(number in (0, 3)), device=device)
            optimizer.step()
        steps.append(sorted({float(entry["step"]) for entry in optimizer.state_dict()["state"].values()}))
        trained.append([parameter.cpu() for parameter in parameters])
    equal = all(map(rig.torch.equal, *trained))
    return {"equal": equal, "steps": steps, "skipped": optimizer.skipped_steps}


def _adapted_and_captured(rig):
    from fastadam.torch import AdamW

    captured, plain = (_parameters(rig, rig.device, "float32") for _ in range(2))
    optimizer, other = AdamW(captured, capturable=True), AdamW(plain)
    with _on_side_stream(rig):
        optimizer.step()
        replay = _captured(rig, optimizer.step)
        for _ in range(3):
            replay()
        steps = sorted({float(entry["step"]) for entry in optimizer.state_dict()["state"].values()})
    for _ in range(4):
        other.step()
    return {"equal": all(map(rig.torch.equal, captured, plain)), "steps": steps}


def _equal(one, other):
    return all(bool((one.params[name] == other.params[name]).all()) for name in one.params)
