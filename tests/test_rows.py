"""Many rows of hyperparameters and many pieces in one launch: each row as if it were launched alone."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from members import MEMBERS, assert_same, by_cpu, by_reference, check, rows_launch

from fastadam.kernels import cpu

names = pytest.mark.parametrize("name", ["adam", "nadam", "everything"])
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
WAYS = {"reference": by_reference, "serial": by_cpu(False), "parallel": by_cpu(True)}
try:
    from cuda_host import HAS_COMPILER, by_host
except ImportError:
    pass
else:
    WAYS |= {"cuda": by_host(guarded=False), "guarded cuda": by_host(guarded=True)} if HAS_COMPILER else {}
ways = pytest.mark.parametrize("way", WAYS)
SIZES = {"two": [1_001, 130], "twenty": [0, 1, 2, 17, 0, 300, *range(60, 72), cpu.BLOCK + 1, 0]}


def launch_one_by_one(launch, run):
    """`run` a launch for each row of `launch`, with gradients that are arrays of their own."""
    for row in launch.rows:
        mine = [piece for piece in launch.pieces if piece[2] == row]
        run(
            replace(
                launch,
                gradients=[launch.gradients[n][first : first + stop - start] for start, stop, _, n, first in mine],
                pieces=[(start, stop, 0, index, 0) for index, (start, stop, *_) in enumerate(mine)],
                rows=np.array([0]),
                hyper=launch.hyper[row : row + 1],
                carried=launch.carried[row : row + 1],
                table=launch.table[row : row + 1],
            )
        )


@ways
@names
@pytest.mark.parametrize("count", SIZES)
@dtypes
def test_rows_in_one_launch_equal_launches_of_their_own(way, name, count, dtype):
    together = rows_launch(MEMBERS[name], dtype, SIZES[count])
    apart = copy.deepcopy(together)
    WAYS[way](together)
    launch_one_by_one(apart, WAYS[way])
    assert_same(together.arrays(), apart.arrays(), together.update)


@ways
@names
@pytest.mark.parametrize("count", SIZES)
@dtypes
def test_rows_in_one_launch_equal_the_reference(way, name, count, dtype):
    check(rows_launch(MEMBERS[name], dtype, SIZES[count], seed=1), WAYS[way])


@ways
def test_gaps_other_rows_and_the_rest_of_the_gradients_stay_as_they_are(way):
    launch = rows_launch(MEMBERS["everything"], np.float32, SIZES["twenty"])
    before = copy.deepcopy(launch)
    WAYS[way](launch)
    stepped, read = np.zeros(launch.flats["p"].size, bool), [np.zeros(g.size, bool) for g in launch.gradients]
    for start, stop, _, parameter, offset in launch.pieces:
        stepped[start:stop] = True
        read[parameter][offset : offset + stop - start] = True
    assert not stepped.all()
    for name, flat in launch.flats.items():
        np.testing.assert_array_equal(flat[~stepped], before.flats[name][~stepped])
        assert (flat != before.flats[name]).sum() > 0.9 * stepped.sum()
    for gradient, old, zeroed in zip(launch.gradients, before.gradients, read, strict=True):
        np.testing.assert_array_equal(gradient, np.where(zeroed, 0, old))
    np.testing.assert_array_equal(launch.hyper, before.hyper)
    np.testing.assert_array_equal(launch.carried[:-1, 0], before.carried[:-1, 0] + 1)
    np.testing.assert_array_equal(launch.carried[-1], before.carried[-1])
    np.testing.assert_array_equal(launch.table[-1], 0)


@ways
def test_a_launch_without_pieces_only_folds(way):
    launch = rows_launch(MEMBERS["adam"], np.float32, [3, 2])
    launch.pieces = []
    before = copy.deepcopy(launch)
    check(launch, WAYS[way])
    np.testing.assert_array_equal(launch.flats["p"], before.flats["p"])
    assert launch.table[0].any()
