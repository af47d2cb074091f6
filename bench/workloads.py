"""The workloads: named sets of parameter shapes, and random values for them."""

from math import prod
from typing import NamedTuple

import numpy as np

from fastadam.bench.layouts import ROWS


class Workload(NamedTuple):
    """A set of float32 parameters; with `some_rows`, only a part of the rows of each has a gradient."""

    name: str
    shapes: dict[str, tuple[int, ...]]
    some_rows: bool = False

    @property
    def size(self) -> int:
        return sum(prod(shape) for shape in self.shapes.values())

    def random(self, seed: int) -> dict[str, np.ndarray]:
        """Separately allocated arrays of these shapes."""
        rng = np.random.default_rng(seed)
        return {name: rng.standard_normal(shape, np.float32) for name, shape in self.shapes.items()}

    def gradients(self, seed: int) -> dict[str, np.ndarray]:
        """Random gradients. With `some_rows`, rows at both ends have one, so that they are the same rows in reverse."""
        arrays = self.random(seed)
        for array in arrays.values() if self.some_rows else ():
            side = int(len(array) * ROWS / 2)
            array[side:-side] = 0.0
        return arrays


def flat(size: int) -> Workload:
    return Workload(f"flat {size:,}", {"flat": (size,)})


def tensors(count: int, size: int) -> Workload:
    """`size` parameters in `count` tensors of one size; the last has what is left over."""
    sizes = [size // count] * (count - 1) + [size - size // count * (count - 1)]
    return Workload(f"{count:,} tensors of {size // count:,}", {f"t{i}": (each,) for i, each in enumerate(sizes)})


SPLITS = (flat(1_000_000), *(tensors(count, 1_000_000) for count in (10, 100, 1_000, 10_000)))

PAIR = Workload("2 tensors, 11 parameters", {"weights": (4, 2), "bias": (3,)})
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


def _gpt2() -> dict[str, tuple[int, ...]]:
    """Name -> shape of the parameters of GPT-2 of 124 million (Radford et al., 2019); embeddings are tied."""
    width = 768
    shapes: dict[str, tuple[int, ...]] = {"tokens": (50_257, width), "positions": (1_024, width)}
    for layer in range(12):
        for name, inputs, outputs in (
            ("attention", width, 3 * width),
            ("projection", width, width),
            ("up", width, 4 * width),
            ("down", 4 * width, width),
        ):
            shapes[f"{layer}.{name}.weight"], shapes[f"{layer}.{name}.bias"] = (inputs, outputs), (outputs,)
        for name in ("norm1", "norm2"):
            shapes[f"{layer}.{name}.weight"] = shapes[f"{layer}.{name}.bias"] = (width,)
    return {**shapes, "norm.weight": (width,), "norm.bias": (width,)}


RESNET50 = Workload("ResNet-50, 161 tensors", _resnet50())
GPT2 = Workload("GPT-2 124M, 148 tensors", _gpt2())
RECOMMENDER = Workload(
    "recommender, 1 table of 500,000 x 64",
    {
        "table": (500_000, 64),
        **{f"{layer}.weight": shape for layer, shape in enumerate([(64, 256), (256, 128), (128, 1)])},
        **{f"{layer}.bias": (size,) for layer, size in enumerate([256, 128, 1])},
    },
)
# Twenty groups, and as many as a large network has tensors.
GROUPED = (tensors(20, 10_000_000), tensors(20, 4_481), tensors(465, 46_500))
TABLE = Workload("table of 1,000,000 x 64", {"table": (1_000_000, 64)}, some_rows=True)
MODELS = (MLP, RESNET50, GPT2, RECOMMENDER)
_FLATS = tuple(flat(10**decade) for decade in range(2, 9))
# The workloads of plain steps, and all workloads.
GENERAL = (*_FLATS, *SPLITS[1:], *MODELS)
WORKLOADS = {workload.name: workload for workload in (*GENERAL, PAIR, *GROUPED, TABLE)}
