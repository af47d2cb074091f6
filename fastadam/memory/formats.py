"""In which format each buffer is stored: what the options of an optimizer ask for, and what the parameters are."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastadam.kernels.callers import levels_to_caller
from fastadam.kernels.texts.formats import NATIVE, Storage
from fastadam.memory.arrays import dtype_name, on_host, widened
from fastadam.memory.parameters import Parameter
from fastadam.settings.options import Options

# Parameters of fewer elements keep moments in float32 where others have 8-bit codes: there is little to gain in them,
# and they are often those (biases, scales of norms) that notice it.
SMALL = 4_096
# Of a number of these dtypes, half of the distance to the next is at least this part.
_HALF_STEP = {"bfloat16": 2.0**-9, "float16": 2.0**-12}
# Parameters that are looked at to tell whether a learning rate can change them.
_SAMPLE = 100_000


def is_small(parameter: Parameter) -> bool:
    """Whether the moments of `parameter` are float32 even where others have codes."""
    return parameter.array.size < SMALL


def storage_of(parameters: list[Parameter], options: Options) -> Storage:
    """The storage of the buffers of a group, whose parameters are all small, or none is."""
    stored = dtype_name(parameters[0].array)
    arithmetic = "float64" if stored == "float64" else "float32"
    if options.master_weights and stored != "bfloat16":
        raise ValueError(f"`master_weights` needs bfloat16 parameters, got {stored}: they would lack nothing")
    first, second = (_moment(dtype, arithmetic, is_small(parameters[0])) for dtype in options.moment_dtypes)
    stochastic = options.rounding == "stochastic"
    storage = Storage(
        p="split" if options.master_weights else _format(stored, arithmetic, "params", stochastic=stochastic),
        g=_format(options.grad_dtype or stored, arithmetic, "grad_dtype"),
        m="dithered" if first == "bfloat16" and stochastic else first,
        v="dithered" if second == "bfloat16" and stochastic else second,
        v_max="native" if second == "float8" else second,
        low=options.copy_dtype or "native",
    )
    if options.copy_dtype and stored in ("bfloat16", "float16"):
        raise ValueError(f"`copy_dtype` must be None with {stored} parameters, got {options.copy_dtype!r}")
    if options.sparse == "exact" and storage != NATIVE:
        raise ValueError(f"`sparse` must be 'lazy' with {stored} parameters, got 'exact': rounding is not made up for")
    return storage


def _moment(dtype, arithmetic, small):
    if dtype == "float8" and arithmetic == "float32":
        return "native" if small else "float8"
    return _format(dtype or arithmetic, arithmetic, "moment_dtype")


def _format(dtype, arithmetic, label, *, stochastic=False):
    if dtype == arithmetic:
        return "native"
    if "float64" in (arithmetic, dtype):
        wanted = "must be float64 with" if arithmetic == "float64" else "must not be float64 without"
        raise ValueError(f"`{label}` {wanted} float64 parameters, got {dtype!r}")
    return "dithered" if stochastic and dtype == "bfloat16" else dtype


def storage_of_arrays(arrays: Mapping[str, Any], exponents: Mapping[str, Any], options: Options) -> Storage:
    """The storage that flat arrays have, by the names of buffers; `exponents` are beside moments in codes."""
    stored = {label: dtype_name(array) for label, array in arrays.items()}
    arithmetic = "float64" if stored["p"] == "float64" else "float32"
    stochastic = options.rounding == "stochastic"
    formats = {"p": _format(stored["p"], arithmetic, "p", stochastic=stochastic)}
    for label in ("g", "m", "v", "v_max", "ema"):
        if f"{label}_exponent" in exponents and arithmetic == "float32":
            formats[label] = "float8"
        elif label in arrays:
            wanted = (arithmetic,) if label == "ema" or arithmetic == "float64" else ("float32", "bfloat16", "float16")
            if stored[label] not in wanted:
                codes = f", or uint8 with `{label}_exponent`," if label in "mv" and arithmetic == "float32" else ""
                listed = f"{' or '.join(wanted)}{codes} with `p` of {stored['p']}"
                raise TypeError(f"`{label}` must be {listed}, got {arrays[label].dtype}")
            formats[label] = _format(stored[label], arithmetic, label, stochastic=stochastic and label in ("m", "v"))
    if "remainder" in arrays:
        if stored["p"] != "bfloat16" or arrays["remainder"].dtype != np.uint16:
            raise TypeError(
                f"`remainder` must be uint16, beside `p` of bfloat16, got {arrays['remainder'].dtype} and {stored['p']}"
            )
        formats["p"] = "split"
    return Storage(**formats)


def warn_of_vanishing(parameters: list[Parameter], settings: Mapping[str, Any], storage: Storage) -> None:
    """Warn if a step of the learning rate, rounded to nearest, would leave most parameters as they are."""
    lr = settings["lr"]
    if storage.p not in _HALF_STEP or callable(lr) or lr == 0.0:
        return
    flats = [parameter.array.reshape(-1) for parameter in parameters]
    stride = 1 + sum(flat.size for flat in flats) // _SAMPLE
    sample = [widened(flat[::stride]) for flat in flats]
    sizes = np.concatenate([np.abs(on_host(part)) for part in sample])
    stuck = np.mean(sizes * _HALF_STEP[storage.p] > lr) if sizes.size else 0.0
    if stuck > 0.5:
        remedy = "`rounding` 'stochastic' or `master_weights`" if storage.p == "bfloat16" else "float32 parameters"
        warnings.warn(
            f"`lr` {lr} is too small to change {100 * stuck:.0f}% of the {storage.p} parameters, which are rounded to "
            f"nearest: use {remedy}",
            UserWarning,
            stacklevel=levels_to_caller(),
        )
