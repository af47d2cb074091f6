"""What the classes share: the hooks of Keras' base class that the pass takes the place of."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch

from fastadam.keras.fused_pass import FusedPass, options_of
from fastadam.keras.host import keras
from fastadam.keras.variables import check_variables
from fastadam.settings.checks import fraction, nonnegative, unexpected
from fastadam.torch.tensors import arithmetic_of

# Key of fastadam.torch's state -> attribute with Keras' variables for it.
_KEPT = {
    "exp_avg": "_momentums",
    "exp_avg_sq": "_velocities",
    "max_exp_avg_sq": "_velocity_hats",
    "ema": "_model_variables_moving_average",
}
# What settings are called elsewhere -> in Keras.
_ALIASES = {
    "lr": "learning_rate",
    "beta1": "beta_1",
    "beta2": "beta_2",
    "betas": "beta_1",
    "eps": "epsilon",
    "decay": "weight_decay",
    "wd": "weight_decay",
    "max_grad_norm": "global_clipnorm",
    "clip_value": "clipvalue",
    "ema_decay": "ema_momentum",
    "grad_scale": "loss_scale_factor",
}


class Fused(keras.optimizers.Optimizer):
    """The part of the classes that is not Keras' self."""

    _member: str
    loss_scale_factor: float | None
    # What the pass multiplies into the gradients.
    _grad_scale = 1.0

    def __init__(self, *args: Any, **kwargs: Any):
        known = [name for name in signature(super().__init__).parameters if name not in ("args", "kwargs")]
        unknown = sorted(kwargs.keys() - set(known))
        if unknown:
            meant = _ALIASES.get(unknown[0])
            raise unexpected(type(self).__name__, unknown[0], known, meant if meant in known else None)
        super().__init__(*args, **kwargs)
        self._check()

    def _check(self):
        """Raise unless every setting can be computed with."""
        if isinstance(self._learning_rate, keras.Variable):
            nonnegative(float(self._learning_rate.value), "learning_rate")
        for key, check in {"beta_1": fraction, "beta_2": fraction, "epsilon": nonnegative}.items():
            if hasattr(self, key):
                check(getattr(self, key), key)
        for key in ("weight_decay", "clipnorm", "clipvalue", "global_clipnorm"):
            if getattr(self, key) is not None:
                nonnegative(getattr(self, key), key)
        if self.use_ema:
            fraction(self.ema_momentum, "ema_momentum")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _ALIASES:
            raise AttributeError(f"`{name}` would do nothing here. Did you mean `{_ALIASES[name]}`?")
        super().__setattr__(name, value)

    def build(self, variables: Sequence[Any]) -> None:
        """Make the variables of the optimizer, under Keras' names, for the variables of a model.

        Raises:
            TypeError: one of them is no variable of Keras on torch, not in CPU or CUDA memory, or of another dtype.
        """
        if self.built:
            return
        variables = list(variables)
        check_variables(variables)
        super().build(variables)
        columns = {key: getattr(self, name) for key, name in _KEPT.items() if hasattr(self, name)}
        self._narrow = any(arithmetic_of(each.value) is not each.value.dtype for each in variables)
        if self._narrow:
            columns.pop("ema", None)
        kept = [
            (variable, {key: column[index] for key, column in columns.items()})
            for index, variable in enumerate(variables)
            if columns["exp_avg"][index] is not None  # None: it is overwritten with its gradient
        ]
        self._pass = FusedPass([each[0] for each in kept], [each[1] for each in kept])

    # --- before the pass

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """As Keras' own; the pass divides by `loss_scale_factor`, unless gradients are needed before it."""
        scale = self.loss_scale_factor
        if scale is None or self.gradient_accumulation_steps:
            super().apply(grads, trainable_variables)
            return
        self.loss_scale_factor, self._grad_scale = None, 1.0 / scale
        try:
            super().apply(grads, trainable_variables)
        finally:
            self.loss_scale_factor, self._grad_scale = scale, 1.0

    def _clip_gradients(self, grads):
        """Clip what the pass does not."""
        if self._clips_in_pass():
            return grads
        if self._grad_scale != 1.0:
            grads, self._grad_scale = [gradient * self._grad_scale for gradient in grads], 1.0
        return super()._clip_gradients(grads)

    def _clips_in_pass(self):
        """Whether the pass clips: on CUDA it has no norm of each variable."""
        return not self.clipnorm or all(each.value.device.type == "cpu" for each in self._trainable_variables)

    def _apply_weight_decay(self, variables):
        """Nothing: the pass decays."""

    # --- the pass

    @torch._disable_dynamo
    @torch.no_grad()
    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        settings = {
            "lr": nonnegative(float(learning_rate), "learning_rate"),
            "betas": (float(self.beta_1), float(self.beta_2)),
            "eps": float(getattr(self, "epsilon", 0.0)),
            "amsgrad": hasattr(self, "_velocity_hats"),
            "maximize": False,
            "decoupled_weight_decay": True,
        }
        decay = float(self.weight_decay or 0.0)
        self._pass.step(
            dict(zip(map(id, trainable_variables), grads, strict=True)),
            settings,
            [decay if self._use_weight_decay(variable) else 0.0 for variable in self._pass.variables],
            options_of(
                self._member,
                self.clipvalue or None,
                self.global_clipnorm or None,
                self.clipnorm or None if self._clips_in_pass() else None,
                self.ema_momentum if self._averages_in_pass() else None,
            ),
            self._steps_taken(),
            self._grad_scale,
        )

    def _steps_taken(self):
        return int(self._iterations.value) // (self.gradient_accumulation_steps or 1)

    # --- after the pass

    def _overwrite_model_variables_with_average_value(self, trainable_variables):
        """Overwrite nothing before the first step: averages are zeros until then."""
        if int(self._iterations.value) > 0:
            super()._overwrite_model_variables_with_average_value(trainable_variables)

    def _averages_in_pass(self):
        """Whether the pass averages: Keras averages between accumulated steps too, and 16-bit averages in 16 bits."""
        return self.use_ema and not self.gradient_accumulation_steps and not self._narrow

    @torch._disable_dynamo
    @torch.no_grad()
    def _update_model_variables_moving_average(self, trainable_variables):
        """Average what the pass has not stepped; an average begins as its variable after the first step."""
        if not self._averages_in_pass():
            super()._update_model_variables_moving_average(trainable_variables)
            return
        first = self._steps_taken() == 0
        for variable, average in zip(trainable_variables, self._model_variables_moving_average, strict=True):
            if average is None:
                continue
            if first:
                average.assign(variable)
            elif id(variable) not in self._pass.stepped:
                average.value.lerp_(variable.value, 1.0 - self.ema_momentum)
