"""`adam_step`: the backend entry, one pass over flat arrays without an optimizer object."""

from typing import Any

import numpy as np

from fastadam.kernels.texts import fold
from fastadam.memory.arrays import (
    as_array,
    as_bits,
    check_device,
    check_disjoint,
    check_dtype,
    check_flat,
    check_native,
    check_place,
    kernels,
)
from fastadam.memory.conversion import check_codes
from fastadam.memory.formats import storage_of_arrays
from fastadam.settings.checks import flag, integer, nonnegative
from fastadam.settings.groups import ParamGroup
from fastadam.settings.options import Options
from fastadam.settings.recipes import STEP, check_eps, check_settings, update_for


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
    remainder: Any = None,
    m_exponent: Any = None,
    v_exponent: Any = None,
    **options: Any,
) -> None:
    """Update parameters `p` and moments `m` and `v` in place, in one pass, for gradient `g`.

    The equation is that of `fastadam.Adam`; one device for all arrays. With float64 parameters, all arrays are float64;
    else arithmetic is in float32, and each array is float32, bfloat16 or float16. Moments may also be 8-bit codes.

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
        ema: Average of the parameters, shape (n,), float32 or float64, in place, with `ema_decay`.
        remainder: What bfloat16 parameters lack of float32, shape (n,), uint16, in place; zeros at first.
        m_exponent: With `m` in codes (uint8, zeros at first), their exponents, shape (ceil(n / 128),), uint8, in place.
        v_exponent: With `v` in codes, likewise.
        options: `convention`, `eps_root`, `decouple_lr`, `clip_value`, `ema_decay`, `zero_grad`, `rounding` and `seed`
            of `fastadam.Adam`. A convention changes no default here.

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
    given |= {"remainder": remainder} if remainder is not None else {}
    arrays = {label: as_array(value, label) for label, value in given.items()}
    check_dtype(arrays["p"], "p")
    codes = {"m": m_exponent, "v": v_exponent}
    exponents = {
        f"{label}_exponent": as_array(value, f"{label}_exponent") for label, value in codes.items() if value is not None
    }
    storage = storage_of_arrays(arrays, exponents, chosen)
    if storage.v == "float16":
        check_eps(group["eps"])
    for label, array in arrays.items():
        check_native(array, label)
        check_place(array, arrays["p"], label, "`p`")
        check_flat(array, label, written=label != "g" or chosen.zero_grad)
    for label, array in exponents.items():
        check_device(array, arrays["p"], label, "`p`")
        check_codes(arrays[label[0]], array, label[0], "")
        check_flat(array, label)
    arrays |= exponents
    check_disjoint(arrays)
    carried = np.array(fold.FIRST_CARRIED)
    carried[STEP] = integer(step, "step", least=1) - 1
    update, hyper = update_for(group, chosen, storage)
    grad_scale = nonnegative(grad_scale, "grad_scale")
    flats = tuple(as_bits(arrays[name]) for name in update.flats)
    kernels(arrays["p"], "p").launch_flat(update, flats, as_bits(arrays["g"]), hyper, carried, grad_scale)


_OPTIONS = {"convention", "eps_root", "decouple_lr", "clip_value", "ema_decay", "zero_grad", "rounding", "seed"}


def _extra(label, value, wanted, option):
    if wanted != (value is not None):
        raise TypeError(f"`{label}` must be an array with {option} and None without, got {type(value).__name__}")
    return {label: value} if wanted else {}
