"""What optimizers of `fastadam.torch` take on the device and on the host, in the place of torch's fused one."""

from collections.abc import Callable
from functools import partial
from typing import Any

from fastadam.bench.gpu.results import Results
from fastadam.bench.gpu.rig import FORMATS, Rig
from fastadam.bench.torch_training import FUSED, MAX_NORM, OURS, hold_alike, ours, parameters, sequences, torch_fused
from fastadam.bench.workloads import GPT2


def torch_steps(rig: Rig, results: Results) -> None:
    """Microseconds of the host for more and more tensors; picoseconds an element of GPT-2 on the device."""
    for count, calls in ((6, 200), (148, 50), (1_000, 10)):
        results.attempt(f"{count:,}", _host, rig, [(2_000,)] * rig.count(count), calls)
    shapes = [tuple(map(rig.size, shape)) for shape in GPT2.shapes.values()]
    if rig.dry:
        shapes = [tuple(min(length, 8) for length in shape) for shape in shapes]
    results.attempt("GPT-2", _device, rig, shapes, _steps)
    results.attempt("GPT-2, full sequence", _device, rig, shapes, _sequences)


def _host(rig, shapes, calls):
    steps = {name: optimizer.step for name, optimizer in _optimizers(rig, shapes, {OURS: FORMATS["float32"]}).items()}
    steps["fastadam.torch, clipped"] = ours(_parameters(rig, shapes), max_grad_norm=MAX_NORM).step
    params = _parameters(rig, shapes)
    steps["torch, fused, clipped"] = partial(_clip_and_step, rig, torch_fused(params), params)
    return {name: rig.microseconds(step, calls) for name, step in steps.items()}


def _clip_and_step(rig, optimizer, params):
    rig.torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
    optimizer.step()


def _device(rig, shapes, steps_of):
    steps: dict[str, Callable[[], Any]] = steps_of(rig, shapes)
    milliseconds = rig.milliseconds(steps, 3, 5, 8.0)
    size = sum(rig.torch.Size(shape).numel() for shape in shapes)
    return {name: round(value * 1e9 / size, 3) for name, value in milliseconds.items()}


def _steps(rig, shapes):
    optimizers = _optimizers(rig, shapes, {f"{OURS}, {stored}": stored_as for stored, stored_as in FORMATS.items()})
    return {name: optimizer.step for name, optimizer in optimizers.items()}


def _optimizers(rig, shapes, stored):
    """Torch's and ours, which have been held against torch's in float32."""
    made = {FUSED: torch_fused(_parameters(rig, shapes))}
    for name, (dtype, options) in stored.items():
        made[name] = ours(_parameters(rig, shapes, dtype), **options)
    steps = {
        name: (optimizer.param_groups[0]["params"], optimizer.step)
        for name, optimizer in made.items()
        if name in (FUSED, OURS, f"{OURS}, float32")
    }
    hold_alike(steps)
    hold_alike(steps)
    return made


def _parameters(rig, shapes, dtype="float32"):
    return parameters(shapes, getattr(rig.torch, dtype), rig.device)


def _sequences(rig, shapes):
    """Held against each other in the first iteration."""
    made = sequences(partial(_parameters, rig, shapes), rig.device)
    hold_alike(made)
    return {name: iteration for name, (_, iteration) in made.items()}
