"""What is stepped: named sets of parameter shapes, and random values for them."""

from math import prod
from typing import NamedTuple

import numpy as np


class Workload(NamedTuple):
    """A set of float32 parameters."""

    name: str
    shapes: dict[str, tuple[int, ...]]

    @property
    def size(self) -> int:
        return sum(prod(shape) for shape in self.shapes.values())

    def random(self, seed: int) -> dict[str, np.ndarray]:
        """Separately allocated arrays of these shapes."""
        rng = np.random.default_rng(seed)
        return {name: rng.standard_normal(shape, np.float32) for name, shape in self.shapes.items()}


def flat(size: int) -> Workload:
    return Workload(f"flat {size:,}", {"flat": (size,)})


MLP = Workload(
    "MLP, 6 tensors",
    {"w1": (3, 64), "b1": (64,), "w2": (64, 64), "b2": (64,), "w3": (64, 1), "b3": (1,)},
)


def _resnet50() -> dict[str, tuple[int, ...]]:
    """Name -> shape of the parameters of ResNet-50 (He et al., 2015)."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name, outputs, inputs, size):
        shapes[f"{name}.weight"] = (outputs, inputs, size, size)
        shapes[f"{name}.norm.weight"] = shapes[f"{name}.norm.bias"] = (outputs,)

    convolution("stem", 64, 3, 7)
    inputs = 64
    for stage, (width, count) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)], start=1):
        for block in range(count):
            name = f"stage{stage}.{block}"
            convolution(f"{name}.reduce", width, inputs, 1)
            convolution(f"{name}.spatial", width, width, 3)
            convolution(f"{name}.expand", 4 * width, width, 1)
            if block == 0:
                convolution(f"{name}.shortcut", 4 * width, inputs, 1)
            inputs = 4 * width
    return {**shapes, "head.weight": (1_000, 2_048), "head.bias": (1_000,)}


RESNET50 = Workload("ResNet-50, 161 tensors", _resnet50())
