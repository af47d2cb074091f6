"""Arrays, optimizers and clocks on a GPU; in a dry run on NumPy arrays and tensors on the CPU, which times nothing."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

import fastadam
from fastadam.memory.arrays import array_dtype

# Format -> dtype of parameters and gradients, and options; named as in `bench.layouts`.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("float32", {}),
    "bfloat16 m, v": ("float32", {"moment_dtype": "bfloat16"}),
    "8-bit m, v": ("float32", {"moment_dtype": "float8"}),
    "bfloat16 p, g, m, v": ("bfloat16", {"moment_dtype": "bfloat16"}),
    "bfloat16 p, g, 8-bit m, v": ("bfloat16", {"moment_dtype": "float8"}),
}
# Spins of `torch.cuda._sleep` in a millisecond, at the 1.98 GHz that an H200 has at most.
SPINS = 1_980_000
Shapes = Sequence[tuple[int, ...]]


class Rig:
    """Where a part of the day works."""

    def __init__(self, dry: bool):
        import torch

        self.dry, self.torch = dry, torch
        self.device = "cpu" if dry else "cuda"
        if dry:
            self.xp: Any = np
        else:
            import cupy

            self.xp = cupy

    def size(self, size: int) -> int:
        """`size`, or as much of it as a dry run takes."""
        return min(size, 5_000) if self.dry else size

    def count(self, count: int) -> int:
        """`count` tensors, or as many of them as a dry run takes."""
        return min(count, 20) if self.dry else count

    def wait(self) -> None:
        """Wait until all that was launched has run."""
        if not self.dry:
            self.torch.cuda.synchronize()

    def array(self, shape: Any, dtype: str, seed: int) -> Any:
        """An array of random numbers; bfloat16 is its bits, as CuPy has it."""
        self.torch.manual_seed(seed)
        tensor = self.torch.randn(shape, device=self.device)
        if dtype == "bfloat16":
            bits = self.xp.from_dlpack(tensor.bfloat16().view(self.torch.int16)).copy()
            return bits.view(array_dtype("bfloat16", bits))
        return self.xp.from_dlpack(tensor).copy()

    def arrays(self, shapes: Shapes, dtype: str, seed: int) -> dict[int, Any]:
        """An array of each of the shapes."""
        return {index: self.array(shape, dtype, seed + index) for index, shape in enumerate(shapes)}

    def flat(self, size: int, stored: str, **options: Any) -> fastadam.Adam:
        """An optimizer of one flat array whose gradients are written."""
        dtype, more = FORMATS[stored]
        optimizer = fastadam.Adam(self.array(size, dtype, 0), **more, **options)
        optimizer.buffers.g[...] = self.array(size, dtype, 1)
        return optimizer

    def many(self, shapes: Shapes, stored: str = "float32", **options: Any) -> tuple[fastadam.Adam, dict[int, Any]]:
        """An optimizer of arrays of these shapes, and gradients by name."""
        dtype, more = FORMATS[stored]
        return fastadam.Adam(self.arrays(shapes, dtype, 0), **more, **options), self.arrays(shapes, dtype, 5_000)

    def written(self, shapes: Shapes, stored: str = "float32", **options: Any) -> fastadam.Adam:
        """An optimizer of arrays of these shapes whose gradients are written."""
        optimizer, gradients = self.many(shapes, stored, **options)
        for name, gradient in gradients.items():
            optimizer.grads[name] = gradient
        return optimizer

    def fused(self, shapes: Shapes, dtype: str = "float32") -> Any:
        """Torch's fused optimizer of tensors of these shapes, with gradients."""
        tensors = [self.tensor(shape, dtype) for shape in shapes]
        for tensor in tensors:
            tensor.grad = self.tensor(tensor.shape, dtype)
            tensor.requires_grad_()
        return self.torch.optim.Adam(tensors, fused=True)

    def tensor(self, shape: Any, dtype: str = "float32") -> Any:
        """A tensor of random numbers."""
        return self.torch.randn(shape, device=self.device).to(getattr(self.torch, dtype))

    def milliseconds(
        self, steps: Mapping[str, Callable[[], Any]], calls: int, rounds: int, ahead: float
    ) -> dict[str, float]:
        """Median times of a call on the device, all in turns; the host is `ahead` by so many milliseconds."""
        for step in [*steps.values()] * 2:
            step()
        self.wait()
        if self.dry:
            return dict.fromkeys(steps, 1.0)
        found: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(rounds):
            names = list(steps)
            for name in [*names[number % len(names) :], *names[: number % len(names)]]:
                found[name].append(self._time_on_device(steps[name], calls, ahead))
        return {name: median(times) for name, times in found.items()}

    def _time_on_device(self, step, calls, ahead):
        event = self.torch.cuda.Event
        start, stop = event(enable_timing=True), event(enable_timing=True)
        # Meanwhile the host launches all that is timed.
        self.torch.cuda._sleep(int(SPINS * ahead))
        start.record()
        for _ in range(calls):
            step()
        stop.record()
        self.wait()
        return start.elapsed_time(stop) / calls

    def microseconds(self, step: Callable[[], Any], calls: int, rounds: int = 5) -> float:
        """Median time of a call on the host, which waits for the device only between rounds."""
        found = []
        for _ in range(3):
            step()
        if self.dry:
            return 1.0
        for _ in range(rounds):
            self.wait()
            began = time.perf_counter()
            for _ in range(calls):
                step()
            found.append((time.perf_counter() - began) / calls * 1e6)
        return round(median(found), 2)
