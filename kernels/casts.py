"""float32 to the bits of bfloat16 and float16, as uint16: round to nearest even; infinity and NaN stay what they are.

The NumPy form. The CPU and the CUDA kernel have functions of the same names, which give the same bits but for the
payload of a NaN. float64 is rounded to float32 first.
"""

import numpy as np


def to_bfloat16(value):
    with np.errstate(over="ignore"):
        value = np.asarray(value, np.float32)
    bits = value.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    quiet = bits | np.uint32(0x400000)
    return (np.where(np.isnan(value), quiet, rounded) >> np.uint32(16)).astype(np.uint16)


def to_float16(value):
    with np.errstate(over="ignore"):
        return np.asarray(value, np.float32).astype(np.float16).view(np.uint16)
