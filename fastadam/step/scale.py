"""The factor on the gradients that a step is asked for."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastadam.memory.arrays import as_array, check_aligned, check_device
from fastadam.settings.checks import nonnegative


def scale_of(value: Any, params: Mapping[Any, Any]) -> tuple[float, Any]:
    """`grad_scale` as a number; 1.0 and an array if it lies on the GPU of `params`, which is to read it."""
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack__"):
        return nonnegative(value, "grad_scale"), None
    example = as_array(next(iter(params.values())), "params")
    if isinstance(example, np.ndarray) or isinstance(scale := as_array(value, "grad_scale"), np.ndarray):
        return nonnegative(value, "grad_scale"), None
    check_device(scale, example, "grad_scale", "params")
    if scale.dtype != np.float32 or scale.size != 1:
        raise TypeError(
            f"`grad_scale` must be a number, or one float32 in an array on the GPU, got {scale.dtype} of shape "
            f"{scale.shape}"
        )
    check_aligned(scale, "grad_scale")
    return 1.0, scale
