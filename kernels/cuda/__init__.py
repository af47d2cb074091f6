"""The CUDA backend: CuPy elementwise kernels over tables of addresses."""

from fastadam.kernels.cuda.launch import (
    DIRECT_FROM,
    address,
    catch_up,
    clip,
    copy_out,
    device_problem,
    launcher,
    squares,
    tables,
)
from fastadam.kernels.cuda.source import upload

__all__ = [
    "DIRECT_FROM",
    "address",
    "catch_up",
    "clip",
    "copy_out",
    "device_problem",
    "launcher",
    "squares",
    "tables",
    "upload",
]
