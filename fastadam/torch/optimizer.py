"""What the classes share: `step` and `load_state_dict`, in the place of those of torch's classes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from fastadam.params import check_ordered
from fastadam.settings.options import Options
from fastadam.torch.counters import put_together
from fastadam.torch.hooks import hooked
from fastadam.torch.options import options_of
from fastadam.torch.state import carried_keys
from fastadam.torch.stepper import Stepper
from fastadam.torch.tensors import is_on_device


class Fused(torch.optim.Optimizer):
    """The part of the classes that is not torch's own."""

    _member: str
    _options: Options

    def __init__(self, params: Any, *arguments: Any, **settings: Any):
        check_ordered(params, "params")
        super().__init__(params, *arguments, **settings)

    def _choose(self, given: Mapping[str, Any], *, differentiable: bool = False) -> None:
        """Take over the options that torch's classes do not have."""
        self._options = options_of(self._member, given, type(self))
        if differentiable:
            raise ValueError("`differentiable` must be False, got True: autograd knows nothing of what is launched")

    @hooked
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every parameter that has a gradient, in place; see the class.

        Args:
            closure: A function that computes the gradients anew and returns the loss; called once, before the step.

        Returns:
            The loss that `closure` returns, None without one.

        Raises:
            TypeError, ValueError: a parameter, gradient or state that cannot be stepped; the message names it. Nothing
                has been written then.
            FloatingPointError: a gradient is not finite, with `nonfinite="raise"`. Nothing has been written then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        own = self.__dict__
        stepper = own.get("_stepper")
        if stepper is None:
            stepper = own.setdefault("_stepper", Stepper(self._options, self.param_groups[0]))
        scale, overflow = own.get("grad_scale"), own.get("found_inf")
        told = scale if overflow is None else overflow
        if told is None:
            stepper.step(self.param_groups, self.state)
        elif isinstance(told, torch.Tensor) and is_on_device(told) and not self._waits:
            # The device reads both, if it has all parameters, and nothing waits for it.
            stepper.step(self.param_groups, self.state, 1.0, scale, overflow)
        else:
            stepper.step_as_read(self.param_groups, self.state, scale, overflow)
        return loss

    def send_settings(self) -> None:
        """Let replays of a captured step go on with the numbers that `param_groups` has now, on the current stream.

        A step sends them by itself. Call this between replays, after a scheduler, or `param_groups[0]["lr"] = x`.

        Raises:
            RuntimeError: no step has been taken; or parameters, their states or the groups are no longer those that
                were stepped last, so that a replay would not step them. Nothing has been written then.
        """
        stepper = self.__dict__.get("_stepper")
        if stepper is None:
            raise RuntimeError("a step must have been taken before `send_settings`")
        stepper.send_settings(self.param_groups, self.state)

    def state_dict(self) -> dict[str, Any]:
        """The state as torch has it. Where a GPU decides about steps, or replays them, this waits for its counts."""
        self._recount()
        return super().state_dict()

    @property
    def _waits(self):
        return self._options.nonfinite == "raise" or self._options.max_skipped_steps is not None

    def _recount(self):
        stepper = self.__dict__.get("_stepper")
        if stepper is not None:
            stepper.recount()

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a `state_dict()` of this class, or of torch's class of the same name, by copying.

        Moments keep the dtype in which they were saved, whatever the dtype of the parameters is.
        """
        # The last of the hooks before loading, so that others see what was saved.
        handle = self.register_load_state_dict_pre_hook(_keep_dtypes)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        self._recount()
        return {**super().__getstate__(), "_options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        entries = state.get("state", {})
        having = [(p, entry) for p, entry in entries.items() if isinstance(p, torch.Tensor) and isinstance(entry, dict)]
        for p, entry in having:
            for key, value in entry.items():
                if isinstance(value, _Saved):
                    entry[key] = value.on(p.device)
        super().__setstate__(state)
        counted = [entry for _, entry in having if entry.keys() >= carried_keys(self._options).keys()]
        put_together(counted, carried_keys(self._options))

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped for a gradient that was not finite."""
        stepper = self.__dict__.get("_stepper")
        return 0 if stepper is None else stepper.skipped_steps

    def _skips_on(self, device):
        """The same as a tensor on a device, which nothing waits for."""
        stepper = self.__dict__.get("_stepper")
        return torch.zeros((), device=device) if stepper is None else stepper.skips_on(device)

    @property
    def grad_norm(self) -> float | None:
        """The norm of all gradients of the last step, scaled and not yet clipped; on a GPU this waits for the step.

        None before the first step, and if nothing asks for it: no limit of a norm, and no policy of `nonfinite`.
        """
        stepper = self.__dict__.get("_stepper")
        reductions = [] if stepper is None else [share.engine.reduction for share in stepper.shares]
        return reductions[0].norm if reductions and reductions[0] is not None else None


class _Saved:
    """A tensor that torch does not cast, because it does not see one."""

    def __init__(self, tensor: Any):
        self._tensor = tensor

    def on(self, device: Any) -> Any:
        """A copy on the device of its parameter."""
        return self._tensor.detach().to(device, copy=True)


def _keep_dtypes(optimizer, state_dict):
    names = {name for group in state_dict["param_groups"] for name in group["params"]}
    state = {
        name: {key: _Saved(value) if isinstance(value, torch.Tensor) else value for key, value in entry.items()}
        if name in names and isinstance(entry, dict)
        else entry
        for name, entry in state_dict["state"].items()
    }
    return {**state_dict, "state": state}
