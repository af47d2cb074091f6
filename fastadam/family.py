"""The optimizer classes: the Adam family under torch's names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastadam.optimizer import Optimizer
from fastadam.schedules import Schedule

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastadam.settings.options import OptionKeywords


class Adam(Optimizer):
    r"""Adam: one fused pass over every parameter, in place, where the parameters lie.

    With gradient g, at step t = 1, 2, ... of a parameter, for every element:

        g  = grad_scale * clip * g              (negated with `maximize`; clip = 1 unless a norm is limited)
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
        params: What to train: arrays of any shape, float32, float64, float16 or bfloat16 (the dtype of ml_dtypes in
            NumPy, also uint16 bits in CuPy), in CPU or CUDA memory. One of

            * a dict or another mapping, name -> array;
            * a list, a tuple or a generator of arrays, which are named by position, or of (name, array) pairs;
            * one flat array: 1-D, contiguous, writable. It is the flat buffer `buffers.p` itself;
            * a list of groups as in torch, `{"params": <one of the above>, "lr": ..., ...}`.

            Arrays are NumPy or CuPy arrays, or those of any library that speaks DLPack. They may have several dtypes.
            Each is **trained where it lies**: nothing is copied, so everybody who holds an array sees it train. It must
            be dense, in any order of its axes, as a transposed or a Fortran-ordered array is. A dict or list must keep
            its arrays: write `params["w"][...] = x`, and not `params["w"] = x`, which the next step refuses.
        lr: Learning rate, >= 0, or a schedule: a callable that takes the number of steps that were asked of the group
            before this one, skipped steps included. Take one from `fastadam.schedules` or optax, or write your own.
        betas: Decay rates of the first and second moment, each in [0, 1).
        eps: Added to the root of the bias-corrected second moment, >= 0. None: the default of `convention`.
        weight_decay: L2 coefficient, or with `decoupled_weight_decay` that of AdamW, >= 0.
        amsgrad: Divide by the root of the largest second moment so far.
        maximize: Ascend instead of descend.
        decoupled_weight_decay: Decay the parameters apart from the gradient (AdamW). None: as in `convention`.
        flat: Copy the parameters once into one flat buffer, `buffers.p`, and **re-bind the entries of the dict or list
            to views of it**: for thousands of small arrays, and to work on all parameters as one array. It warns if
            somebody else still holds an original array, because that array will not train. See docs/parameters.md.
        shard: A process group, whose ranks share this optimizer: one of torch.distributed, an mpi4py communicator, a
            CuPy `NcclCommunicator`, or an object with `rank`, `size`, `reduce_scatter(flat, shard)` and
            `all_gather(shard, flat)`, which take 1-D arrays with len(flat) == size * len(shard) and return None when
            they are done, or a handle with `wait()`. Every rank makes the same calls. It has all parameters and 1/size
            of everything else, and gives the gradients of its part of the batch: their sum counts, times `grad_scale`.
            The bits are those of one process. It implies `flat=True`. See docs/scaling.md.
        bucket_bytes: With `shard`, split the flat buffers at ends of parameters, so that each has so many bytes of
            parameters or more. While one is reduced or gathered, another is stepped.
        memory: A function (name, size, dtype) -> array that provides the memory of flat buffers, such as `np.memmap` or
            shared memory for states that are larger than memory: 1-D, of that size and dtype, zeros, on the device of
            the parameters. None from it, or in its place, lets the optimizer allocate. `name` is the number of the set
            in `all_buffers`, a point and the name of the buffer: "0.m". See docs/offload.md.
        convention: "torch", "optax", "keras", "sklearn" or "apex": see above.
        eps_root: Added inside the root, >= 0, with `convention="optax"`.
        decouple_lr: Do not multiply the decoupled decay by lr.
        clip_value: Clip each element of the scaled gradient to [-clip_value, clip_value], > 0.
        max_grad_norm: Clip the scaled gradients of all groups to this norm, > 0: they are multiplied by
            clip = min(1, max_grad_norm / (norm + 1e-6)), as `torch.nn.utils.clip_grad_norm_` does. `grad_norm` has
            the norm. This reads the gradients once more, and does not write to them.
        max_grad_norm_per_param: Clip the scaled gradient of each parameter to this norm, > 0: it is multiplied by
            clip = max_grad_norm_per_param / max(norm of that gradient, max_grad_norm_per_param), as `clipnorm` of Keras
            and `grad_clip` of Thinc do. `grad_norm` has the norm of all. It reads the gradients once more too. Not for
            arrays in CUDA memory, and not beside `max_grad_norm` or `clip_value`.
        nonfinite: What to do about a gradient that is not finite, or so large that its squared norm overflows the
            dtype: "propagate" it, "skip" the step (parameters, moments and step counts stay as they are to the last
            bit; `skipped_steps` counts) or "raise" FloatingPointError, which names the parameter. On a GPU, "raise"
            waits for the reduction at every step; the others wait for nothing.
        max_skipped_steps: With `nonfinite="skip"`, so many steps in a row are skipped, and the next of them raises
            FloatingPointError. None: all are, with a RuntimeWarning at each hundredth in a row. On a GPU a number waits
            for the reduction at every step, and None does not warn.
        ema_decay: Keep an exponential moving average of the parameters with this decay, in [0, 1), in `ema`. It starts
            at the parameters; `restart_ema` lets it start anew.
        ema_warmup: Let the decay of the average be min(ema_decay, (1 + t) / (10 + t)) at step t of a parameter, so that
            it forgets the first parameters soon.
        copy_dtype: "bfloat16" or "float16": write the parameters, rounded to nearest even, to `copies` as well.
        zero_grad: Zero the gradients in the same pass, wherever they lie. Gradients of a skipped step are zeroed too;
            the values of `SparseRows` are not.
        moment_dtype: How both moments are stored, or a pair for the first and the second: "float32", "bfloat16",
            "float16", or "float8", which are 8-bit codes with an exponent for each group of 128 elements. None is the
            dtype of the arithmetic. With "float8", parameters of fewer than 4,096 elements keep float32 moments. May be
            given for each group. See docs/storage.md.
        grad_dtype: The dtype of the gradients: "float32", "bfloat16" or "float16". None is that of the parameters.
        master_weights: Keep 16 more bits beside each bfloat16 parameter, so that training equals that of float32
            parameters bit for bit; `masters` has the float32 values.
        rounding: "stochastic" or "nearest": how bfloat16 parameters and bfloat16 second moments are rounded. Stochastic
            rounding depends on the seed, the step, the parameter's name and the element's index alone, and is the same
            bit for bit for any number of threads. With "nearest", small steps do not move parameters, and second
            moments do not fade.
        seed: Seed of the stochastic rounding, an integer >= 0.
        sparse: What happens to rows that a `SparseRows` gradient does not name. With "lazy" they stay as they are. With
            "exact" they are brought to where dense Adam would have taken them, when they are named again; see
            `catch_up`.
        exclude_from_weight_decay: A function of a parameter's name: weight decay does not apply to the parameters for
            which it is true. An example: `lambda name: name.endswith("bias")`.

    Attributes:
        param_groups: One `ParamGroup` for each group that was given, in torch's keys; assign
            `param_groups[0]["lr"]` between steps.
        params: name -> the parameter as an array: the one that was given, or with `flat` a view of `buffers.p`. What
            this and `grads`, `ema`, `copies` and `masters` have of a torch parameter is a tensor.
        grads: name -> view of the gradient, of the shape of its parameter; write into it and call `step()`. Their
            buffer is allocated when it is first needed.
        buffers: `Buffers`, the flat arrays of everything that the optimizer keeps beside the parameters, such as `m`
            and `v`. There is a `p` only with `flat` or for one flat array.

    Raises:
        TypeError: an argument of the wrong kind: no array, an integer or complex dtype, a NumPy scalar, with `flat` a
            container that is immutable.
        ValueError: a wrong value: a hyperparameter out of range, options that contradict one another, a read-only,
            unaligned or not dense array, parameters that share memory, arrays on several devices. Nothing has been
            re-bound or written then.
        RuntimeError: an array in CUDA memory without CuPy or without a working GPU; with `shard`, ranks that disagree
            (`fastadam.sharding.DisagreementError`) or a collective that fails (`fastadam.sharding.CollectiveError`).

    Warns:
        UserWarning: `lr` is too small to change most 16-bit parameters that are rounded to nearest; or, with `flat`,
            somebody else still holds an original array.

    Example:
        >>> import numpy as np, fastadam
        >>> weights, bias = np.ones((3, 2), np.float32), np.zeros((), np.float32)
        >>> opt = fastadam.Adam({"weights": weights, "bias": bias}, lr=0.1)
        >>> opt.step({"weights": np.full((3, 2), 0.5, np.float32), "bias": np.float32(-2.0)})
        >>> weights[0]
        array([0.9, 0.9], dtype=float32)
        >>> opt.step({"weights": None, "bias": np.float32(1.0)})  # a parameter without a gradient is not stepped
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
        super().__init__(
            params,
            "adam",
            options,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            decoupled_weight_decay=decoupled_weight_decay,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay, 1e-2 by default: `Adam(..., decoupled_weight_decay=True)`.

    For every element, p = p - lr * weight_decay * p beside the Adam step. Takes the arguments of `Adam`.

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
        *,
        maximize: bool = False,
        **options: Unpack[OptionKeywords],
    ):
        settings = {"maximize": maximize, "decoupled_weight_decay": True}
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **settings, **options)


