"""The CPU backend, compiled by Numba."""

from fastadam.kernels.cpu.launch import DIRECT_FROM, address, copy_out, is_captured, launcher, tables
from fastadam.kernels.cpu.norm import clip, clip_each, each, squares
from fastadam.kernels.cpu.rows import catch_up
from fastadam.kernels.cpu.threads import PARALLEL_FROM

__all__ = [
    "DIRECT_FROM",
    "PARALLEL_FROM",
    "address",
    "catch_up",
    "clip",
    "clip_each",
    "copy_out",
    "each",
    "is_captured",
    "launcher",
    "squares",
    "tables",
]
