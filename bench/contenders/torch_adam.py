"""torch.optim.Adam on CPU tensors: its loop, its foreach form, its fused kernel, and compiled."""

import logging
import warnings
from functools import partial

from fastadam.bench.contender import EMA_DECAY, MAX_NORM, SCALE, WEIGHT_DECAY, Built, Contender, with_averages


def with_gradients(params, grads, device="cpu"):
    """Parameters with gradients, and `feed`, which copies other gradients into them."""
    import torch

    tensors = {name: torch.nn.Parameter(torch.from_numpy(p).to(device)) for name, p in params.items()}
    for name, tensor in tensors.items():
        tensor.grad = torch.from_numpy(grads[name]).to(device, copy=True)

    def feed(gradients):
        for name, tensor in tensors.items():
            tensor.grad.copy_(torch.as_tensor(gradients[name]))

    return tensors, feed


def values(tensors):
    """What tensors hold, as NumPy arrays."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def build(params, grads, kind, device="cpu", compiled=False, **settings):
    import torch

    tensors, feed = with_gradients(params, grads, device)
    restore = partial(feed, {name: torch.from_numpy(grad).to(device) for name, grad in grads.items()})
    if kind == "full":
        step, averages = _full_step(torch, tensors, device, settings)
        return Built(step, lambda: with_averages(values(tensors), values(averages)), feed, restore)
    optimizer = torch.optim.Adam(tensors.values(), **settings)
    step = _compiled(torch, optimizer) if compiled else optimizer.step
    if device == "cuda":
        step = waiting(step)
    if kind == "clip":

        def step_clipped():
            torch.nn.utils.clip_grad_norm_(tensors.values(), MAX_NORM)
            optimizer.step()

        return Built(step_clipped, lambda: values(tensors), feed, restore)
    return Built(step, lambda: values(tensors), feed)


def _full_step(torch, tensors, device, settings):
    """The step that torch documents for AMP with clipping, by functions on lists of tensors or by loops."""
    optimizer = torch.optim.AdamW(tensors.values(), weight_decay=WEIGHT_DECAY, **settings)
    averages = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    found, inverse = torch.zeros(1, device=device), torch.tensor(SCALE, device=device)
    together = settings.get("fused") or settings.get("foreach")

    def fastest():
        with torch.no_grad():
            gradients = [tensor.grad for tensor in tensors.values()]
            found.zero_()
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, inverse)
            if found.item():
                return
            torch.nn.utils.clip_grad_norm_(tensors.values(), MAX_NORM, foreach=True)
            optimizer.step()
            torch._foreach_lerp_(list(averages.values()), list(tensors.values()), 1 - EMA_DECAY)
            torch._foreach_zero_(gradients)

    def loops():
        with torch.no_grad():
            for tensor in tensors.values():
                tensor.grad.mul_(SCALE)
            if not all(torch.isfinite(tensor.grad).all() for tensor in tensors.values()):
                return
            torch.nn.utils.clip_grad_norm_(tensors.values(), MAX_NORM)
            optimizer.step()
            for average, tensor in zip(averages.values(), tensors.values(), strict=True):
                average.mul_(EMA_DECAY).add_(tensor, alpha=1 - EMA_DECAY)
            optimizer.zero_grad(set_to_none=False)

    return (fastest if together else loops), averages


def _compiled(torch, optimizer):
    # All optimizers share one code object, of which dynamo compiles eight forms and then runs the others eagerly.
    torch._dynamo.config.recompile_limit = 1_000
    torch._logging.set_logs(dynamo=logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.script", DeprecationWarning)
        return torch.compile(optimizer.step, dynamic=False)


def waiting(step):
    """`step`, and a wait until the device has done it."""
    import torch

    def step_and_wait():
        step()
        torch.cuda.synchronize()

    return step_and_wait


_ALL = ("plain", "clip", "full")
CONTENDERS = (
    Contender("torch, loop", partial(build, foreach=False), ("torch",), _ALL, threads="torch"),
    Contender("torch, foreach", partial(build, foreach=True), ("torch",), _ALL, threads="torch"),
    Contender("torch, fused", partial(build, fused=True), ("torch",), (*_ALL, "calls"), threads="torch"),
    Contender("torch, compiled", partial(build, compiled=True, foreach=True), ("torch",), threads="torch, compiled"),
    Contender("torch, fused, CUDA", partial(build, device="cuda", fused=True), ("torch", "cupy"), device="cuda"),
)
