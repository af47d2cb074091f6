"""The wrapper around `step`: hooks and the profiler's range where they are wanted, and next to nothing elsewhere."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.optim import optimizer as base


def hooked(step: Callable) -> Callable:
    """`step` with the hooks of torch's optimizers, which are called by torch's own wrapper.

    That one enters a range of the profiler in every step, which takes 7 us, and so is called only if there is a hook or
    a profiler runs. torch.compile leaves the step alone: what is launched is no code that it knows. To ask it to costs
    1 us, and so is done only where it compiles.
    """
    with_hooks = base.Optimizer.profile_hook_step(step)
    everywhere = base._global_optimizer_pre_hooks, base._global_optimizer_post_hooks
    profiles, compiler = torch.autograd._profiler_enabled, torch._C._dynamo.eval_frame.get_eval_frame_callback

    @wraps(step)
    def outer(self: Any, *args: Any, **kwargs: Any) -> Any:
        if compiler() is not None:
            return left_alone(self, *args, **kwargs)
        own = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        # A class that inherits and calls this `step` from its own has hooks around its own.
        if (own or everywhere[0] or everywhere[1] or profiles()) and type(self).step is outer:
            return with_hooks(self, *args, **kwargs)
        return step(self, *args, **kwargs)

    left_alone = torch._disable_dynamo(outer)
    outer.hooked = True  # type: ignore[attr-defined]  # torch wraps each class's `step` that does not say so
    return outer
