"""The optimizer classes: check, fold, dispatch, launch."""

from collections.abc import Mapping
from typing import Any

from fastadam.arrays import as_array, check_disjoint, check_flat, check_like, kernels
from fastadam.buffers import Buffers, Views
from fastadam.groups import ParamGroup, nonnegative
from fastadam.parameters import check_together, parse_group, parse_groups, place, replaced_error
from fastadam.state import dump_state, load_state
from fastadam.stretch import Part, Stretch


class Adam:
    r"""Adam, as one fused pass in place over flat parameter, gradient and moment buffers.

    With gradient g, at step t = 1, 2, ..., for every element:

        g  = grad_scale * g                     (negated with `maximize`)
        g  = g + weight_decay * p               (unless `decoupled_weight_decay`)
        m  = m + (1 - beta1) * (g - m)
        v  = v + (1 - beta2) * (g * g - v)
        p  = p - lr * weight_decay * p          (with `decoupled_weight_decay`)
        p  = p - lr * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)

    which is Algorithm 1 of the paper, with torch's placement of eps and of both decays. All arithmetic is in the dtype
    of the parameters; what does not depend on the element is computed in float64 and rounded once.

    Args:
        params: What to train, float32 or float64, in CPU or CUDA memory. One of

            * a dict, name -> array of any shape. The arrays are packed once into one flat buffer, and **the dict's
              entries are re-bound to views of it**: read `params["w"]` after construction, and write it in place
              (`params["w"][...] = x`). A step raises if an entry has been replaced since;
            * a list of arrays, re-bound in the same way and named by position;
            * one flat array: 1-D, contiguous, writable. It is adopted: trained where it lies, without a copy;
            * a list of groups as in torch, `{"params": <one of the above>, "lr": ..., ...}`.

            Arrays are NumPy or CuPy arrays, or of any library that speaks DLPack (re-bound as arrays of that library).
        lr: Learning rate, >= 0.
        betas: Decay rates of the first and second moment, each in [0, 1).
        eps: Added to the root of the bias-corrected second moment, >= 0.
        weight_decay: L2 coefficient, or with `decoupled_weight_decay` that of AdamW, >= 0.
        maximize: Ascend instead of descend.
        decoupled_weight_decay: Decay the parameters apart from the gradient (AdamW).

    Attributes:
        param_groups: One `ParamGroup` a group, in torch's keys; assign `param_groups[0]["lr"]` between steps.
        params: name -> view of the parameter. Parameters without a name have their position.
        grads: name -> view of the gradient, of the shape of its parameter; write into it and call `step()`.
        buffers: `Buffers`, whose `p`, `g`, `m` and `v` are the flat arrays.

    Raises:
        TypeError: an argument of the wrong kind: no array, an integer or complex dtype, an immutable container.
        ValueError: a wrong value: a hyperparameter out of range, a read-only or non-contiguous flat array, a parameter
            listed twice, arrays on several devices. Nothing has been re-bound or written then.
        RuntimeError: an array in CUDA memory without CuPy or without a working GPU.

    Example:
        >>> import numpy as np, fastadam
        >>> params = {"weights": np.ones((3, 2), np.float32), "bias": np.zeros((), np.float32)}
        >>> opt = fastadam.Adam(params, lr=0.1)
        >>> opt.step({"weights": np.full((3, 2), 0.5, np.float32), "bias": np.float32(-2.0)})
        >>> params["weights"][0]
        array([0.9, 0.9], dtype=float32)
        >>> opt.grads["bias"] += 1.0
        >>> opt.step()

    References:
        Kingma and Ba, "Adam: A Method for Stochastic Optimization", https://arxiv.org/abs/1412.6980.
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", https://arxiv.org/abs/1711.05101.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
    ):
        self._defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        self._all_buffers: list[Buffers] = []
        self._stretches: list[Stretch] = []
        self._bindings: list[tuple] = []
        self._add(parse_groups(params))

    def _add(self, groups):
        check_together([parameter for parameters, _ in groups for parameter in parameters], self._all_buffers)
        kernels(groups[0][0][0].array, groups[0][0][0].label)
        checked = [
            ParamGroup(tuple(parameter.name for parameter in parameters), {**self._defaults, **settings})
            for parameters, settings in groups
        ]
        placed, bindings = place([parameters for parameters, _ in groups])
        home = {name: buffers for buffers in placed for name in buffers.segments}
        self._stretches += [Stretch(settings, home[settings["params"][0]]) for settings in checked]
        self._bindings += bindings
        self._all_buffers += placed
        self._params = Views({k: v for stretch in self._stretches for k, v in stretch.views(stretch.buffers.p).items()})
        self._grads: Views | None = None

    @property
    def param_groups(self) -> tuple[ParamGroup, ...]:  # noqa: D102 (described in the class)
        return tuple(stretch.settings for stretch in self._stretches)

    @property
    def params(self) -> Views:  # noqa: D102 (described in the class)
        return self._params

    @property
    def grads(self) -> Views:  # noqa: D102 (described in the class)
        if self._grads is None:
            for stretch in self._stretches:
                stretch.use_gradient_buffer()
            self._grads = Views({k: v for stretch in self._stretches for k, v in stretch.gradient_views.items()})
        return self._grads

    @property
    def buffers(self) -> Buffers:  # noqa: D102 (described in the class)
        if len(self._all_buffers) != 1:
            raise ValueError(
                f"`buffers` needs one set of flat buffers, got {len(self._all_buffers)}: parameters of a later "
                "`add_param_group`, and each flat array of a group, have buffers of their own, listed in `all_buffers`"
            )
        return self._all_buffers[0]

    @property
    def all_buffers(self) -> tuple[Buffers, ...]:
        """Every set of flat buffers: more than one after `add_param_group`, or with a flat array in a group."""
        return tuple(self._all_buffers)

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a group, `{"params": ..., "lr": ..., ...}`, whose steps count from 1.

        Its parameters get flat buffers of their own, so that no view of the earlier ones goes stale.

        Raises:
            TypeError, ValueError: as for the constructor; the optimizer is as before then.
        """
        if not isinstance(param_group, Mapping) or "params" not in param_group:
            raise TypeError(f"`param_group` must be a dict with the key 'params', got {type(param_group).__name__}")
        unnamed = sum(isinstance(name, int) for name in self.params)
        self._add([parse_group(param_group, "param_group['params']", unnamed)])

    def step(self, grads: Any = None, *, grad_scale: float = 1.0) -> None:
        """Update parameters and moments in place.

        Args:
            grads: A mapping name -> array with an entry for every parameter, each of its parameter's shape, dtype and
                device (NumPy scalars for 0-d parameters); or one flat array like `buffers.g`; or None, for what has
                been written into `grads`. Gradients are only read, but for `grads` itself, which is also the place
                where small gradients of a mapping are gathered.
            grad_scale: Factor on the gradients, >= 0, in the same pass: the inverse of a loss scale, say.

        Raises:
            TypeError, ValueError: a gradient is missing, unknown, no array, or of another shape, dtype or device than
                its parameter; or an entry of the mapping given as `params` has been replaced. Nothing has been
                written then, and the optimizer can be used on.
        """
        if grad_scale != 1.0 or type(grad_scale) is not float:
            grad_scale = nonnegative(grad_scale, "grad_scale")
        try:
            for container, key, view in self._bindings:
                if container[key] is not view:
                    raise KeyError
        except (KeyError, IndexError):
            raise replaced_error(key) from None
        if self._grads is None and grads is None:
            grads = self.grads
        if grads is not None and grads is not self._grads:
            parts = self._gathered(grads) if isinstance(grads, Mapping) else self._cut(grads)
            if parts:
                for stretch, parts_of_stretch in zip(self._stretches, parts, strict=True):
                    stretch.advance(parts_of_stretch, grad_scale)
                return
        # All gradients are in `g`. No method of the stretch: one call more is a twentieth of a small step.
        for stretch in self._stretches:
            stretch.launch(stretch.p, stretch.g, stretch.m, stretch.v, stretch.scalars(stretch.step + 1, grad_scale))
            stretch.step += 1

    def _gathered(self, grads):
        # Three rounds over the groups, so that all is checked before anything is written, and all gradients are read
        # as they were: some may lie in the optimizer's own memory.
        gradients = [stretch.named_gradients(grads, self._all_buffers) for stretch in self._stretches]
        if len(grads) != len(self.params):
            unknown = [name for name in grads if name not in self.params]
            raise ValueError(f"`grads` must have an entry for every parameter and no other, got {unknown}")
        pairs = zip(self._stretches, gradients, strict=True)
        direct = [stretch.gather(of_stretch, self._all_buffers) for stretch, of_stretch in pairs]
        if not any(direct):
            return []
        return [stretch.covering(parts) for stretch, parts in zip(self._stretches, direct, strict=True)]

    def _cut(self, grads):
        buffers = self.buffers
        gradient = as_array(grads, "grads")
        check_like(gradient, buffers.p, "grads", "the flat buffer of the parameters, `buffers.p`")
        check_flat(gradient, "grads", written=False)
        for label, flat in {"p": buffers.p, "m": buffers.m, "v": buffers.v}.items():
            check_disjoint({f"buffers.{label}": flat, "grads": gradient})
        return [[Part(stretch.start, stretch.stop, stretch.cut(gradient))] for stretch in self._stretches]

    def zero_grad(self) -> None:
        """Fill `grads` with zeros, in place."""
        for buffers in self._all_buffers:
            buffers.g[...] = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state in torch's layout, as copies.

        `{"state": {name: {"step": int, "exp_avg": array, "exp_avg_sq": array}}, "param_groups": [dict, ...]}`; each
        array has the shape and dtype of its parameter. The parameters are not part of it: save `params` too.
        """
        return dump_state(self._stretches)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a `state_dict()` of an optimizer with the same names, shapes and dtypes, by copying, in place.

        The run continues bit for bit as the saved one would have.

        Raises:
            TypeError, ValueError: names, groups, shapes, dtypes or values do not fit. Nothing has been written then.
        """
        load_state(self._stretches, state_dict)

    def __repr__(self) -> str:
        groups = "".join(f"\n  {dict(group)}" for group in self.param_groups)
        return f"{type(self).__name__}({groups}\n)"

    def __reduce__(self):
        raise TypeError(
            f"{type(self).__name__} must not be copied or pickled: a copy would be cut off from the parameters that it "
            "trains. Save `state_dict()` and `params`, and build the optimizer anew"
        )


class AdamW(Adam):
    """Adam with decoupled weight decay, 1e-2 by default: `Adam(..., decoupled_weight_decay=True)`.

    For every element, p = p - lr * weight_decay * p beside the Adam step. Arguments, attributes and errors are those of
    `Adam`.

    Example:
        >>> import numpy as np, fastadam
        >>> weights = np.ones(4, np.float32)
        >>> fastadam.AdamW(weights, lr=0.1).step(np.zeros(4, np.float32))
        >>> weights
        array([0.999, 0.999, 0.999, 0.999], dtype=float32)

    References:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", https://arxiv.org/abs/1711.05101.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, maximize=maximize, decoupled_weight_decay=True)
