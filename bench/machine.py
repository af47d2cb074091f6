"""What runs on this machine: processor, threads, versions, devices."""

import datetime
import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numba

import fastadam
from fastadam.bench.contender import no_cuda
from fastadam.kernels.switches import flushes

PACKAGES = (
    "numpy",
    "numba",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "torch",
    "optax",
    "jax",
    "keras",
    "numexpr",
    "deepspeed",
    "apex",
    "bitsandbytes",
    "thinc",
    "torchao",
    "stable-baselines3",
)


def facts() -> dict[str, Any]:
    """The date, processor, threads and versions."""
    return {
        "date": str(datetime.date.today()),
        "processor": processor(),
        "vector width": f"{vector_bits()} bits",
        "caches": caches(),
        "cores": os.cpu_count(),
        "threads": numba.get_num_threads(),
        "threading layer": _threading_layer(),
        "system": f"{platform.system()} {platform.machine()}",
        "fastadam": fastadam.__version__,
        "Python": platform.python_version(),
        **versions(),
    }


def versions() -> dict[str, str]:
    """Package -> version, for each of `PACKAGES` that is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def processor() -> str:
    """The name of the processor, as far as the system tells it; without cpuinfo, what LLVM compiles for."""
    try:
        from cpuinfo import get_cpu_info
    except ModuleNotFoundError:
        import llvmlite.binding as llvm

        return f"unknown without py-cpuinfo, compiled for as {llvm.get_host_cpu_name()}"
    return get_cpu_info().get("brand_raw") or platform.processor() or platform.machine()


def vector_bits() -> int:
    """Width of the vector registers that the processor has and Numba knows of."""
    import llvmlite.binding as llvm

    features = numba.config.CPU_FEATURES or llvm.get_host_cpu_features().flatten()
    widths = (("+avx512f", 512), ("+avx2", 256), ("+avx", 256), ("+sve", 128), ("+neon", 128))
    return next((width for name, width in widths if re.search(re.escape(name) + r"\b", features)), 128)


def _threading_layer():
    from fastadam.bench.bandwidth import start_threads

    start_threads()
    return numba.threading_layer()


def caches() -> str:
    """Levels and sizes of the first processor's caches for data, as far as the system tells them.

    In a virtual machine cpuinfo takes an L3 of 32 MB for one of 1 MB.
    """
    found = []
    for each in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (each / "type").read_text().strip() != "Instruction":
            found.append(f"L{(each / 'level').read_text().strip()} {(each / 'size').read_text().strip()}")
    return ", ".join(found) or "unknown"


def kernel_cache() -> str:
    """The folder in which Numba caches compiled kernels."""
    from numba import config

    from fastadam.kernels.cpu.driver import fetch_far
    from fastadam.kernels.cpu.jit import jit

    if config.DISABLE_JIT:
        return "none: NUMBA_DISABLE_JIT is set, and steps run the NumPy reference"
    # Numba caches by folders of sources: this function lies in that of the kernels, and is not compiled here.
    path = getattr(jit(fetch_far, "fetch_far")._cache, "cache_path", None)
    return str(path) if path else "nowhere: every process compiles (no writable place for a cache)"


def subnormals() -> str:
    """What the kernels on the CPU make of subnormal numbers."""
    if flushes():
        return "zero"
    why = "NUMBA_DISABLE_JIT is set" if numba.config.DISABLE_JIT else "this processor has no mode for it"
    return f"kept: {why}"


def gpu() -> str:
    """The CUDA devices, and what a step launches there; or why there is none."""
    problem = no_cuda()
    if problem:
        return f"none: {problem}"
    import cupy

    runtime = cupy.cuda.runtime
    properties = [runtime.getDeviceProperties(number) for number in range(runtime.getDeviceCount())]
    devices = [f"{each['name'].decode()} (compute capability {each['major']}.{each['minor']})" for each in properties]
    return f"{', '.join(devices)}; CUDA runtime {runtime.runtimeGetVersion()}; {_launches()}"


def _launches():
    """What a step on a GPU is made of."""
    from fastadam.kernels.cuda.source import THREADS
    from fastadam.kernels.cuda.step import FEW_CODES, MANY, MANY_CODES, PLAIN

    assert PLAIN == FEW_CODES
    return (
        f"a step is one launch of {THREADS} threads for each {PLAIN:,} elements ({MANY_CODES:,} in 8-bit codes, from "
        f"{MANY:,} elements on); with a limit of a norm, `nonfinite` or a `grad_scale` on the device, and in a CUDA "
        "graph, one more comes before it"
    )


def versions_in_one_line(facts: Mapping[str, Any]) -> str:
    """What was installed."""
    return ", ".join(f"{name} {facts[name]}" for name in ("fastadam", "Python", *PACKAGES) if name in facts)


def in_one_line(facts: Mapping[str, Any]) -> str:
    """Processor, threads and versions."""
    known = {
        name: facts.get(name, "?") for name in ("processor", "vector width", "threads", "cores", "threading layer")
    }
    where = "{processor}, {vector width}, {threads} of {cores} threads ({threading layer})".format_map(known)
    return f"{where}; {versions_in_one_line(facts)}"
