"""The CUDA backend: CuPy elementwise kernels."""

from fastadam.kernels.cuda.launch import (
    DIRECT_FROM,
    address,
    blocks_of,
    catch_up,
    clip,
    copy_out,
    device_problem,
    launch_flat,
    launcher,
    rounding,
    squares_launcher,
    upload,
)

__all__ = [
    "DIRECT_FROM",
    "address",
    "blocks_of",
    "catch_up",
    "clip",
    "copy_out",
    "device_problem",
    "launch_flat",
    "launcher",
    "rounding",
    "squares_launcher",
    "upload",
]
