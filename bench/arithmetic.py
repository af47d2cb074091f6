"""What the arithmetic of a step takes where memory does not count: measured in the cache, and counted in machine code.

    python -m fastadam.bench.arithmetic docs/arithmetic.json

saves both for docs/publish.py.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numba
import numpy as np

import fastadam
from fastadam.bench.contenders.fastadam_formats import OPTIONS
from fastadam.bench.interleave import interleave, timed
from fastadam.bench.machine import facts
from fastadam.kernels.cpu import jit
from fastadam.kernels.cpu.loop import loop_of

# All buffers together fit into the caches of one core.
SIZE = 16_384
# Instructions are counted for these processors, by LLVM's names; the first is this one.
PROCESSORS = ("", "sapphirerapids", "haswell")
_PROGRAM = "from fastadam.bench.arithmetic import counted; print(counted())"


def optimizers() -> dict[str, Any]:
    """Layout -> an optimizer of `SIZE` parameters stored so, with gradients."""
    made = {}
    for layout, asked in {"float32": {}, **OPTIONS}.items():
        options = dict(asked)
        rng, dtype = np.random.default_rng(0), np.dtype(options.pop("dtype", np.float32))
        params = {"p": rng.standard_normal(SIZE).astype(dtype)}
        made[layout] = fastadam.Adam(params, flat=True, **options)
        made[layout].grads["p"] = rng.standard_normal(SIZE).astype(dtype)
    return made


def measured() -> dict[str, float]:
    """Layout -> nanoseconds an element on one thread, in the cache."""
    numba.set_num_threads(1)
    times = interleave({layout: timed(each.step) for layout, each in optimizers().items()}, rounds=51)
    return {layout: 1e9 * median(each) / SIZE for layout, each in times.items()}


def counted() -> str:
    """JSON of layout -> vector operations an element in the machine code, for the processor that Numba compiles for."""
    found = {}
    for layout, optimizer in optimizers().items():
        part = optimizer._engine.plan.part_of(0)
        compiled = jit.leaf(loop_of(part.update, part.arithmetic))
        found[layout] = operations(compiled._library.get_asm_str())
    return json.dumps(found)


def operations(listing: str) -> float:
    """The vector operations an element in the loop of a step on x86: all but plain loads and stores.

    What narrows a vector counts twice, as processors of Intel count it.
    """
    loop = main_loop(listing)
    vectors = [line.split()[0] for line in loop if line.startswith("\tv")]
    work = sum(1 + bool(re.match("vpmov[dq][bw]", name)) for name in vectors if not re.match("vmov[^ms]", name))
    return work / _width(loop)


def _width(loop):
    """How many elements a vector has in a loop with one division."""
    (division,) = [line for line in loop if "\tvdivps" in line]
    return {"x": 4, "y": 8, "z": 16}[division[division.index("mm") - 1]]


def main_loop(listing: str) -> list[str]:
    """The lines of the loop in which elements are stepped by the widest vectors."""
    lines, begins, loops = listing.splitlines(), {}, []
    for number, line in enumerate(lines):
        label, jump = re.match(r"(\.L\w+):", line), re.match(r"\tj\w+\s+(\.L\w+)", line)
        if label:
            begins[label[1]] = number
        elif jump and jump[1] in begins:
            loops.append(lines[begins[jump[1]] : number + 1])
    innermost = [loop for loop in loops if sum("\tvdivps" in line for line in loop) == 1]
    return min(innermost, key=lambda loop: (-_width(loop), len(loop)))


def counted_for(processor: str) -> Mapping[str, float]:
    """What `counted` finds for a processor, by LLVM's name; "": this one."""
    target = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": ""} if processor else {}
    # Numba has no listing of what it loads from its cache.
    with tempfile.TemporaryDirectory() as empty:
        environment = {**os.environ, **target, "NUMBA_CACHE_DIR": empty}
        command = [sys.executable, "-c", _PROGRAM]
        return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main(path: str) -> None:
    """Save what is measured and counted."""
    saved = {
        "machine": facts(),
        "nanoseconds": measured(),
        "operations": {processor or "this one": counted_for(processor) for processor in PROCESSORS},
    }
    Path(path).write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
