"""`adam_step`: the backend entry, one pass over four flat arrays without an optimizer object."""

from typing import Any

import numpy as np

from fastadam.arrays import as_array, check_disjoint, check_dtype, check_flat, check_like, integer, kernels
from fastadam.groups import ParamGroup
from fastadam.kernels import fold
from fastadam.options import nonnegative
from fastadam.recipes import STEP, update_for


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
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    grad_scale: float = 1.0,
) -> None:
    """Update parameters `p` and moments `m` and `v` in place, in one pass, for gradient `g`.

    The equation is that of `fastadam.Adam`. One dtype, float32 or float64, and one device for all four.

    Args:
        p: Parameters, shape (n,), in place.
        g: Gradients, shape (n,), only read.
        m: First moment (torch: `exp_avg`), shape (n,), in place; zeros before the first step.
        v: Second moment (torch: `exp_avg_sq`), shape (n,), in place; zeros before the first step.
        step: Number of this step, an integer from 1 on; the bias corrections depend on it.
        lr: Learning rate, >= 0.
        betas: Decay rates of the two moments, each in [0, 1).
        eps: Added to the root of the bias-corrected second moment, >= 0.
        weight_decay: L2 coefficient, or that of AdamW with `decoupled_weight_decay`, >= 0.
        decoupled_weight_decay: Decay the parameters apart from the gradient.
        maximize: Ascend instead of descend.
        grad_scale: Factor on the gradients, >= 0.

    Raises:
        TypeError, ValueError: an array of another kind, dtype, shape or device, read-only, non-contiguous or
            overlapping; a number out of range. Nothing has been written then.
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
    arrays = {label: as_array(value, label) for label, value in (("p", p), ("g", g), ("m", m), ("v", v))}
    check_dtype(arrays["p"], "p")
    for label, array in arrays.items():
        check_like(array, arrays["p"], label, "`p`")
        check_flat(array, label, written=label != "g")
    check_disjoint(arrays)
    settings = {"lr": nonnegative(lr, "lr"), "betas": betas, "eps": eps, "weight_decay": weight_decay}
    flags = {"maximize": maximize, "decoupled_weight_decay": decoupled_weight_decay}
    group = ParamGroup((), {**settings, **flags})
    carried = np.array(fold.FIRST_CARRIED)
    carried[STEP] = integer(step, "step", least=1) - 1
    update, hyper = update_for(group)
    grad_scale = nonnegative(grad_scale, "grad_scale")
    p, g, m, v = arrays.values()
    kernels(p, "p").launch_flat(update, (p, m, v), g, hyper, carried, grad_scale)
