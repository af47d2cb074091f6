"""What optimizers of `fastadam.torch` take on the device and on the host, in the place of torch's fused one."""

from collections.abc import Callable
from functools import partial
from typing import Any

from fastadam.bench.gpu.results import Results
from fastadam.bench.gpu.rig import FORMATS, Rig, Shapes
from fastadam.bench.workloads import GPT2
from fastadam.torch import AdamW, GradScaler

FUSED, OURS = "torch, fused", "fastadam.torch"
SETTINGS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.01}
MAX_NORM, EMA_DECAY, SCALE = 1.0, 0.999, 1_024.0


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
    steps = {
        name: optimizer.step for name, (optimizer, _) in _optimizers(rig, shapes, {OURS: FORMATS["float32"]}).items()
    }
    clipped, _ = _ours(rig, shapes, max_grad_norm=MAX_NORM)
    steps["fastadam.torch, clipped"] = clipped.step
    fused, params = _fused(rig, shapes)
    steps["torch, fused, clipped"] = partial(_clip_and_step, rig, fused, params)
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
    return {name: optimizer.step for name, (optimizer, _) in optimizers.items()}


def _optimizers(rig, shapes, ours):
    """Torch's and ours, which have been held against torch's in float32."""
    made = {FUSED: _fused(rig, shapes)}
    for name, (dtype, options) in ours.items():
        made[name] = _ours(rig, shapes, dtype, **options)
    _assert_alike(rig, {name: each for name, each in made.items() if name in (FUSED, OURS, f"{OURS}, float32")})
    return made


def _assert_alike(rig, made):
    for optimizer, _ in made.values():
        for _ in range(2):
            optimizer.step()
    (_, first), *others = made.values()
    for _, params in others:
        for p, q in zip(first, params, strict=True):
            rig.torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-6)


def _parameters(rig: Rig, shapes: Shapes, dtype: str = "float32") -> list[Any]:
    """Parameters with gradients, the same ones at each call."""
    rig.torch.manual_seed(0)
    made = [rig.torch.nn.Parameter(rig.tensor(shape, dtype)) for shape in shapes]
    for p in made:
        p.grad = 0.01 * rig.tensor(p.shape, dtype)
    return made


def _fused(rig, shapes):
    params = _parameters(rig, shapes)
    return rig.torch.optim.AdamW(params, **SETTINGS, fused=True), params


def _ours(rig, shapes, dtype="float32", **options):
    params = _parameters(rig, shapes, dtype)
    return AdamW(params, **SETTINGS, **options), params


# --- unscale, check, clip, step, average, zero


def _sequences(rig, shapes):
    """By torch, by us beside its scaler, and by us with ours, held against each other in the first iteration."""
    made = {
        FUSED: _with_torch(rig, shapes),
        "fastadam.torch, torch's GradScaler": _with_ours(rig, shapes, rig.torch.amp.GradScaler, fused=True),
        "fastadam.torch, fastadam.torch.GradScaler": _with_ours(rig, shapes, GradScaler, nonfinite="skip"),
    }
    for params, iteration in made.values():
        for p in params:
            p.grad.mul_(SCALE)
        iteration()
    (first, _), *others = made.values()
    for params, _ in others:
        for p, q in zip(first, params, strict=True):
            rig.torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-6)
    return {name: iteration for name, (_, iteration) in made.items()}


def _scaler(rig, kind):
    scaler = kind(rig.device, init_scale=SCALE, growth_interval=1_000_000)
    scaler.scale(rig.torch.zeros(1, device=rig.device))
    return scaler


def _with_torch(rig, shapes):
    optimizer, params = _fused(rig, shapes)
    scaler, averages = _scaler(rig, rig.torch.amp.GradScaler), [p.detach().clone() for p in params]

    def iteration():
        scaler.unscale_(optimizer)
        rig.torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        scaler.step(optimizer)
        scaler.update()
        rig.torch._foreach_lerp_(averages, [p.detach() for p in params], 1 - EMA_DECAY)
        optimizer.zero_grad(set_to_none=False)

    return params, iteration


def _with_ours(rig, shapes, kind, **options):
    optimizer, params = _ours(rig, shapes, max_grad_norm=MAX_NORM, ema_decay=EMA_DECAY, zero_grad=True, **options)
    scaler = _scaler(rig, kind)

    def iteration():
        scaler.step(optimizer)
        scaler.update()

    return params, iteration
