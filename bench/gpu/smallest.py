"""Whether numbers at and below the smallest normal one become on the device what they become on the CPU."""

from typing import Any

import numpy as np

import fastadam
from fastadam.bench.gpu.results import Results
from fastadam.bench.gpu.rig import FORMATS, Rig

# Those with float32 parameters, and rates of decay that move a moment to the smallest numbers in one step.
STORED = ("float32", "bfloat16 m, v", "8-bit m, v")
BETAS = (0.5, 0.75)
# Exponents of gradients: m is then about 2**-127 to 2**-124, or v is.
EXPONENTS = (-128, -127, -126, -125, -124, -64, -63, -62, -61)


def smallest(rig: Rig, results: Results) -> None:
    """Steps with gradients, parameters and moments around the smallest normal number, to the bit."""
    for stored in STORED:
        results.attempt(stored, _compared, rig, stored)


def numbers() -> np.ndarray:
    """float32 of each of the exponents, with fractions of all kinds and both signs, and zeros."""
    fractions = 1 + np.concatenate([[0.0, 2.0**-23, 2.0**-22, 1 - 2.0**-23], np.linspace(0.001, 0.999, 60)])
    positive = np.ldexp(fractions[np.newaxis], np.array(EXPONENTS)[:, np.newaxis]).astype(np.float32).reshape(-1)
    return np.concatenate([positive, -positive, [np.float32(0.0), np.float32(-0.0)]]).astype(np.float32)


def _compared(rig: Rig, stored: str) -> dict[str, Any]:
    """Whether all is equal, and how many numbers of a buffer are not."""
    here, there = (_trained(xp, stored) for xp in (np, rig.xp))
    unequal = {name: int((here[name] != there[name]).sum()) for name in here}
    return {"equal": not any(unequal.values()), "unequal": unequal, "numbers": len(numbers())}


def _trained(xp: Any, stored: str) -> dict[str, np.ndarray]:
    """The bits of parameters and moments after a few steps of arrays of `xp`."""
    gradient = numbers()
    # Each gradient meets another parameter.
    parameter = np.ldexp(np.roll(gradient, 7), -2).astype(np.float32)
    _, options = FORMATS[stored]
    optimizer = fastadam.AdamW({"p": xp.asarray(parameter)}, lr=2.0**-20, betas=BETAS, eps=1e-30, seed=1, **options)
    for number in range(4):
        optimizer.step({"p": xp.asarray(np.roll(gradient, number) * np.float32(1 + number / 4))})
    # Small gradients are copied on the CPU, and nowhere on a device.
    flats = {name: array for name, array in optimizer.buffers.flats.items() if name != "g"}
    flats["p"] = optimizer.params["p"]
    arrays = {name: array if isinstance(array, np.ndarray) else array.get() for name, array in flats.items()}
    return {name: array.view(f"u{array.itemsize}") for name, array in arrays.items()}
