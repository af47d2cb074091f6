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
