"""The format of each buffer, chosen by the options of an optimizer and by the dtype of its parameters."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastadam.kernels.callers import levels_to_caller
from fastadam.kernels.texts.formats import Formats
from fastadam.memory.arrays import dtype_name, on_host, widened
from fastadam.settings.options import Options

# Parameters of fewer elements keep moments in float32 with "float8". There is little memory to gain in them, and they
# are often biases or scales of norms, which suffer from codes.
SMALL = 4_096
# Half of the distance from a number to the next one is at least this part of the number.
_HALF_STEP = {"bfloat16": 2.0**-9, "float16": 2.0**-12}
# About this many parameters are looked at to tell whether a learning rate can change them.
_SAMPLE = 100_000


def formats_of(stored: str, size: int, dtypes: tuple[str | None, str | None], options: Options) -> Formats:
    """The formats of all buffers of a parameter of `size` elements that is `stored` in a dtype.

    Its first and second moments have these `dtypes`.
    """
    member = options.family_member
    arithmetic = "float64" if stored == "float64" else "float32"
    stochastic = options.rounding == "stochastic"
    if options.copy_dtype and stored in ("bfloat16", "float16"):
        raise ValueError(f"`copy_dtype` must be None with {stored} parameters, got {options.copy_dtype!r}")
    if options.master_weights and stored != "bfloat16":
        why = "the 13 bits that they lack are not kept" if stored == "float16" else "they lack nothing"
        raise ValueError(f"`master_weights` needs bfloat16 parameters, got {stored} ones: {why}")
    first, second = (_moment(dtype, arithmetic, size < SMALL) for dtype in dtypes)
    formats = {
        buffer: member.format(buffer, first if kept.signed else second, stochastic=stochastic)
        for buffer, kept in member.buffers.items()
    }
    p = _dtype(stored, arithmetic, "params")
    formats["p"] = "split" if options.master_weights else member.format("p", p, stochastic=stochastic)
    formats["g"] = _dtype(options.grad_dtype or stored, arithmetic, "grad_dtype")
    formats["copy"] = options.copy_dtype or "native"
    return Formats(**formats)


def _moment(dtype, arithmetic, small):
    if dtype == "float8" and arithmetic == "float32":
        return "native" if small else "float8"
    return _dtype(dtype or arithmetic, arithmetic, "moment_dtype")


def _dtype(dtype, arithmetic, label):
    """`dtype`, or "native" for that of the arithmetic; raise where the two do not go together."""
    if dtype == arithmetic:
        return "native"
    if "float64" in (arithmetic, dtype):
        wanted = "must be float64 with" if arithmetic == "float64" else "must not be float64 without"
        raise ValueError(f"`{label}` {wanted} float64 parameters, got {dtype!r}")
    return dtype


def formats_of_arrays(arrays: Mapping[str, Any], exponents: Mapping[str, Any], options: Options) -> Formats:
    """The formats of given flat arrays, which are named like buffers; `exponents` belong to moments in codes."""
    stored, member = {label: dtype_name(array) for label, array in arrays.items()}, options.family_member
    arithmetic = "float64" if stored["p"] == "float64" else "float32"
    stochastic = options.rounding == "stochastic"
    formats = {"p": member.format("p", _dtype(stored["p"], arithmetic, "p"), stochastic=stochastic)}
    for label in ("g", *member.buffers, "ema"):
        if f"{label}_exponent" in exponents and arithmetic == "float32":
            formats[label] = member.format(label, "float8")
        elif label in arrays:
            wanted = (arithmetic,) if label == "ema" or arithmetic == "float64" else ("float32", "bfloat16", "float16")
            if stored[label] not in wanted:
                has_codes = label in ("m", "v") and arithmetic == "float32"
                codes = f", or uint8 with `{label}_exponent`," if has_codes else ""
                listed = f"{' or '.join(wanted)}{codes} with `p` of {stored['p']}"
                raise TypeError(f"`{label}` must be {listed}, got {arrays[label].dtype}")
            formats[label] = member.format(label, _dtype(stored[label], arithmetic, label), stochastic=stochastic)
    if "remainder" in arrays:
        if stored["p"] != "bfloat16" or arrays["remainder"].dtype != np.uint16:
            raise TypeError(
                f"`remainder` must be uint16, beside `p` of bfloat16, got {arrays['remainder'].dtype} and {stored['p']}"
            )
        formats["p"] = "split"
    return Formats(**formats)


def warn_of_vanishing(arrays: list[Any], settings: Mapping[str, Any], options: Options) -> None:
    """Warn if steps as large as the learning rate, rounded to nearest, leave most 16-bit parameters as they are."""
    lr = settings["lr"]
    if callable(lr) or lr == 0.0 or options.master_weights:
        return
    kept = ("float16",) if options.rounding == "stochastic" else ("bfloat16", "float16")
    for dtype in kept:
        flats = [array.reshape(-1) for array in arrays if dtype_name(array) == dtype]
        stride = 1 + sum(flat.size for flat in flats) // _SAMPLE
        sizes = [np.abs(widened(on_host(flat[::stride]))) for flat in flats]
        stuck = np.mean(np.concatenate(sizes) * _HALF_STEP[dtype] > lr) if any(map(len, sizes)) else 0.0
        if stuck > 0.5:
            remedy = "`rounding` 'stochastic' or `master_weights`" if dtype == "bfloat16" else "float32 parameters"
            warnings.warn(
                f"`lr` {lr} is too small to change {100 * stuck:.0f}% of the {dtype} parameters, which are rounded to "
                f"nearest: use {remedy}",
                UserWarning,
                stacklevel=levels_to_caller(),
            )
