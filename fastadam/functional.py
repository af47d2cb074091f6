"""`adam_step`: the backend entry, one pass over flat arrays without an optimizer object."""

from typing import Any

import numpy as np

from fastadam.arrays import as_array, check_disjoint, check_dtype, check_flat, check_like, kernels
from fastadam.checks import flag, integer, nonnegative
from fastadam.groups import ParamGroup
from fastadam.kernels import fold
from fastadam.options import Options
from fastadam.recipes import STEP, check_settings, update_for


def adam_step(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    grad_scale: float = 1.0,
    v_max: Any = None,
    ema: Any = None,
    **options: Any,
) -> None:
    """Update parameters `p` and moments `m` and `v` in place, in one pass, for gradient `g`.

    The equation is that of `fastadam.Adam`. One dtype, float32 or float64, and one device for all arrays.

    Args:
        p: Parameters, shape (n,), in place.
        g: Gradients, shape (n,), only read, but for `zero_grad`.
        m: First moment (torch: `exp_avg`), shape (n,), in place; zeros before the first step.
        v: Second moment (torch: `exp_avg_sq`), shape (n,), in place; zeros before the first step.
        step: Number of this step, an integer from 1 on; the bias corrections depend on it.
        lr: Learning rate, >= 0.
        betas: Decay rates of the two moments, each in [0, 1).
        eps: Added to the root of the bias-corrected second moment, >= 0.
        weight_decay: L2 coefficient, or that of AdamW with `decoupled_weight_decay`, >= 0.
        amsgrad: Divide by the root of the largest second moment so far, which is `v_max`.
        maximize: Ascend instead of descend.
        decoupled_weight_decay: Decay the parameters apart from the gradient.
        grad_scale: Factor on the gradients, >= 0.
        v_max: Largest second moment (torch: `max_exp_avg_sq`), shape (n,), in place, with `amsgrad`.
        ema: Average of the parameters, shape (n,), in place, with `ema_decay`.
        options: `convention`, `eps_root`, `decouple_lr`, `clip_value`, `ema_decay` and `zero_grad` of `fastadam.Adam`.
            A convention changes no default here.

    Raises:
        TypeError, ValueError: an array of another kind, dtype, shape or device, read-only, non-contiguous or
            overlapping; a number out of range; options that contradict one another. Nothing has been written then.
        RuntimeError: arrays in CUDA memory without CuPy or without a working GPU.

    Example:
        >>> import numpy as np, fastadam
        >>> p, g, m, v = np.ones(3), np.array([1.0, -1.0, 0.0]), np.zeros(3), np.zeros(3)
        >>> fastadam.adam_step(p, g, m, v, step=1, lr=0.1)
        >>> p.round(6)
        array([0.9, 1.1, 1. ])

    References:
        Kingma and Ba, "Adam: A Method for Stochastic Optimization", https://arxiv.org/abs/1412.6980.
    """
    unknown = options.keys() - _OPTIONS
    if unknown:
        raise TypeError(f"adam_step() got an unexpected keyword argument {sorted(unknown)[0]!r}")
    chosen = Options("adam", **options)
    numbers = {"lr": nonnegative(lr, "lr"), "betas": betas, "eps": eps, "weight_decay": weight_decay}
    flags = {"amsgrad": amsgrad, "maximize": maximize, "decoupled_weight_decay": decoupled_weight_decay}
    group = ParamGroup((), {**numbers, **flags})
    check_settings(group, chosen)
    given = {"p": p, "g": g, "m": m, "v": v}
    given |= _extra("v_max", v_max, flag(amsgrad, "amsgrad"), "amsgrad=True")
    given |= _extra("ema", ema, chosen.ema_decay is not None, "ema_decay")
    arrays = {label: as_array(value, label) for label, value in given.items()}
    check_dtype(arrays["p"], "p")
    for label, array in arrays.items():
        check_like(array, arrays["p"], label, "`p`")
        check_flat(array, label, written=label != "g" or chosen.zero_grad)
    check_disjoint(arrays)
    carried = np.array(fold.FIRST_CARRIED)
    carried[STEP] = integer(step, "step", least=1) - 1
    update, hyper = update_for(group, chosen)
    grad_scale = nonnegative(grad_scale, "grad_scale")
    flats = tuple(arrays[name] for name in update.flats)
    kernels(arrays["p"], "p").launch_flat(update, flats, arrays["g"], hyper, carried, grad_scale)


_OPTIONS = {"convention", "eps_root", "decouple_lr", "clip_value", "ema_decay", "zero_grad"}


def _extra(label, value, wanted, option):
    if wanted != (value is not None):
        raise TypeError(f"`{label}` must be an array with {option} and None without, got {type(value).__name__}")
    return {label: value} if wanted else {}
