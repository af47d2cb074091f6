"""`adam_step`: the backend entry, one pass over flat arrays without an optimizer object."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from threading import get_ident
from typing import Any, NamedTuple

import numpy as np

from fastadam.kernels import GRAD_SCALE, GRADIENT, Pass
from fastadam.kernels.blocks import cut
from fastadam.kernels.texts.formats import Formats
from fastadam.kernels.texts.update import update_of
from fastadam.memory.arrays import (
    as_array,
    backend_of,
    check_device,
    check_dtype,
    check_flat,
    check_native,
    check_place,
    device,
)
from fastadam.memory.conversion import check_codes
from fastadam.memory.formats import formats_of_arrays
from fastadam.memory.parameters import random_place
from fastadam.settings.checks import flag, integer, nonnegative, unexpected
from fastadam.settings.groups import ParamGroup
from fastadam.settings.options import Options
from fastadam.settings.recipes import LR, STEP, check_eps, check_together, hyper_of, recipe_of


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
        g: Gradients, shape (n,); they are only read, unless `zero_grad` is given.
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
    lr = nonnegative(lr, "lr")
    settings = (betas, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay)
    try:
        chosen = _chosen(*settings, **options)
    except TypeError:  # something that has no hash: a list of betas, an array as a number
        chosen = _checked_settings(settings, options)
    given = {"p": p, "g": g, "m": m, "v": v}
    if amsgrad or v_max is not None:
        given |= _extra("v_max", v_max, chosen.group["amsgrad"], "amsgrad=True")
    if chosen.options.ema_decay is not None or ema is not None:
        given |= _extra("ema", ema, chosen.options.ema_decay is not None, "ema_decay")
    if remainder is not None:
        given["remainder"] = remainder
    exponents = {}
    if m_exponent is not None:
        exponents["m_exponent"] = m_exponent
    if v_exponent is not None:
        exponents["v_exponent"] = v_exponent
    arrays, formats = _checked_arrays(given, exponents, chosen)
    addresses = _addresses(arrays)
    number, grad_scale = integer(step, "step", least=1), nonnegative(grad_scale, "grad_scale")
    if type(p) is not np.ndarray and backend_of(arrays["p"], "p").is_captured(arrays["p"]):
        raise RuntimeError(
            "`adam_step` cannot be captured in a CUDA graph: each replay would take the step of this number, with this "
            "rate. Capture the step of an optimizer, which counts on the device"
        )
    ready = _ready(chosen, formats, arrays["p"])
    row = [*map(addresses.__getitem__, ready.names), ready.place]
    tables = ready.tables
    tables.write("addresses", (0, slice(GRADIENT, len(row))), row)
    tables.write("hyper", (0, LR), lr)
    tables.write("carried", (0, STEP), number - 1)
    tables.write("record", GRAD_SCALE, grad_scale)
    tables.send()
    ready.launch()


_OPTIONS = {"convention", "eps_root", "decouple_lr", "clip_value", "ema_decay", "zero_grad", "rounding", "seed"}


class Ready(NamedTuple):
    """A launch for settings, formats and a size; a call writes the rest into its tables.

    Attributes:
        names: Of the arrays, in the order of the row of addresses.
        place: Where the random words begin.
        tables: With one parameter and one clock.
        launch: Runs the step.
    """

    names: tuple[str, ...]
    place: int
    tables: Any
    launch: Callable[[], None]


@dataclass(eq=False)
class Chosen:
    """The checked settings of a call, which mostly come again, and what was made ready for them."""

    group: ParamGroup
    options: Options
    ready: dict[tuple, Ready] = field(default_factory=dict)


@lru_cache(maxsize=256, typed=True)  # 1 is no True
def _chosen(*settings, **options):
    return _checked_settings(settings, options)


def _checked_settings(settings, options):
    unknown = options.keys() - _OPTIONS
    if unknown:
        name = sorted(unknown)[0]
        known = [*_OPTIONS, *inspect.signature(adam_step).parameters]
        raise unexpected("adam_step", name, known)
    chosen = Options("adam", **options)
    betas, eps, weight_decay, amsgrad, maximize, decoupled = settings
    numbers = {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    flags = {
        "amsgrad": flag(amsgrad, "amsgrad"),
        "maximize": maximize,
        "decoupled_weight_decay": decoupled,
    }
    group = ParamGroup((), {**numbers, **flags}, chosen.family_member)
    check_together(group, chosen)
    return Chosen(group, chosen)


def _extra(label, value, wanted, option):
    if wanted != (value is not None):
        raise TypeError(f"`{label}` must be an array with {option} and None without, got {type(value).__name__}")
    return {label: value} if wanted else {}


def _checked_arrays(given, exponents, chosen):
    """The arrays by name, exponents among them, and how they are stored."""
    arrays = {label: as_array(value, label) for label, value in given.items()}
    p, zeroed = arrays["p"], chosen.options.zero_grad
    shape, dtype = p.shape, p.dtype
    if exponents or dtype not in _PLAIN or len(shape) != 1:
        return _checked_otherwise(arrays, exponents, chosen)
    for label, array in arrays.items():
        # The usual case first: the checks one by one take several times as long as the step of a small array.
        flags = array.flags if type(array) is np.ndarray and array.dtype is dtype and array.shape == shape else None
        if not flags or not (flags.carray or (label == "g" and not zeroed and flags.c_contiguous and flags.aligned)):
            return _checked_otherwise(arrays, exponents, chosen)
    return arrays, _NATIVE


_PLAIN = (np.dtype(np.float32), np.dtype(np.float64))
_NATIVE = Formats()


def _checked_otherwise(arrays, exponents, chosen):
    exponents = {label: as_array(value, label) for label, value in exponents.items()}
    check_dtype(arrays["p"], "p")
    formats = formats_of_arrays(arrays, exponents, chosen.options)
    if formats["v"] == "float16":
        check_eps(chosen.group["eps"])
    for label, array in arrays.items():
        check_native(array, label)
        check_place(array, arrays["p"], label, "`p`")
        check_flat(array, label, written=label != "g" or chosen.options.zero_grad)
    for label, array in exponents.items():
        check_device(array, arrays["p"], label, "`p`")
        check_codes(arrays[label[0]], array, label[0], "")
        check_flat(array, label)
    arrays |= exponents
    return arrays, formats


def _addresses(arrays):
    """Where each of the contiguous arrays begins; raise if two of them share memory."""
    address = backend_of(arrays["p"], "p").address
    addresses = {label: address(array) for label, array in arrays.items()}
    spans = sorted([(first, first + arrays[label].nbytes, label) for label, first in addresses.items()])
    for (_, high, label), (low, _, other) in pairwise(spans):
        if low < high and arrays[other].size:
            first, second = sorted((label, other), key=list(arrays).index)
            raise ValueError(f"`{second}` must not overlap `{first}`, got arrays that share memory")
    return addresses


def _ready(chosen, formats, p):
    """What is ready for arrays like these; each thread has its own."""
    key = formats, p.size, p.dtype, device(p), get_ident()
    ready = chosen.ready.get(key)
    if ready is None:
        if len(chosen.ready) > 64:  # another thread may do so at any time
            chosen.ready.clear()
        ready = chosen.ready[key] = _made_ready(chosen, formats, p)
    return ready


def _made_ready(chosen, formats, p):
    group, options, backend = chosen.group, chosen.options, backend_of(p, "p")
    update = update_of(recipe_of(group, options, formats))
    tables = backend.tables(1, 1, p)
    hyper = np.array(hyper_of(group, options, update.hyper, 0.0))
    tables.write("hyper", (0, slice(len(hyper))), hyper)
    blocks = cut(np.array([[0, 0, 0, p.size, 0]], np.int64))
    each = Pass(update, formats.arithmetic(p), np.zeros(1, np.int64), blocks)
    launch = backend.launcher([each], tables, guarded=False)
    return Ready(("g", *update.flats), random_place(options.seed, 0, 0), tables, launch)
