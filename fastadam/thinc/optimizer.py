"""Thinc's optimizer with its Adam as one pass over each parameter."""

from itertools import combinations
from typing import Any

import numpy as np

from fastadam.thinc.host import ADAM_DEFAULTS, FloatOrSeq, Optimizer
from fastadam.thinc.parameter import Arrays, Parameter
from fastadam.thinc.settings import settings_of


class Adam(Optimizer):
    """Thinc's Adam: clipping, moments, step, decay, average and the zeroing of the gradient in one pass, in place.

    With weights w and gradient g of one parameter, at its step t = 1, 2, ..., for every element:

        g   = g + L2 * w                                (unless `L2_is_weight_decay`)
        g   = g * grad_clip / max(norm of g, grad_clip)         (with `grad_clip`)
        m   = m + (1 - beta1) * (g - m)
        v   = v + (1 - beta2) * (g * g - v)
        w   = w - lr * sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(v) + eps)        where lr = lr_scale * learn_rate
        w   = w - lr * L2 * w                           (with `L2_is_weight_decay`)
        average = average + (1 - min((1 + t) / (10 + t), 0.9999)) * (w - average)       (with `use_averages`)
        g   = 0

    Arguments, attributes (`learn_rate`, `b1`, `b2`, `eps`, `L2`, `grad_clip`, `mom1`, `mom2`, `averages`, `nr_update`,
    `schedules`) and `step_schedules` are those of `thinc.optimizers.Optimizer`, of which it is a subclass. In a config
    it is "fastadam.Adam.v1". It differs from Thinc's where beta1 or beta2 is 0, which Thinc takes for plain SGD or
    refuses; and a NaN in a gradient that is clipped spreads over its parameter.

    Args:
        learn_rate: Learning rate, >= 0. Each number may also be a list or a generator, whose next one `step_schedules`
            takes.
        L2: Coefficient of the decay, >= 0.
        beta1: Decay rate of the first moment, in [0, 1).
        beta2: Decay rate of the second moment, in [0, 1).
        eps: Added to the root of the second moment without bias correction, >= 0.
        grad_clip: Limit of the norm of the gradient of each parameter, 0 for none.
        L2_is_weight_decay: Decay the weights apart from the gradient.
        use_averages: Keep averages of all weights in `averages`, for `model.use_params(optimizer.averages)`.

    Raises:
        TypeError, ValueError: a setting of the wrong kind or value, here and in the call that first uses it.

    Example:
        >>> import numpy as np, fastadam.thinc
        >>> optimizer = fastadam.thinc.Adam(0.1)
        >>> weights, gradient = np.ones(2, np.float32), np.full(2, 0.5, np.float32)
        >>> weights, gradient = optimizer((0, "W"), weights, gradient)
        >>> weights.round(6), gradient
        (array([0.9, 0.9], dtype=float32), array([0., 0.], dtype=float32))

    References:
        Kingma and Ba, "Adam: A Method for Stochastic Optimization", https://arxiv.org/abs/1412.6980.
    """

    __slots__ = ("_parameters", "_settings", "_values")

    def __init__(
        self,
        learn_rate: FloatOrSeq = ADAM_DEFAULTS["learn_rate"],
        *,
        L2: FloatOrSeq = ADAM_DEFAULTS["L2"],
        beta1: FloatOrSeq = ADAM_DEFAULTS["beta1"],
        beta2: FloatOrSeq = ADAM_DEFAULTS["beta2"],
        eps: FloatOrSeq = ADAM_DEFAULTS["eps"],
        grad_clip: FloatOrSeq = ADAM_DEFAULTS["grad_clip"],
        L2_is_weight_decay: bool = True,
        use_averages: bool = True,
    ):
        super().__init__(
            learn_rate,
            L2=L2,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            grad_clip=grad_clip,
            L2_is_weight_decay=L2_is_weight_decay,
            use_averages=use_averages,
        )
        self._begin()
        self._chosen(1.0)

    def _begin(self):
        self._parameters, self._values, self._settings = {}, None, None

    def __getstate__(self) -> Any:
        """What Thinc's has: launches are made anew."""
        return {name: getattr(self, name) for name in Optimizer.__slots__}

    def __setstate__(self, state: Any) -> None:
        """Take over a state, in which no parameter has been located."""
        for name, value in state.items():
            setattr(self, name, value)
        self._begin()

    def __call__(self, key: tuple[int, str], weights: Any, gradient: Any, *, lr_scale: float = 1.0) -> tuple[Any, Any]:
        """Step `weights` in place and zero `gradient`; return both.

        Args:
            key: Of the parameter, usually the number of its node and its name.
            weights: C-contiguous, float32 or float64, in place.
            gradient: Of the same shape and dtype, in place. If it is empty, nothing is done.
            lr_scale: Factor on the learning rate, >= 0.

        Raises:
            TypeError, ValueError: an array of another kind, dtype or shape, read-only or overlapping; a setting of the
                wrong kind or value. Nothing has been written then.
        """
        if np.size(gradient) == 0:
            return weights, gradient
        if self.use_radam:
            raise ValueError("`use_radam` must be False, got True: this is Adam")
        settings, parameter = self._chosen(lr_scale), self._parameters.get(key)
        if parameter is None or not self._is_as_held(parameter.arrays, key, weights, gradient):
            parameter = self._located(key, weights, gradient, parameter, settings)
        elif parameter.recipe != settings.recipe:
            parameter = self._parameters[key] = Parameter(settings, parameter.arrays)
        parameter.step(settings, self.nr_update.get(key, 0) + 1, self._note, key)
        return weights, gradient

    def _note(self, key, number):
        self.nr_update[key] = number

    def _chosen(self, lr_scale):
        """The settings as they are now; they are checked if they are others than before."""
        values = (
            self.learn_rate,
            self.b1,
            self.b2,
            self.eps,
            self.L2,
            self.grad_clip,
            self.L2_is_weight_decay,
            self.averages is not None,
            lr_scale,
        )
        if values != self._values:
            self._settings = settings_of(*values)
            self._values = values
        return self._settings

    def _is_as_held(self, arrays, key, weights, gradient):
        average = None if self.averages is None else self.averages.get(key)
        return (
            arrays.weights is weights
            and arrays.gradient is gradient
            and arrays.mom1 is self.mom1.get(key)
            and arrays.mom2 is self.mom2.get(key)
            and arrays.average is average
        )

    def _located(self, key, weights, gradient, parameter, settings):
        """The parameter at these arrays, which are checked; moments and the average begin as zeros."""
        _check(weights, "weights", weights)
        _check(gradient, "gradient", weights)
        kept = {f"mom1[{key!r}]": self.mom1.get(key), f"mom2[{key!r}]": self.mom2.get(key)}
        if self.averages is not None:
            kept[f"averages[{key!r}]"] = self.averages.get(key)
        for label, array in kept.items():
            if array is None:
                kept[label] = np.zeros(weights.shape if label.startswith("averages") else weights.size, weights.dtype)
            else:
                _check(array, label, weights if label.startswith("averages") else weights.reshape(-1))
        _check_apart({"weights": weights, "gradient": gradient, **kept})
        arrays = Arrays(weights, gradient, *kept.values(), *(() if len(kept) == 3 else (None,)))
        before = None if parameter is None else parameter.arrays.weights
        fits = before is not None and (before.size, before.dtype) == (weights.size, weights.dtype)
        if fits and parameter.recipe == settings.recipe:
            parameter.place(arrays)
        else:
            parameter = Parameter(settings, arrays)
        self.mom1[key], self.mom2[key] = arrays.mom1, arrays.mom2
        if self.averages is not None:
            self.averages[key] = arrays.average
        self._parameters[key] = parameter
        return parameter


def _check(array, label, weights):
    """Raise unless `array` can be stepped beside `weights`."""
    if not isinstance(array, np.ndarray):
        hint = ": train a model on a GPU by Thinc's own Adam" if type(array).__module__.startswith("cupy") else ""
        raise TypeError(f"`{label}` must be a NumPy array, got {type(array).__name__}{hint}")
    if array.dtype not in (np.float32, np.float64) or array.dtype != weights.dtype:
        wanted = "float32 or float64" if array is weights else f"{weights.dtype} like the weights"
        raise TypeError(f"`{label}` must be {wanted}, got {array.dtype}")
    if array.shape != weights.shape:
        raise ValueError(f"`{label}` must have shape {weights.shape} like its parameter, got {array.shape}")
    if not array.flags.writeable:
        raise ValueError(f"`{label}` must be writable, got a read-only array")
    if label != "gradient" and not array.flags.carray:
        raise ValueError(f"`{label}` must be C-contiguous and aligned, got strides {array.strides}")


def _check_apart(arrays):
    for (label, array), (other, another) in combinations(arrays.items(), 2):
        if np.may_share_memory(array, another):
            raise ValueError(f"`{other}` must not overlap `{label}`, got arrays that share memory")
