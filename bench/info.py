"""`fastadam info`: what would run on this machine. It needs no extra."""

from numba import config

from fastadam.bench.bandwidth import bandwidth
from fastadam.bench.machine import facts, gpu, kernel_cache, subnormals
from fastadam.bench.registry import CONTENDERS
from fastadam.bench.tables import by_value
from fastadam.kernels.cpu.tuning import prefetch


def info() -> None:
    """Print one fact a line."""
    for name, value in facts().items():
        _show(name, value)
    _show("prefetch", prefetch())
    _show("subnormal numbers", subnormals())
    _show("kernel cache", kernel_cache())
    _show("GPU", gpu())
    # Where nothing is compiled, that would take minutes.
    measured = {} if config.DISABLE_JIT else bandwidth(rounds=5)
    for name, speed in measured.items():
        _show(f"memory bandwidth, {name}", f"{speed:.1f} GB/s")
    on_cpu = {name: contender.missing() for name, contender in CONTENDERS.items() if contender.device == "cpu"}
    for problem, names in by_value({name: problem for name, problem in on_cpu.items() if problem}).items():
        _show("not in the benchmark", f"{'; '.join(names)}: {problem}")


def _show(name, value):
    print(f"{name:<25}{value}")
