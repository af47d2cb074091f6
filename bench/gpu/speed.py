"""How fast steps are on the device, beside torch's fused optimizer and a copy, and what they cost the host."""

from functools import partial
from typing import Any

import numpy as np

import fastadam
from fastadam.bench.gpu.results import Results
from fastadam.bench.gpu.rig import FORMATS, Rig, Shapes
from fastadam.bench.workloads import GPT2, tensors

SIZES = (1_000_000, 10_000_000, 100_000_000)
CLIPPED: dict[str, Any] = {"max_grad_norm": 1.0}
SKIPPING = {**CLIPPED, "nonfinite": "skip"}


def flat(rig: Rig, results: Results) -> None:
    """Picoseconds an element of one flat array, in every format, and clipped."""
    for size in dict.fromkeys(map(rig.size, SIZES)):
        results.attempt(f"{size:,}", _flat, rig, size)


def _flat(rig, size):
    source, target = rig.tensor(size), rig.tensor(size)
    steps = {"copy": lambda: target.copy_(source)}
    steps["torch, fused"] = rig.fused([(size,)]).step
    steps["torch, fused, bfloat16"] = rig.fused([(size,)], "bfloat16").step
    steps |= {f"fastadam, {stored}": rig.flat(size, stored).step for stored in FORMATS}
    steps["fastadam, float32, clipped"] = rig.flat(size, "float32", **CLIPPED).step
    steps["fastadam, float32, clipped and skipping"] = rig.flat(size, "float32", **SKIPPING).step
    steps["fastadam, 8-bit m, v, clipped"] = rig.flat(size, "8-bit m, v", **CLIPPED).step
    return _an_element(rig.milliseconds(steps, 10 if size <= 10_000_000 else 3, 7, 4.0), size)


def counts(rig: Rig, results: Results) -> None:
    """Picoseconds an element of more and more arrays where they lie, and 4 bytes off alignment."""
    shapes = [tuple(map(rig.size, shape)) for shape in GPT2.shapes.values()]
    if rig.dry:
        shapes = [tuple(min(length, 8) for length in shape) for shape in shapes]
    results.attempt("GPT-2", _counts, rig, shapes, tuple(FORMATS), 8.0)
    for count in (150, 1_000):
        few = rig.count(count)
        shapes = list(tensors(few, rig.size(100_000_000) // few * few).shapes.values())
        results.attempt(f"{count:,} tensors", _counts, rig, shapes, ("float32", "8-bit m, v"), 16.0)
    results.attempt("4 bytes off", _shifted, rig, rig.size(100_000_000))


def _counts(rig: Rig, shapes: Shapes, stored: tuple[str, ...], ahead: float) -> dict[str, float]:
    steps = {"torch, fused": rig.fused(shapes).step}
    for each in stored:
        optimizer, gradients = rig.many(shapes, each)
        steps[f"fastadam, {each}, step(grads)"] = partial(optimizer.step, gradients)
    steps["fastadam, float32"] = rig.written(shapes).step
    steps["fastadam, float32, flat=True"] = rig.written(shapes, flat=True).step
    optimizer, gradients = rig.many(shapes, **CLIPPED)
    steps["fastadam, float32, clipped, step(grads)"] = partial(optimizer.step, gradients)
    return _an_element(rig.milliseconds(steps, 3, 5, ahead), sum(int(np.prod(shape)) for shape in shapes))


def _shifted(rig, size):
    params, gradients = rig.array(size + 1, "float32", 0), rig.array(size + 1, "float32", 1)
    optimizer = fastadam.Adam({"p": params[1:]})
    steps = {"aligned": rig.flat(size, "float32").step, "4 bytes off": partial(optimizer.step, {"p": gradients[1:]})}
    return _an_element(rig.milliseconds(steps, 3, 7, 3.0), size)


def _an_element(milliseconds, size):
    """Picoseconds an element."""
    return {name: round(value * 1e9 / size, 3) for name, value in milliseconds.items()}


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped": CLIPPED,
    "skipping": SKIPPING,
    "scheduled": {"lr": lambda step: 1e-3},
}


def host(rig: Rig, results: Results) -> None:
    """Microseconds that a step takes the host."""
    for count, calls in ((1, 200), (148, 50), (1_000, 10)):
        shapes = [(100_000,)] if count == 1 else [(2_000,)] * rig.count(count)
        results.attempt(f"{count:,}", _host, rig, shapes, calls)
    results.attempt("adam_step", _adam_step, rig)
    results.attempt("512 rows", _rows, rig)


def _host(rig, shapes, calls):
    found = {}
    for way, options in WAYS.items():
        optimizer, gradients = rig.many(shapes, **options)
        elsewhere = rig.arrays(shapes, "float32", 9_000)
        turns = [gradients, elsewhere]
        found[f"{way}, step(grads)"] = rig.microseconds(partial(optimizer.step, gradients), calls)
        found[f"{way}, step(grads), elsewhere each time"] = rig.microseconds(partial(_turn, optimizer, turns), calls)
        found[f"{way}, written"] = rig.microseconds(rig.written(shapes, flat=True, **options).step, calls)
    optimizer, _ = rig.many(shapes)
    turns = [{index: rig.tensor(shape) for index, shape in enumerate(shapes)} for _ in range(2)]
    found["plain, step(grads) of tensors"] = rig.microseconds(partial(optimizer.step, turns[0]), calls)
    found["plain, step(grads) of tensors, elsewhere each time"] = rig.microseconds(
        partial(_turn, optimizer, turns), calls
    )
    found["torch, fused"] = rig.microseconds(rig.fused(shapes).step, calls)
    return found


def _turn(optimizer, turns):
    """A step with the gradients whose turn it is."""
    turns.append(turns.pop(0))
    optimizer.step(turns[0])


def _adam_step(rig):
    p, g, m = (rig.array(100_000, "float32", seed) for seed in range(3))
    return rig.microseconds(partial(fastadam.adam_step, p, g, m, g * g, step=3), 100)


def _rows(rig):
    optimizer = fastadam.Adam({"table": rig.array((50_000, 64), "float32", 0)})
    rows = np.random.default_rng(0).choice(50_000, 512, replace=False)
    gradient = fastadam.SparseRows(rig.xp.asarray(rows), rig.array((512, 64), "float32", 1))
    return rig.microseconds(partial(optimizer.step, {"table": gradient}), 50)