class NAdam(Optimizer):
    """Adam with Nesterov momentum.

    With m and v as in `Adam`, mu_t = beta1 * (1 - 0.5 * 0.96**(t * momentum_decay)) and the product P_t of mu_1 to
    mu_t, for every element at step t = 1, 2, ...:

        m_hat = (1 - mu_t) * g / (1 - P_t) + mu_{t+1} * m / (1 - P_t * mu_{t+1})
        p     = p - lr * m_hat / (sqrt(v / (1 - beta2**t)) + eps)

    Takes the arguments of `Adam` except `amsgrad`, and:

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
        maximize: bool = False,
        decoupled_weight_decay: bool | None = None,
        **options: Unpack[OptionKeywords],
    ):
        super().__init__(
            params,
            "nadam",
            options,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            momentum_decay=momentum_decay,
            maximize=maximize,
            decoupled_weight_decay=decoupled_weight_decay,
        )


class Adamax(Optimizer):
    """AdaMax: Adam with the infinity norm in place of the second moment.

    With m as in `Adam`, for every element at step t = 1, 2, ...:

        v = max(beta2 * v, abs(g) + eps)
        p = p - lr / (1 - beta1**t) * m / v

    With `convention="keras"` eps is outside: v = max(beta2 * v, abs(g)), and p moves by m / (v + eps). v is torch's
    `exp_inf`. Takes the arguments of `Adam` except `amsgrad` and `eps_root`.

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
        super().__init__(
            params,
            "adamax",
            options,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            maximize=maximize,
            decoupled_weight_decay=decoupled_weight_decay,
        )


