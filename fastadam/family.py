"""The optimizer classes: the Adam family under torch's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastadam.optimizer import Optimizer
from fastadam.schedules import Schedule

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastadam.settings.options import OptionKeywords


class Adam(Optimizer):
    r"""Adam, as one fused pass in place over flat parameter, gradient and moment buffers.

    With gradient g, at step t = 1, 2, ..., for every element:

        g  = grad_scale * clip * g              (negated with `maximize`; clip = 1 without `max_grad_norm`)
        g  = min(max(g, -clip_value), clip_value)        (with `clip_value`)
        g  = g + weight_decay * p               (unless `decoupled_weight_decay`)
        m  = m + (1 - beta1) * (g - m)
        v  = v + (1 - beta2) * (g * g - v)
        p  = p - lr * weight_decay * p          (with `decoupled_weight_decay`; without lr with `decouple_lr`)
        p  = p - lr * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)
        ema = ema + (1 - ema_decay) * (p - ema)         (with `ema_decay`)

    which is Algorithm 1 of the paper, with torch's placement of eps and of both decays. All arithmetic is in the dtype
    of the parameters, or in float32 for those of 16 bits; what does not depend on the element is computed in float64
    and rounded once.

    `convention` takes the defaults and definitions of another system:

    ==========  =============================================  =====  ============  ================================
    convention  the root, with w = v / (1 - beta2**t)          eps    weight decay  AMSGrad
    ==========  =============================================  =====  ============  ================================
    "torch"     sqrt(w) + eps                                  1e-8   L2            of the largest v so far
    "optax"     sqrt(w + eps_root) + eps                       1e-8   decoupled     of the largest w so far
    "keras"     sqrt(w) + eps / sqrt(1 - beta2**t) (eps-hat)   1e-7   decoupled     of the largest v so far
    "sklearn"   sqrt(w) + eps / sqrt(1 - beta2**t) (eps-hat)   1e-8   L2            none
    "apex"      sqrt(w) + eps                                  1e-8   decoupled     none
    ==========  =============================================  =====  ============  ================================

    Args:
        params: What to train, float32, float64, float16 or bfloat16 (in NumPy that of ml_dtypes; in CuPy also as
            uint16 bits), in
            CPU or CUDA memory. One of

            * a dict, name -> array of any shape. The arrays are packed once into one flat buffer, and **the dict's
              entries are re-bound to views of it**: read `params["w"]` after construction, and write it in place
              (`params["w"][...] = x`). A step raises if an entry has been replaced since;
            * a list of arrays, re-bound in the same way and named by position;
            * one flat array: 1-D, contiguous, writable. It is adopted: trained where it lies, without a copy;
            * a list of groups as in torch, `{"params": <one of the above>, "lr": ..., ...}`. However many there are,
              those that are packed together are stepped in one launch for each update text.

            Arrays are NumPy or CuPy arrays, or of any library that speaks DLPack (re-bound as arrays of that library).
        lr: Learning rate, >= 0, or a schedule: a callable of the number of steps before this one, of
            `fastadam.schedules`, of optax, or your own. Steps that were skipped count.
        betas: Decay rates of the first and second moment, each in [0, 1).
        eps: Added to the root of the bias-corrected second moment, >= 0. None: the default of `convention`.
        weight_decay: L2 coefficient, or with `decoupled_weight_decay` that of AdamW, >= 0.
        amsgrad: Divide by the root of the largest second moment so far.
        maximize: Ascend instead of descend.
        decoupled_weight_decay: Decay the parameters apart from the gradient (AdamW). None: as in `convention`.
        convention: "torch", "optax", "keras", "sklearn" or "apex": see above.
        eps_root: Added inside the root, >= 0, with `convention="optax"`.
        decouple_lr: Do not multiply the decoupled decay by lr.
        clip_value: Clip each element of the scaled gradient to [-clip_value, clip_value], > 0.
        max_grad_norm: Clip the scaled gradients of all groups to this norm, > 0: they are multiplied by
            clip = min(1, max_grad_norm / (norm + 1e-6)), as `torch.nn.utils.clip_grad_norm_` does. `grad_norm` tells
            the norm. Costs one read of the gradients; they are not written.
        nonfinite: What to do about a gradient that is not finite, or so large that its squared norm overflows the
            dtype: "propagate" it, "skip" the step (parameters, moments and step counts stay as they are to the last
            bit; `skipped_steps` counts) or "raise" FloatingPointError, which names the parameter. On a GPU, "raise"
            waits for the reduction at every step; the others wait for nothing.
        ema_decay: Keep an exponential moving average of the parameters with this decay, in [0, 1), in `ema`. It starts
            at the parameters.
        copy_dtype: "bfloat16" or "float16": write the parameters, rounded to nearest even, to `copies` as well.
        zero_grad: Zero the gradients in the same pass, wherever they lie; also those of a step that is skipped, but not
            the values of `SparseRows`.
        moment_dtype: How both moments are stored, or a pair for the first and the second: "float32", "bfloat16",
            "float16", or "float8", which are 8-bit codes with an exponent for each block of 128 elements. None is the
            dtype of the arithmetic. Parameters of fewer than 4,096 elements keep float32 moments with "float8", in a
            group of their own, which comes after that of the others. See docs/storage.md.
        grad_dtype: Of the gradients: "float32", "bfloat16" or "float16". None is that of the parameters.
        master_weights: Keep what bfloat16 parameters lack of float32 in 16 bits more, so that training equals that of
            float32 parameters bit for bit; `masters` has them.
        rounding: "stochastic" or "nearest": how bfloat16 parameters and bfloat16 second moments are rounded. Stochastic
            rounding depends on `seed`, step and position alone, and is the same bit for bit for any number of threads.
            Rounded to nearest, parameters do not move by small steps, and second moments do not fade.
        seed: Of the stochastic rounding, an integer >= 0.
        sparse: "lazy" or "exact": whether rows that a `SparseRows` gradient does not name stay as they are, or are
            brought to where dense Adam would have taken them when they are named again; see `catch_up`.
        exclude_from_weight_decay: A function of a parameter's name: those for which it is true get a group of their own
            with `weight_decay` 0. `lambda name: name.endswith("bias")`, say.

    Attributes:
        param_groups: One `ParamGroup` a group, in torch's keys; assign `param_groups[0]["lr"]` between steps.
        params: name -> view of the parameter. Parameters without a name have their position.
        grads: name -> view of the gradient, of the shape of its parameter; write into it and call `step()`.
        buffers: `Buffers`, whose `p`, `g`, `m` and `v` are the flat arrays.

    Raises:
        TypeError: an argument of the wrong kind: no array, an integer or complex dtype, an immutable container.
        UserWarning: `lr` is too small to change most of 16-bit parameters that are rounded to nearest.
        ValueError: a wrong value: a hyperparameter out of range, options that contradict one another, a read-only or
            non-contiguous flat array, a parameter listed twice, arrays on several devices. Nothing has been re-bound
            or written then.
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
        Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond", https://arxiv.org/abs/1904.09237.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool | None = None,
        **options: Unpack[OptionKeywords],
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        flags = {"maximize": maximize, "decoupled_weight_decay": decoupled_weight_decay}
        super().__init__(params, "adam", {**defaults, **flags}, options)


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
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        **options: Unpack[OptionKeywords],
    ):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, decoupled_weight_decay=True, **options)


