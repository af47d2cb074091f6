"""The `step` tensors of parameters, written and read together."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from fastadam.torch.counters import Counters, new_counters  # noqa: E402

COUNTS = {
    "alike": new_counters([3.0] * 4),
    "not alike": new_counters([3.0, 0.0, 5.0, 2.0]),
    "apart": [torch.tensor(3.0) for _ in range(4)],
    "in two dtypes": [*new_counters([3.0, 3.0]), torch.tensor(3.0, dtype=torch.float64), torch.tensor(4.0)],
}
GOING = {"all": None, "some": np.array([True, False, True, False]), "none": np.zeros(4, bool)}


@pytest.mark.parametrize("going", GOING.values(), ids=GOING)
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_those_that_go_on_do(counts, going):
    counters = Counters(counts)
    counters.keep()
    expected = np.array([float(tensor) for tensor in counts])
    for _ in range(3):
        counters.advance(going)
        expected += 1.0 if going is None else going
        np.testing.assert_array_equal(counters.values(), expected)
        assert [float(tensor) for tensor in counts] == expected.tolist()
        assert not counters.are_others()


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
def test_what_others_write_is_seen_and_gone_on_from(counts):
    counters = Counters(counts)
    counters.keep()
    counts[1].fill_(7.0)
    assert counters.are_others()
    counters.keep()
    expected = counters.values() + 1.0
    counters.advance()
    np.testing.assert_array_equal(counters.values(), expected)
    assert expected[1] == 8.0


def test_what_is_assigned_is_gone_on_from():
    counters = Counters(new_counters([0.0] * 3))
    counters.assign(np.array([1.0, 2.0, 3.0]))
    assert not counters.are_others()
    counters.advance()
    np.testing.assert_array_equal(counters.values(), [2.0, 3.0, 4.0])
    counters.assign(np.full(3, 9.0))
    counters.advance()
    np.testing.assert_array_equal(counters.values(), [10.0] * 3)
