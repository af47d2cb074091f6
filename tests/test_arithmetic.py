"""The vector operations of a step: counted, and few, on processors that are not at hand too."""

import platform
from functools import cache

import pytest

from fastadam.bench.arithmetic import counted_for, main_loop, operations

on_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="operations are counted for x86")

# An element of plain Adam takes 13 operations of eight elements each.
MOST = {
    "sapphirerapids": {
        "float32": 13 / 8,
        "bfloat16 m, v": 33 / 8,
        "8-bit m, v": 45 / 8,
        "bfloat16 p, g, m, v": 45 / 8,
        "bfloat16 p, g, 8-bit m, v": 57 / 8,
    },
    "haswell": {"float32": 13 / 8, "bfloat16 m, v": 37 / 8, "8-bit m, v": 57 / 8},
}
found_for = cache(counted_for)


@on_x86
@pytest.mark.parametrize(("processor", "layout"), [(each, layout) for each in MOST for layout in MOST[each]])
def test_a_step_takes_few_vector_operations(processor, layout):
    # Another version of LLVM may need one more or one less.
    assert found_for(processor)[layout] <= MOST[processor][layout] + 1 / 8


LISTING = """
f:
.LBB0_1:
\tvmovups\t(%rdi), %ymm0
\tvsqrtps\t%ymm0, %ymm1
\tvdivps\t%ymm1, %ymm0, %ymm0
\tvpmovdb\t%ymm0, (%rsi)
\tvmulps\t(%rdx), %ymm0, %ymm2
\taddq\t$8, %rcx
\tjne\t.LBB0_1
.LBB0_2:
\tvdivps\t%xmm1, %xmm0, %xmm0
\tjne\t.LBB0_2
"""


def test_operations_are_counted_in_the_loop_of_the_widest_vectors():
    assert len(main_loop(LISTING)) == 8
    # The root, the division, twice for what narrows, the product.
    assert operations(LISTING) == 5 / 8