class NAdam(Optimizer):
    """Adam with Nesterov momentum.

    With m and v as in `Adam`, mu_t = beta1 * (1 - 0.5 * 0.96**(t * momentum_decay)) and the product P_t of mu_1 to
    mu_t, for every element at step t = 1, 2, ...:

        m_hat = (1 - mu_t) * g / (1 - P_t) + mu_{t+1} * m / (1 - P_t * mu_{t+1})
        p     = p - lr * m_hat / (sqrt(v / (1 - beta2**t)) + eps)

    Arguments, attributes and errors are those of `Adam`, but for `amsgrad`, which it has not, and

    Args:
        momentum_decay: How fast the momentum grows, >= 0. None: that of `convention`, 4e-3 in torch and 1 in Keras;
            infinite in optax, whose momentum is beta1 at every step.

    Example:
        >>> import numpy as np, fastadam
        >>> weights = np.ones(2)
        >>> fastadam.NAdam(weights, lr=0.1).step(np.ones(2))
        >>> weights.round(6)
        array([0.894355, 0.894355])

    References:
        Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 workshop.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
        weight_decay: float = 0.0,
        momentum_decay: float | None = None,
        *,
        decoupled_weight_decay: bool | None = None,
        maximize: bool = False,
        **options: Unpack[OptionKeywords],
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum_decay": momentum_decay,
        }
        flags = {"maximize": maximize, "decoupled_weight_decay": decoupled_weight_decay}
        super().__init__(params, "nadam", {**defaults, **flags}, options)


class Adamax(Optimizer):
    """AdaMax: Adam with the infinity norm in place of the second moment.

    With m as in `Adam`, for every element at step t = 1, 2, ...:

        v = max(beta2 * v, |g| + eps)
        p = p - lr / (1 - beta1**t) * m / v

    With `convention="keras"` eps is outside: v = max(beta2 * v, |g|), and p by m / (v + eps). v is torch's `exp_inf`.
    Arguments, attributes and errors are those of `Adam`, but for `amsgrad` and `eps_root`, which it has not.

    Example:
        >>> import numpy as np, fastadam
        >>> weights = np.ones(2)
        >>> fastadam.Adamax(weights, lr=0.1).step(np.array([3.0, -0.5]))
        >>> weights.round(6)
        array([0.9, 1.1])

    References:
        Algorithm 2 of Kingma and Ba, "Adam: A Method for Stochastic Optimization", https://arxiv.org/abs/1412.6980.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool | None = None,
        **options: Unpack[OptionKeywords],
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        flags = {"maximize": maximize, "decoupled_weight_decay": decoupled_weight_decay}
        super().__init__(params, "adamax", {**defaults, **flags}, options)


class RAdam(Optimizer):
    """RAdam: Adam whose first steps, while the variance of the second moment is large, are by the first moment alone.

    With m and v as in `Adam`, l = 2 / (1 - beta2) - 1 and r = l - 2 * t * beta2**t / (1 - beta2**t), for every element
    at step t = 1, 2, ...:

        if r > 5:  p = p - lr * (m / (1 - beta1**t)) * rect * sqrt(1 - beta2**t) / (sqrt(v) + eps)
                   with rect = sqrt((r - 4) * (r - 2) * l / ((l - 4) * (l - 2) * r))
        else:      p = p - lr * (m / (1 - beta1**t))

    With `convention="optax"` eps is added to sqrt(v / (1 - beta2**t) + eps_root). Arguments, attributes and errors are
    those of `Adam`, but for `amsgrad`, which it has not.

    Example:
        >>> import numpy as np, fastadam
        >>> weights = np.ones(2)
        >>> fastadam.RAdam(weights, lr=0.1).step(np.array([3.0, -0.5]))
        >>> weights.round(6)
        array([0.7 , 1.05])

    References:
        Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", https://arxiv.org/abs/1908.03265.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | None = None,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool | None = None,
        maximize: bool = False,
        **options: Unpack[OptionKeywords],
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        flags = {"maximize": maximize, "decoupled_weight_decay": decoupled_weight_decay}
        super().__init__(params, "radam", {**defaults, **flags}, options)
