"""Sharded optimizers over the engines themselves: the same bits as one process, for every number of ranks."""

from functools import cache

import engines
import numpy as np
import pytest
from engines import needs_gloo, needs_mpi
from sharded_training import CASES, train

START = {"gloo": engines.gloo_ranks, "mpi": engines.mpi_ranks}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What each rank of an engine has after training, by engine and number of ranks."""

    @cache
    def found(engine, size):
        folder = tmp_path_factory.mktemp(f"{engine}{size}")
        engines.run(START[engine](size, "sharded_training.py", engine, folder))
        return [np.load(folder / f"{rank}.npz") for rank in range(size)]

    return found


@cache
def expected(case, size):
    return train(case, None, size)


def check(ranks, case, size):
    for rank, found in enumerate(ranks):
        for name, value in expected(case, size).items():
            np.testing.assert_array_equal(found[f"{case}/{name}"], value, f"{name} on rank {rank}")


@needs_gloo
@pytest.mark.xdist_group("engines")
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("case", CASES)
def test_gloo(trained, case, size):
    check(trained("gloo", size), case, size)


@needs_mpi
@pytest.mark.xdist_group("engines")
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_mpi(trained, case, size):
    check(trained("mpi", size), case, size)
