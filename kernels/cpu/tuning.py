"""What is tuned to the processor, in one table with what was measured on which."""

import os
from functools import cache
from typing import NamedTuple

import llvmlite.binding as llvm


class Tuning(NamedTuple):
    """Where software prefetch is worth its instructions.

    Attributes:
        elements: How many elements ahead of the one that is stepped memory is fetched; 0: no prefetch.
        bytes: The same for the norm, in bytes.
        least: A launch that reads and writes fewer bytes is not prefetched.
    """

    elements: int
    bytes: int
    least: int


NONE = Tuning(0, 0, 0)
# Intel Xeon (Sapphire Rapids class, 2.6 GHz, 2 cores, 2 MiB L2 each, 25 GB/s a core): arithmetic and memory do not
# overlap there unless memory is fetched. With 512 elements ahead, once for each chunk of 128, ns a parameter on two
# threads at 2e7: fp32 0.58 -> 0.52, bfloat16 moments 0.57 -> 0.41, 8-bit moments 1.28 -> 0.44, all bfloat16 0.45 ->
# 0.34, bfloat16 with 8-bit moments 0.62 -> 0.47 (with these random words in both); 1,024 ahead and chunks of 256 gain
# less. The norm: 0.39 ns an element on one thread, 0.25 with 4 to 8 KiB ahead. In the cache a prefetch costs up to a
# tenth, and a model of 0.28 M parameters gains a seventh in a training loop, where it is cold: so from L2's size on.
#
# AMD EPYC (Zen 4, 2 cores, 1 MiB L2 each): nothing to gain. At 2e7 with 512 ahead: fp32 0.51 -> 0.57, bfloat16 moments
# 0.41 -> 0.46, all bfloat16 0.38 -> 0.42, bfloat16 with 8-bit moments 0.38 -> 0.40, fp32 with clipping 0.64 -> 0.78.
# `python -m fastadam.bench.tuning` measures both anew.
TUNINGS = {"intel": Tuning(512, 4_096, 2 << 20), "amd": NONE}

# For experiments: elements ahead whatever the size, 0 for none; the norm gets 8 bytes for each.
VARIABLE = "FASTADAM_PREFETCH"
_AMD = ("znver", "bdver", "btver", "amdfam", "athlon", "opteron", "k8")


@cache
def vendor() -> str:
    """Of the processor: "amd", "intel" or "other", by LLVM's name of its kind."""
    if llvm.get_process_triple().partition("-")[0] not in ("x86_64", "i386", "i686"):
        return "other"
    return "amd" if llvm.get_host_cpu_name().startswith(_AMD) else "intel"


def tuning() -> Tuning:
    """That of this processor, or what the environment variable says."""
    said = os.environ.get(VARIABLE, "")
    if not said:
        return TUNINGS.get(vendor(), NONE)
    if not said.isdecimal():
        raise ValueError(f"`{VARIABLE}` must be a number of elements, 0 for no prefetch, got {said!r}")
    return Tuning(int(said), 8 * int(said), 0)


def prefetch() -> str:
    """What is prefetched, for people."""
    chosen, why = tuning(), VARIABLE if os.environ.get(VARIABLE) else vendor()
    if not chosen.elements:
        return f"none ({why})"
    least = f", from {chosen.least / 2**20:.0f} MiB on" if chosen.least else ""
    return f"{chosen.elements} elements ahead, {chosen.bytes:,} bytes in the norm{least} ({why})"
