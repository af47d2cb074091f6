"""No Adam: the loads and stores of a step with trivial arithmetic, in loops like those of the kernels."""

from functools import partial
from weakref import WeakValueDictionary

import numpy as np
from numba import prange

from fastadam.bench.bandwidth import MAKERS, reader
from fastadam.bench.contender import Built, Contender, limit_name
from fastadam.bench.layouts import EXTRAS, FORMATS, KINDS, MEMORY, moves
from fastadam.kernels.cpu_jit import jit
from fastadam.kernels.cpu_threads import PARALLEL_FROM
from fastadam.kernels.text import block, function

_BLOCK = 16_384


def build(params, grads, kind, layout):
    moved, size = moves(layout, kind), sum(p.size for p in params.values())
    parallel = size >= PARALLEL_FROM
    sizes = (*moved.read, *moved.updated, *moved.written)
    # Integers: no value makes them slower.
    arrays = [_memory(index, size * each).view(f"u{each}") for index, each in enumerate(sizes)]
    template = _touch(len(moved.read), len(moved.updated), len(moved.written))
    touch = jit(template, f"touch_{'parallel' if parallel else 'serial'}", template.__name__, parallel=parallel)
    if not moved.first:
        return Built(partial(touch, *arrays), dict)
    read = reader(next(array for array in arrays if array.itemsize == moved.first), parallel=parallel)

    def step():
        read()
        touch(*arrays)

    return Built(step, dict)


def of_memory(params, grads, kind, what):
    """Plain bandwidth: one array is read, copied or scaled into another."""
    size = sum(p.size for p in params.values())
    return Built(MAKERS[what](*(_memory(index, 4 * size).view(np.float32) for index in range(2))), dict)


# What the values are does not matter, so the limits of a case share their memory.
_MEMORY: WeakValueDictionary[int, np.ndarray] = WeakValueDictionary()


def _memory(index, count):
    """The first so many bytes of the buffer of this index, for as long as anyone uses it."""
    held = _MEMORY.get(index)
    if held is None or held.size < count:
        held = _MEMORY[index] = np.ones(count, np.uint8)
    return held[:count]


def _touch(read, updated, written):
    """The loop over so many arrays that are read, updated and written."""
    reads, updates, writes = (
        [f"{kind}{i}" for i in range(count)] for kind, count in zip("ruw", (read, updated, written), strict=True)
    )
    names = [*reads, *updates, *writes]
    parts = [f"{name}_part = {name}[start : start + {_BLOCK}]" for name in names]
    terms = [*(f"{name}_part[i]" for name in reads), "1"]
    statements = [f"u0_part[i] += {' + '.join(terms)}", *(f"{name}_part[i] += 1" for name in updates[1:])]
    statements += [f"{name}_part[i] = u0_part[i]" for name in writes]
    source = block(
        f"def touch({', '.join(names)}):",
        block(
            f"for index in prange((u0.size + {_BLOCK - 1}) // {_BLOCK}):",
            f"start = {_BLOCK} * index",
            *parts,
            block("for i in range(u0_part.size):", *statements),
        ),
    )
    return function(source, prange=prange)


CONTENDERS = (
    *(Contender(limit_name(layout), partial(build, layout=layout), (), KINDS, layout) for layout in FORMATS),
    *(Contender(limit_name(layout), partial(build, layout=layout), (), ("extras",), layout) for layout in EXTRAS),
    *(Contender(limit_name(what), partial(of_memory, what=what), layout=what) for what in MEMORY),
)
