"""Torch's optimizers and ours side by side, on any device, and all that a training loop does around their steps."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

import fastadam.torch
from fastadam.torch import GradScaler

FUSED, OURS = "torch, fused", "fastadam.torch"
SETTINGS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.01}
MAX_NORM, EMA_DECAY, SCALE = 1.0, 0.999, 1_024.0


def torch_fused(params: Any) -> Any:
    """torch's fastest AdamW."""
    return torch.optim.AdamW(params, **SETTINGS, fused=True)


def ours(params: Any, **options: Any) -> Any:
    """Ours."""
    return fastadam.torch.AdamW(params, **SETTINGS, **options)


def parameters(shapes: Sequence[tuple[int, ...]], dtype: Any = torch.float32, device: str = "cpu") -> list[Any]:
    """Parameters with gradients, the same ones at each call."""
    generator = torch.Generator(device).manual_seed(0)

    def random(shape):
        return torch.randn(shape, generator=generator, device=device)

    made = [torch.nn.Parameter(random(shape).to(dtype)) for shape in shapes]
    for p in made:
        p.grad = 0.01 * random(p.shape).to(dtype)
    return made


def assert_alike(trained: Mapping[str, Sequence[Any]], tolerance: float = 1e-5) -> None:
    """Raise unless all have trained to the same parameters, of which the first are right."""
    first, *others = trained.values()
    for other in others:
        for p, q in zip(first, other, strict=True):
            torch.testing.assert_close(q.detach().float(), p.detach().float(), rtol=tolerance, atol=tolerance)


def hold_alike(made: Mapping[str, tuple[Sequence[Any], Callable[[], Any]]]) -> None:
    """Call the function of each, and raise unless all have trained their parameters to the same."""
    for _, train in made.values():
        train()
    assert_alike({name: params for name, (params, _) in made.items()})


def sequences(params_of: Callable[[], list[Any]], device: str = "cpu") -> dict[str, tuple[list[Any], Callable]]:
    """Unscale, check, clip, step, average, zero: by torch, by us beside its scaler, and by us with ours.

    Returns:
        Name -> parameters, as `params_of` makes them, with gradients that are scaled; and a function that does it all.
    """
    made = {
        FUSED: _with_torch(params_of(), device),
        "fastadam.torch, torch's GradScaler": _with_ours(params_of(), device, torch.amp.GradScaler, fused=True),
        "fastadam.torch, fastadam.torch.GradScaler": _with_ours(params_of(), device, GradScaler, nonfinite="skip"),
    }
    for params, _ in made.values():
        for p in params:
            p.grad.mul_(SCALE)
    return made


def _scaler(device, kind):
    scaler = kind(device, init_scale=SCALE, growth_interval=1_000_000)
    scaler.scale(torch.zeros(1, device=device))
    return scaler


def _with_torch(params, device):
    optimizer, scaler = torch_fused(params), _scaler(device, torch.amp.GradScaler)
    averages = [p.detach().clone() for p in params]

    def iteration():
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        scaler.step(optimizer)
        scaler.update()
        torch._foreach_lerp_(averages, [p.detach() for p in params], 1 - EMA_DECAY)
        optimizer.zero_grad(set_to_none=False)

    return params, iteration


def _with_ours(params, device, kind, **options):
    optimizer = ours(params, max_grad_norm=MAX_NORM, ema_decay=EMA_DECAY, zero_grad=True, **options)
    scaler = _scaler(device, kind)

    def iteration():
        scaler.step(optimizer)
        scaler.update()

    return params, iteration
