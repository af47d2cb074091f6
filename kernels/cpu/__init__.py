"""The CPU backend, compiled by Numba."""

from fastadam.kernels.cpu.launch import DIRECT_FROM, address, copy_out, launcher, tables, upload
from fastadam.kernels.cpu.norm import clip, squares
from fastadam.kernels.cpu.rows import catch_up
from fastadam.kernels.cpu.threads import PARALLEL_FROM

__all__ = [
    "DIRECT_FROM",
    "PARALLEL_FROM",
    "address",
    "catch_up",
    "clip",
    "copy_out",
    "launcher",
    "squares",
    "tables",
    "upload",
]
