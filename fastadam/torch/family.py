"""The optimizer classes, under torch's names and with torch's signatures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fastadam.settings.checks import flag, fraction, nonnegative
from fastadam.torch.optimizer import Fused

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fastadam.torch.options import TorchOptions


class Adam(Fused, torch.optim.Adam):
    r"""torch.optim.Adam as one fused pass over every parameter, in place, where the parameters lie.

    With gradient g, at step t = 1, 2, ... of a parameter, for every element:

        g  = g + weight_decay * p               (unless `decoupled_weight_decay`; g is negated with `maximize`)
        m  = m + (1 - beta1) * (g - m)                  `exp_avg`
        v  = v + (1 - beta2) * (g * g - v)              `exp_avg_sq`; with `amsgrad` its largest is `max_exp_avg_sq`
        p  = p - lr * weight_decay * p          (with `decoupled_weight_decay`)
        p  = p - lr * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)

    It takes the arguments, groups and state dictionaries of torch's class, and is an instance of it: schedulers, hooks,
    `GradScaler` and checkpoints go on as before, and a state of either class may be loaded into the other. Where
    parameters, gradients and states lie is read anew at each step, so they may be moved and replaced as with torch.

    Args:
        params: Parameters or groups as in torch, named or not, on the CPU or on CUDA devices: float32, float64,
            bfloat16 or float16, of any shape, dense in any order of their axes. Arithmetic is in float32, or in float64
            for float64 parameters. Gradients have the dtype of their parameters; of a sparse one (COO, in the first
            axis) only the rows that it names are stepped, as in torch's SparseAdam.
        lr: Learning rate, >= 0: a number, or a tensor of one element, which is read at each step.
        betas: Decay rates of the two moments, each in [0, 1): two numbers or two tensors.
        eps: Added to the root of the bias-corrected second moment, >= 0.
        weight_decay: L2 coefficient, or that of AdamW with `decoupled_weight_decay`, >= 0.
        amsgrad: Divide by the root of the largest second moment so far.
        foreach: Changes nothing.
        maximize: Ascend instead of descend.
        capturable: Changes nothing: a step like the one before can be captured in a CUDA graph without it.
        differentiable: Must be False.
        fused: Changes nothing but that `GradScaler` leaves the gradients to be unscaled by the step, as in torch.
        decoupled_weight_decay: Decay the parameters apart from the gradient (AdamW).
        options: Beside torch's arguments, which hold for all groups:

            * `max_grad_norm`: clip the gradients of all groups to this norm, > 0, as `clip_grad_norm_` does, but
              without writing to them; `grad_norm` has the norm.
            * `max_grad_norm_per_param`: clip the gradient of each parameter to this norm, > 0.
            * `nonfinite`: "propagate" a gradient that is not finite, "skip" the step (`skipped_steps` counts) or
              "raise" FloatingPointError.
            * `max_skipped_steps`: with `nonfinite="skip"`, so many steps in a row are skipped, and the next of them
              raises FloatingPointError. None: all are, with a warning at each hundredth in a row.
            * `ema_decay`: keep an exponential moving average of each parameter, in its state as "ema".
            * `ema_warmup`: let the decay of the average be min(ema_decay, (1 + t) / (10 + t)) at step t.
            * `copy_dtype`: "bfloat16" or "float16": write each parameter, rounded, to its state as "copy" as well.
            * `zero_grad`: zero the gradients in the same pass. The method `zero_grad` is torch's.
            * `moment_dtype`: how new moments are stored, or a pair for the first and the second: "float32",
              "bfloat16", "float16" or "float8", which are 8-bit codes with an exponent for each group of 128 elements,
              in the state as "exp_avg_exponent" and so on. None is the dtype of the parameter, as in torch. May be
              given for each group. With "float8", parameters of fewer than 4,096 elements keep float32.
            * `rounding`: "stochastic" or "nearest": how bfloat16 parameters and second moments are rounded.
            * `master_weights`: keep 16 more bits beside each bfloat16 parameter, in its state as "remainder".
            * `seed`: seed of the stochastic rounding, an integer >= 0.

    Raises:
        TypeError, ValueError: as torch's class, or an option of the wrong kind or value. A parameter that cannot be
            stepped is found out at the first step with a gradient, and nothing is written then.

    Example:
        >>> import torch, fastadam.torch
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = fastadam.torch.Adam(model.parameters(), lr=0.1)
        >>> model(torch.ones(3)).backward()
        >>> before = model.bias.item()
        >>> optimizer.step()
        >>> round(before - model.bias.item(), 6)
        0.1

    References:
        Kingma and Ba, "Adam: A Method for Stochastic Optimization", https://arxiv.org/abs/1412.6980.
        Reddi, Kale and Kumar, "On the Convergence of Adam and Beyond", https://arxiv.org/abs/1904.09237.
    """

    _member = "adam"

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        **options: Unpack[TorchOptions],
    ):
        self._choose(options, differentiable=differentiable)
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )


class AdamW(Fused, torch.optim.AdamW):
    """torch.optim.AdamW as one fused pass: Adam with decoupled weight decay, 1e-2 by default.

    For every element, p = p - lr * weight_decay * p beside the step of `Adam`, whose further arguments it takes.

    Example:
        >>> import torch, fastadam.torch
        >>> weights = torch.ones(2, requires_grad=True)
        >>> optimizer = fastadam.torch.AdamW([weights], lr=0.1, weight_decay=0.5, max_grad_norm=1.0)
        >>> weights.grad = torch.zeros(2)
        >>> optimizer.step()
        >>> weights.tolist()
        [0.949999988079071, 0.949999988079071]

    References:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", https://arxiv.org/abs/1711.05101.
    """

    _member = "adam"

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **options: Unpack[TorchOptions],
    ):
        self._choose(options, differentiable=differentiable)
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            fused=fused,
        )


class NAdam(Fused, torch.optim.NAdam):
    """torch.optim.NAdam as one fused pass: Adam with Nesterov momentum.

    With m and v as in `Adam`, mu_t = beta1 * (1 - 0.5 * 0.96**(t * momentum_decay)) and the product P_t of mu_1 to
    mu_t, which is `mu_product`, for every element at step t:

        m_hat = (1 - mu_t) * g / (1 - P_t) + mu_{t+1} * m / (1 - P_t * mu_{t+1})
        p     = p - lr * m_hat / (sqrt(v / (1 - beta2**t)) + eps)

    Takes the further arguments of `Adam`. On a CUDA device, `mu_product` waits for each step.

    Example:
        >>> import torch, fastadam.torch
        >>> weights = torch.ones(2, dtype=torch.float64, requires_grad=True)
        >>> optimizer = fastadam.torch.NAdam([weights], lr=0.1)
        >>> weights.sum().backward()
        >>> optimizer.step()
        >>> [round(weight, 6) for weight in weights.tolist()]
        [0.894355, 0.894355]

    References:
        Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 workshop.
    """

    _member = "nadam"

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        **options: Unpack[TorchOptions],
    ):
        self._choose(options, differentiable=differentiable)
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            momentum_decay,
            decoupled_weight_decay,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
        )


class Adamax(Fused, torch.optim.Adamax):
    """torch.optim.Adamax as one fused pass: Adam with the infinity norm in place of the second moment.

    With m as in `Adam`, for every element at step t, with v as `exp_inf`:

        v = max(beta2 * v, abs(g) + eps)
        p = p - lr / (1 - beta1**t) * m / v

    Takes the further arguments of `Adam`.

    Example:
        >>> import torch, fastadam.torch
        >>> weights = torch.ones(2, dtype=torch.float64, requires_grad=True)
        >>> optimizer = fastadam.torch.Adamax([weights], lr=0.1)
        >>> (weights * torch.tensor([3.0, -0.5])).sum().backward()
        >>> optimizer.step()
        >>> [round(weight, 6) for weight in weights.tolist()]
        [0.9, 1.1]

    References:
        Algorithm 2 of Kingma and Ba, "Adam: A Method for Stochastic Optimization", https://arxiv.org/abs/1412.6980.
    """

    _member = "adamax"

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        **options: Unpack[TorchOptions],
    ):
        self._choose(options, differentiable=differentiable)
        super().__init__(params, lr, betas, eps, weight_decay, foreach, maximize=maximize, capturable=capturable)


class RAdam(Fused, torch.optim.RAdam):
    """torch.optim.RAdam as one fused pass: Adam whose first steps use the first moment alone.

    With m and v as in `Adam`, l = 2 / (1 - beta2) - 1 and r = l - 2 * t * beta2**t / (1 - beta2**t), for every element
    at step t:

        p = p - lr * m / (1 - beta1**t) * rect * sqrt(1 - beta2**t) / (sqrt(v) + eps)      if r > 5, else
        p = p - lr * m / (1 - beta1**t)

    where rect = sqrt((r - 4) * (r - 2) * l / ((l - 4) * (l - 2) * r)). Takes the further arguments of `Adam`.

    Example:
        >>> import torch, fastadam.torch
        >>> weights = torch.ones(2, dtype=torch.float64, requires_grad=True)
        >>> optimizer = fastadam.torch.RAdam([weights], lr=0.1)
        >>> (weights * torch.tensor([3.0, -0.5])).sum().backward()
        >>> optimizer.step()
        >>> [round(weight, 6) for weight in weights.tolist()]
        [0.7, 1.05]

    References:
        Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", https://arxiv.org/abs/1908.03265.
    """

    _member = "radam"

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        **options: Unpack[TorchOptions],
    ):
        self._choose(options, differentiable=differentiable)
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            decoupled_weight_decay,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
        )


class Lion(Fused):
    """Lion: steps of one size, by the sign of a momentum.

    With gradient g, for every element, with m as `exp_avg`:

        p = p - lr * weight_decay * p           (with `decoupled_weight_decay`)
        p = p - lr * sign(beta1 * m + (1 - beta1) * g)
        m = m + (1 - beta2) * (g - m)

    Args:
        params: As in `Adam`, whose further arguments it takes.
        lr: Learning rate, >= 0.
        betas: Weight of the momentum in the step, and its decay rate, each in [0, 1).
        weight_decay: Decoupled, or L2 without `decoupled_weight_decay`, >= 0.
        maximize: Ascend instead of descend.
        decoupled_weight_decay: Decay the parameters apart from the gradient.
        options: As in `Adam`.

    Example:
        >>> import torch, fastadam.torch
        >>> weights = torch.ones(2, dtype=torch.float64, requires_grad=True)
        >>> optimizer = fastadam.torch.Lion([weights], lr=0.1)
        >>> (weights * torch.tensor([3.0, -0.5])).sum().backward()
        >>> optimizer.step()
        >>> weights.tolist()
        [0.9, 1.1]

    References:
        Chen et al., "Symbolic Discovery of Optimization Algorithms", https://arxiv.org/abs/2302.06675.
    """

    _member = "lion"

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = True,
        **options: Unpack[TorchOptions],
    ):
        self._choose(options)
        _check(lr, betas, 2, {"weight_decay": weight_decay})
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": flag(maximize, "maximize"),
            "decoupled_weight_decay": flag(decoupled_weight_decay, "decoupled_weight_decay"),
        }
        super().__init__(params, defaults)


class AdEMAMix(Fused):
    """AdEMAMix: Adam with a second, much slower average of the gradients beside its first moment.

    With m and v as in `Adam`, for every element at step t, with m_slow as `exp_avg_slow`:

        m_slow = m_slow + (1 - beta3_t) * (g - m_slow)
        p      = p - lr * weight_decay * p      (with `decoupled_weight_decay`)
        p      = p - lr * (m / (1 - beta1**t) + alpha_t * m_slow) / (sqrt(v / (1 - beta2**t)) + eps)

    With warm-ups, alpha_t = alpha * min(t / alpha_warmup, 1), and the half-life of beta3_t grows evenly from that of
    beta1 to that of beta3 over `beta3_warmup` steps.

    Args:
        params: As in `Adam`, whose further arguments it takes.
        lr: Learning rate, >= 0.
        betas: Decay rates of the first, second and slow first moment, each in [0, 1).
        alpha: Weight of the slow moment, >= 0; 0 is AdamW.
        beta3_warmup: Over how many steps of a parameter beta3 grows, >= 0.
        alpha_warmup: Over how many steps of a parameter alpha grows, likewise.
        eps: Added to the root of the bias-corrected second moment, >= 0.
        weight_decay: Decoupled, or L2 without `decoupled_weight_decay`, >= 0.
        maximize: Ascend instead of descend.
        decoupled_weight_decay: Decay the parameters apart from the gradient.
        options: As in `Adam`.

    Example:
        >>> import torch, fastadam.torch
        >>> weights = torch.ones(2, dtype=torch.float64, requires_grad=True)
        >>> optimizer = fastadam.torch.AdEMAMix([weights], lr=0.1, alpha=100.0)
        >>> (weights * torch.tensor([3.0, -0.5])).sum().backward()
        >>> optimizer.step()
        >>> [round(weight, 6) for weight in weights.tolist()]
        [0.899, 1.101]

    References:
        Pagliardini, Ablin and Grangier, "The AdEMAMix Optimizer: Better, Faster, Older",
        https://arxiv.org/abs/2409.03137.
    """

    _member = "ademamix"

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        beta3_warmup: float = 0,
        alpha_warmup: float = 0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = True,
        **options: Unpack[TorchOptions],
    ):
        self._choose(options)
        numbers = {
            "alpha": alpha,
            "beta3_warmup": beta3_warmup,
            "alpha_warmup": alpha_warmup,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        _check(lr, betas, 3, numbers)
        defaults = {
            "lr": lr,
            "betas": betas,
            **numbers,
            "maximize": flag(maximize, "maximize"),
            "decoupled_weight_decay": flag(decoupled_weight_decay, "decoupled_weight_decay"),
        }
        super().__init__(params, defaults)


def _check(lr, betas, count, numbers):
    """Raise unless these are hyperparameters of a class that torch does not have."""
    if isinstance(lr, torch.Tensor) and lr.numel() != 1:
        raise ValueError(f"`lr` must be a number or a tensor of one element, got one of shape {tuple(lr.shape)}")
    nonnegative(float(lr), "lr")
    if not isinstance(betas, (tuple, list)) or len(betas) != count:
        raise TypeError(f"`betas` must be {count} numbers, got {betas!r}")
    for index, beta in enumerate(betas):
        fraction(float(beta), f"betas[{index}]")
    for name, number in numbers.items():
        nonnegative(number, name)