class RAdam(Optimizer):
    """RAdam: Adam whose first steps use the first moment alone, while the variance of the second moment is large.

    With m and v as in `Adam`, l = 2 / (1 - beta2) - 1 and r = l - 2 * t * beta2**t / (1 - beta2**t), for every element
    at step t = 1, 2, ...:

        if r > 5:  p = p - lr * (m / (1 - beta1**t)) * rect * sqrt(1 - beta2**t) / (sqrt(v) + eps)
                   with rect = sqrt((r - 4) * (r - 2) * l / ((l - 4) * (l - 2) * r))
        else:      p = p - lr * (m / (1 - beta1**t))

    With `convention="optax"` eps is added to sqrt(v / (1 - beta2**t) + eps_root). Takes the arguments of `Adam` except
    `amsgrad`.

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
        maximize: bool = False,
        decoupled_weight_decay: bool | None = None,
        **options: Unpack[OptionKeywords],
    ):
        super().__init__(
            params,
            "radam",
            options,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            maximize=maximize,
            decoupled_weight_decay=decoupled_weight_decay,
        )


class Lion(Optimizer):
    """Lion: steps of one size, in the direction of the sign of a momentum.

    For every element, with a first moment m of zeros before the first step:

        p = p - lr * weight_decay * p           (without lr with `decouple_lr`)
        p = p - lr * sign(beta1 * m + (1 - beta1) * g)
        m = m + (1 - beta2) * (g - m)

    The sign of zero is zero. There is no second moment, so a step moves 20 bytes a float32 parameter where Adam moves
    28, and no bias correction. Every element moves by lr at every step, so learning rates are 3 to 10 times smaller
    than those of Adam, and weight decays larger by the same factor. Takes the arguments of `Adam` except `eps`,
    `amsgrad` and `eps_root`, with `convention` "torch", "optax" or "keras", which are alike, and:

    Args:
        betas: beta1 weighs the momentum in the direction of a step, beta2 is the decay rate of the momentum.
        weight_decay: Decoupled unless `decoupled_weight_decay` is False.

    Example:
        >>> import numpy as np, fastadam
        >>> weights = np.ones(3)
        >>> fastadam.Lion(weights, lr=0.1).step(np.array([3.0, -0.5, 0.0]))
        >>> weights
        array([0.9, 1.1, 1. ])

    References:
        Chen et al., "Symbolic Discovery of Optimization Algorithms", https://arxiv.org/abs/2302.06675.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool | None = None,
        **options: Unpack[OptionKeywords],
    ):
        super().__init__(
            params,
            "lion",
            options,
            lr=lr,
            betas=betas,
            weight_decay=weight_decay,
            maximize=maximize,
            decoupled_weight_decay=decoupled_weight_decay,
        )


