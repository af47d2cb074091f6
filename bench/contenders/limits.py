"""No Adam: the loads and stores of a step with trivial arithmetic, in loops like those of the kernels."""

from functools import partial
from itertools import cycle
from weakref import WeakValueDictionary

import numpy as np
from numba import prange, set_num_threads

from fastadam.bench.bandwidth import BLOCK, MAKERS, reader, touched
from fastadam.bench.contender import Built, Contender, fewer_threads, limit_name
from fastadam.bench.contenders.fastadam_adam import ALL
from fastadam.bench.layouts import EXTRAS, FORMATS, KINDS, MEMORY, SPARSE, moves
from fastadam.kernels.cpu.jit import jit
from fastadam.kernels.cpu.threads import PARALLEL_FROM
from fastadam.kernels.texts.text import block, function


def build(params, grads, kind, layout, threads=None):
    if threads is not None:
        # This limit and its contender have a process for themselves.
        set_num_threads(threads)
    moved, size = moves(layout, kind), sum(p.size for p in params.values())
    parallel = size >= PARALLEL_FROM
    sizes = (*moved.read, *moved.updated, *moved.written)
    # Integers: no value makes them slower.
    arrays = [_memory(index, size * each).view(f"u{each}") for index, each in enumerate(sizes)]
    template = _touch(len(moved.read), len(moved.updated), len(moved.written))
    touch = jit(template, f"touch_{'parallel' if parallel else 'serial'}", template.__name__, parallel=parallel)
    # A step that zeroes its gradients has them restored just before, so the limit does that too.
    gradients = arrays[0] if moved.read else arrays[len(moved.updated) - 2]
    restore = None if moved.read else partial(gradients.fill, 1)
    if moved.part < 1:
        return Built(_part_by_part(touch, arrays, int(size * moved.part)), dict, dict)
    if not moved.first:
        return Built(partial(touch, *arrays), dict, dict, restore)
    read = reader(gradients, parallel=parallel)

    def step():
        read()
        touch(*arrays)

    return Built(step, dict, dict, restore)


def _part_by_part(touch, arrays, count):
    """A step over the next `count` elements each time, because rows of a table are not in a cache."""
    starts = range(0, arrays[0].size - count + 1, count)
    turns = cycle([[array[start : start + count] for array in arrays] for start in starts])
    return lambda: touch(*next(turns))


def of_memory(params, grads, kind, what):
    """Plain bandwidth: one array is read, copied or scaled into another."""
    size = sum(p.size for p in params.values())
    return Built(MAKERS[what](*(_memory(index, 4 * size).view(np.float32) for index in range(2))), dict, dict)


# What the values are does not matter, so the limits of a case share their memory.
_MEMORY: WeakValueDictionary[int, np.ndarray] = WeakValueDictionary()


def _memory(index, count):
    """The first so many bytes of the buffer of this index, for as long as anyone uses it."""
    held = _MEMORY.get(index)
    if held is None or held.size < count:
        held = _MEMORY[index] = touched(count)
    return held[:count]


def _touch(read, updated, written):
    """The loop over so many arrays that are read, updated and written."""
    reads, updates, writes = (
        [f"{kind}{i}" for i in range(count)] for kind, count in zip("ruw", (read, updated, written), strict=True)
    )
    names = [*reads, *updates, *writes]
    parts = [f"{name}_part = {name}[start : start + {BLOCK}]" for name in names]
    terms = [*(f"{name}_part[i]" for name in reads), "1"]
    statements = [f"u0_part[i] += {' + '.join(terms)}", *(f"{name}_part[i] += 1" for name in updates[1:])]
    statements += [f"{name}_part[i] = u0_part[i]" for name in writes]
    source = block(
        f"def touch({', '.join(names)}):",
        block(
            f"for index in prange((u0.size + {BLOCK - 1}) // {BLOCK}):",
            f"start = {BLOCK} * index",
            *parts,
            block("for i in range(u0_part.size):", *statements),
        ),
    )
    return function(source, prange=prange)


def _contender(layout, kinds, count=None):
    made = partial(build, layout=layout, threads=count)
    return Contender(limit_name(layout, count=count), made, (), kinds, layout, thread_count=count)


CONTENDERS = (
    *(_contender(layout, tuple(KINDS) if layout == "float32" else ALL) for layout in FORMATS),
    *(_contender(layout, ("extras",)) for layout in EXTRAS),
    *(_contender(layout, ("rows",)) for layout in SPARSE),
    *(_contender("float32", ("plain",), count) for count in fewer_threads()),
    *(Contender(limit_name(what), partial(of_memory, what=what), layout=what) for what in MEMORY),
)
