"""The CUDA backend: CuPy elementwise kernels over tables of addresses."""

from fastadam.kernels.cuda.launch import (
    DIRECT_FROM,
    address,
    catch_up,
    clip,
    copy_out,
    device_problem,
    each,
    is_captured,
    launcher,
    squares,
    tables,
)

__all__ = [
    "DIRECT_FROM",
    "address",
    "catch_up",
    "clip",
    "copy_out",
    "device_problem",
    "each",
    "is_captured",
    "launcher",
    "squares",
    "tables",
]