class AdEMAMix(Optimizer):
    """AdEMAMix: Adam with a second, much slower average of the gradients beside its first moment.

    With m and v as in `Adam`, for every element at step t = 1, 2, ... of a parameter:

        m_slow = m_slow + (1 - beta3_t) * (g - m_slow)
        p      = p - lr * weight_decay * p      (without lr with `decouple_lr`)
        p      = p - lr * (m / (1 - beta1**t) + alpha_t * m_slow) / (sqrt(v / (1 - beta2**t)) + eps)

    The slow moment has no bias correction. With warm-ups, alpha_t = alpha * min(t / alpha_warmup, 1), and the half-life
    of beta3_t grows evenly from that of beta1 to that of beta3 over `beta3_warmup` steps. A step moves 36 bytes a
    float32 parameter where Adam moves 28. Takes the arguments of `Adam` except `amsgrad`, with `convention` "torch" or
    "optax" (with `eps_root`), and:

    Args:
        betas: Decay rates of the first, second and slow first moment, each in [0, 1).
        alpha: Weight of the slow moment, >= 0; 0 is AdamW.
        beta3_warmup: Over how many steps of a parameter beta3 grows, >= 0. The paper takes the length of the training.
        alpha_warmup: Over how many steps of a parameter alpha grows, likewise.
        weight_decay: Decoupled unless `decoupled_weight_decay` is False.
        moment_dtype: As in `Adam`; the first of a pair is for `m` and `m_slow`.

    Example:
        >>> import numpy as np, fastadam
        >>> weights = np.ones(2)
        >>> fastadam.AdEMAMix(weights, lr=0.1, alpha=100.0).step(np.array([3.0, -0.5]))
        >>> weights.round(6)
        array([0.899, 1.101])

    References:
        Pagliardini, Ablin and Grangier, "The AdEMAMix Optimizer: Better, Faster, Older",
        https://arxiv.org/abs/2409.03137.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Schedule = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        beta3_warmup: float = 0,
        alpha_warmup: float = 0,
        eps: float | None = None,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool | None = None,
        **options: Unpack[OptionKeywords],
    ):
        super().__init__(
            params,
            "ademamix",
            options,
            lr=lr,
            betas=betas,
            alpha=alpha,
            beta3_warmup=beta3_warmup,
            alpha_warmup=alpha_warmup,
            eps=eps,
            weight_decay=weight_decay,
            maximize=maximize,
            decoupled_weight_decay=decoupled_weight_decay,
        )
