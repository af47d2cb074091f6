"""One step of all variables of an optimizer: Keras' variables handed to the stepper of `fastadam.torch`."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from fastadam.keras.variables import as_gradients, gradient_like
from fastadam.settings.options import Options
from fastadam.torch.stepper import Stepper


@lru_cache(maxsize=256)
def options_of(
    member: str,
    clip_value: float | None,
    max_grad_norm: float | None,
    max_grad_norm_per_param: float | None,
    ema_decay: float | None,
) -> Options:
    """The options of a pass that computes what Keras does."""
    return Options(
        member,
        convention="keras",
        clip_value=clip_value,
        max_grad_norm=max_grad_norm,
        max_grad_norm_per_param=max_grad_norm_per_param,
        ema_decay=ema_decay,
        rounding="nearest",
    )


class FusedPass:
    """Steps variables where they lie now: each step asks Keras for their tensors.

    Attributes:
        variables: Those of the model that it steps. Here, and not in the optimizer, whose variables Keras would take
            them for.
        stepped: Keys of the variables, by `id`, that the last step has stepped.
    """

    def __init__(self, variables: Sequence[Any], kept: Sequence[Mapping[str, Any]]):
        """`kept`: for each of `variables` a mapping, key of fastadam.torch's state -> the optimizer's variable."""
        self.variables, self._kept = variables, kept
        # Keras has one count for all variables; here each has its own, all in this array.
        self._counts = np.zeros(len(variables))
        counters = [torch.from_numpy(self._counts[index : index + 1]).reshape(()) for index in range(len(variables))]
        self._entries: list[dict[str, Any]] = [{"step": counter} for counter in counters]
        self._options: Options | None = None
        self.stepped: set[int] = set()

    def step(
        self,
        gradients: Mapping[int, Any],
        settings: Mapping[str, Any],
        decays: Sequence[float],
        options: Options,
        iterations: int,
        grad_scale: float,
    ) -> None:
        """Step the variables that have a gradient.

        Args:
            gradients: `id` of a variable -> its gradient.
            settings: The keys of a group, without "weight_decay".
            decays: The weight decay of each variable.
            options: What is in the pass.
            iterations: Steps that have been taken.
            grad_scale: Multiplied into the gradients.
        """
        tensors = [variable.value for variable in self.variables]
        found = [gradients.get(id(variable)) for variable in self.variables]
        found = [
            None if gradient is None else gradient_like(gradient, tensor, variable.path)
            for gradient, tensor, variable in zip(found, tensors, self.variables, strict=True)
        ]
        groups = self._groups(tensors, settings, decays)
        if options is not self._options:
            self._stepper, self._options = Stepper(options, groups[0]), options
        if (self._counts != iterations).any():
            self._counts[...] = iterations
        located = [
            (entry, key, variable.value)
            for entry, kept in zip(self._entries, self._kept, strict=True)
            for key, variable in kept.items()
        ]
        for entry, key, tensor in located:
            entry[key] = tensor
        with as_gradients(tensors, found):
            self._stepper.step(groups, dict(zip(tensors, self._entries, strict=True)), grad_scale)
        for entry, key, tensor in located:
            if entry[key] is not tensor:  # brought to the device and the memory order of the variable
                tensor.data = entry[key]
        self.stepped = {*gradients}

    def _groups(self, tensors, settings, decays):
        """A group for each weight decay that there is."""
        members: dict[float, list[int]] = {}
        for index, decay in enumerate(decays):
            members.setdefault(decay, []).append(index)
        return [
            {
                **settings,
                "weight_decay": decay,
                "params": [tensors[index] for index in indices],
                "param_names": [self.variables[index].path for index in indices],
            }
            for decay, indices in members.items()
        ]
