"""The switches of the mode in which :mod:`subnormals <fastadam.kernels.subnormals>` are zero, compiled by Numba."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import njit, uint64
from numba.core import cgutils
from numba.extending import intrinsic

from fastadam.kernels.kernel_cache import harden


class Register(NamedTuple):
    """The register with the mode: the bits that flush, its width, and LLVM's intrinsics that read and write it."""

    flush: int
    width: int
    read: str
    write: str


# MXCSR: flush to zero, and denormals are zero. FPCR: FZ, which does both.
_X86 = Register(0x8040, 32, "llvm.x86.sse.stmxcsr", "llvm.x86.sse.ldmxcsr")
_ARM = Register(1 << 24, 64, "llvm.aarch64.get.fpcr", "llvm.aarch64.set.fpcr")
REGISTERS = {"x86_64": _X86, "i386": _X86, "i686": _X86, "aarch64": _ARM, "arm64": _ARM}


def register_of(triple: str) -> Register | None:
    """The register of a processor, by LLVM's name for it; None where there is no such mode."""
    return REGISTERS.get(triple.partition("-")[0])


def read_mode(builder: ir.IRBuilder, register: Register) -> ir.Value:
    """Emit the reading of the register, as an integer of its width."""
    if register is _ARM:
        return builder.call(_function(builder, register.read, ir.IntType(64), []), [])
    place = cgutils.alloca_once(builder, ir.IntType(32))
    _call_with(builder, register.read, place)
    return builder.load(place)


def write_mode(builder: ir.IRBuilder, register: Register, mode: ir.Value) -> None:
    """Emit the writing of the register."""
    if register is _ARM:
        builder.call(_function(builder, register.write, ir.VoidType(), [ir.IntType(64)]), [mode])
    else:
        _call_with(builder, register.write, cgutils.alloca_once_value(builder, mode))


def _call_with(builder, name, place):
    byte = ir.IntType(8).as_pointer()
    builder.call(_function(builder, name, ir.VoidType(), [byte]), [builder.bitcast(place, byte)])


def _function(builder, name, result, arguments):
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


@intrinsic
def flush(_):
    """Let subnormals be zero in this thread; returns the mode that was there before."""

    def generate(context, builder, signature, arguments):
        number, register = ir.IntType(64), register_of(builder.module.triple)
        if register is None:
            return number(0)
        mode = read_mode(builder, register)
        write_mode(builder, register, builder.or_(mode, mode.type(register.flush)))
        return mode if mode.type == number else builder.zext(mode, number)

    return uint64(), generate


@intrinsic
def current(_):
    """The mode of this thread."""

    def generate(context, builder, signature, arguments):
        number, register = ir.IntType(64), register_of(builder.module.triple)
        if register is None:
            return number(0)
        mode = read_mode(builder, register)
        return mode if mode.type == number else builder.zext(mode, number)

    return uint64(), generate


@intrinsic
def restore(_, mode):
    """Write back the mode that `flush` returned."""

    def generate(context, builder, signature, arguments):
        (mode,), register = arguments, register_of(builder.module.triple)
        if register is not None:
            if register.width < mode.type.width:
                mode = builder.trunc(mode, ir.IntType(register.width))
            write_mode(builder, register, mode)
        return context.get_dummy_value()

    return numba.types.void(uint64), generate


def flushes() -> bool:
    """Whether subnormals are zero: where Numba compiles nothing, or for a processor without such a mode, they stay."""
    return not numba.config.DISABLE_JIT and register_of(_triple()) is not None


@cache
def flushing() -> int:
    """The bits of the mode that flush."""
    register = register_of(_triple())
    return 0 if register is None else register.flush


@cache
def _triple():
    return llvm.get_process_triple()


@cache
def compiled() -> tuple[Callable[[], int], Callable[[int], None], Callable[[], int]]:
    """The switches, to be called from Python: `begin()`, `end(mode)`, and `mode()`, which is to be asked before."""
    return _compiled(_flush_thread, ()), _compiled(_restore_thread, (uint64,)), _compiled(_mode_of_thread, ())


def _flush_thread():
    return flush()


def _mode_of_thread():
    return current()


def _restore_thread(mode):
    restore(mode)


def _compiled(function, arguments):
    # Numba's cache notices edits of this file, and nothing else is compiled into these.
    kernel = njit(function)
    harden(kernel, function)
    return kernel.compile(arguments)
