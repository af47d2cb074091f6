"""Every contender, in the order of the tables. One that cannot be built here is listed as missing.

The package `contenders` itself imports none of them, so that a process can have one library without the others.
"""

from fastadam.bench.contender import Contender
from fastadam.bench.contenders import (
    cuda_adam,
    deepspeed_adam,
    fastadam_adam,
    fastadam_calls,
    fastadam_extras,
    fastadam_formats,
    fastadam_groups,
    fastadam_rows,
    keras_adam,
    kernel_alone,
    limits,
    numexpr_adam,
    numpy_in_place,
    numpy_textbook,
    offload,
    optax_adam,
    torch_adam,
)

_MODULES = (
    numpy_textbook,
    numpy_in_place,
    numexpr_adam,
    torch_adam,
    deepspeed_adam,
    optax_adam,
    keras_adam,
    fastadam_adam,
    fastadam_formats,
    fastadam_extras,
    fastadam_calls,
    kernel_alone,
    fastadam_groups,
    fastadam_rows,
    offload,
    cuda_adam,
    limits,
)
CONTENDERS: dict[str, Contender] = {each.name: each for module in _MODULES for each in module.CONTENDERS}
BASELINE = "NumPy, textbook"
