"""`torch.amp.GradScaler` without a pass of its own over the gradients."""

from typing import Any

import torch
from torch.amp.grad_scaler import OptState

from fastadam.torch.optimizer import Fused


class GradScaler(torch.amp.GradScaler):
    """torch's `GradScaler`, which lets a step of `fastadam.torch` itself find what is not finite.

    torch's own reads and writes all gradients before the step, in search of infinities; the step reads them again. An
    optimizer with `nonfinite="skip"` finds them anyhow, in the read that clipping needs too, and skips the step. With
    one whose gradients nobody has unscaled, and whose parameters are on the device of the scale, this scaler leaves it
    to that: the step divides by the scale, and `update` learns whether it was taken, on a GPU without waiting. All else
    is torch's: the scales and their growth, state dictionaries, which load in both directions, and every other
    optimizer or call of `unscale_`.

    Clipping belongs in the optimizer, `max_grad_norm`, which needs no `unscale_`.

    Micikevicius et al., Mixed Precision Training, 2018, https://arxiv.org/abs/1710.03740, section 3.2.

    Example:
        >>> import torch, fastadam.torch
        >>> net = torch.nn.Linear(2, 1)
        >>> optimizer = fastadam.torch.AdamW(net.parameters(), nonfinite="skip", max_grad_norm=1.0)
        >>> scaler = fastadam.torch.GradScaler("cpu", init_scale=1024.0)
        >>> scaler.scale(net(torch.ones(4, 2)).mean()).backward()
        >>> scaler.step(optimizer)
        >>> scaler.update()
        >>> optimizer.skipped_steps
        0
    """

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        """Take a step with gradients divided by the scale, unless one of them is not finite; return what it returns.

        Raises:
            RuntimeError: a step of this optimizer has been taken since the last `update`, or a closure is given.
            AssertionError: nothing has been scaled yet.
        """
        if not self._enabled or not self._leaves_it_to(optimizer) or args or kwargs:
            return super().step(optimizer, *args, **kwargs)
        scale, _ = self._check_scale_growth_tracker("step")
        state, before = self._per_optimizer_states[id(optimizer)], optimizer._skips_on(scale.device)
        optimizer.grad_scale = scale
        try:
            optimizer.step()
        finally:
            del optimizer.grad_scale
        overflow = optimizer._skips_on(scale.device) - before
        state.update(stage=OptState.STEPPED, found_inf_per_device={scale.device: overflow})
        return None

    def _leaves_it_to(self, optimizer):
        return (
            isinstance(optimizer, Fused)
            and optimizer._options.nonfinite == "skip"
            and self._scale is not None
            and all(p.device == self._scale.device for group in optimizer.param_groups for p in group["params"])
            and self._per_optimizer_states[id(optimizer)]["stage"] is OptState.READY
        )
