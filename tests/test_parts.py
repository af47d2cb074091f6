"""How blocks are shared out to threads: each is in one part, and all parts cost about the same."""

from itertools import pairwise

import numba
import numpy as np
import pytest

from fastadam.kernels.blocks import BLOCK
from fastadam.kernels.cpu.driver import COST, parts_of

SIZES = {
    "none": [],
    "one": [5],
    "one large": [BLOCK],
    "large ones": [BLOCK] * 101,
    "rows": [64] * 10_000,
    "small ones last, as groups without decay are": [BLOCK] * 20 + [64] * 30,
    "small ones first": [64] * 3_000 + [BLOCK] * 50,
    "in turns": [BLOCK, 64, 1_024, 3] * 40,
}


@pytest.fixture(params=[1, 2, 64])
def most(request, monkeypatch):
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", request.param)
    return request.param


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_each_block_is_in_one_part(sizes, most):
    parts = parts_of(np.array(sizes, np.int64))
    assert parts.dtype == np.int64
    assert parts[0] == 0
    assert parts[-1] == len(sizes)
    assert (np.diff(parts) >= 0).all()
    assert (len(parts) - 1) % most == 0


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_threads_get_work_of_about_the_same_cost(sizes, most):
    costs = np.array(sizes, np.int64) + COST
    parts = parts_of(costs - COST)
    mine = np.array([costs[start:stop].sum() for start, stop in pairwise(parts)])
    of_threads = mine.reshape(most, -1).sum(axis=1)
    # The block in the middle of which the work is cut, at either end.
    assert (abs(of_threads - costs.sum() / most) <= BLOCK + COST).all()
    if len(sizes):
        assert abs(mine - costs.sum() / len(mine)).max() <= BLOCK + COST
