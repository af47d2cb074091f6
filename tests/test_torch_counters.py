"""The `step` tensors of parameters, written and read together."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from fastadam.torch.counters import Counters, new_counters  # noqa: E402

COUNTS = {
    "alike": lambda: new_counters([3.0] * 4),
    "not alike": lambda: new_counters([3.0, 0.0, 5.0, 2.0]),
    "apart": lambda: [torch.tensor(3.0) for _ in range(4)],
    "in two dtypes": lambda: [*new_counters([3.0, 3.0]), torch.tensor(3.0, dtype=torch.float64), torch.tensor(4.0)],
    "with strides": lambda: list(torch.full((1, 4), 3.0).unbind(1)),
}
GOING = {"all": None, "some": np.array([True, False, True, False]), "none": np.zeros(4, bool)}


@pytest.mark.parametrize("going", GOING.values(), ids=GOING)
@pytest.mark.parametrize("made", COUNTS.values(), ids=COUNTS)
def test_those_that_go_on_do(made, going):
    counts = made()
    counters = Counters(counts)
    counters.keep()
    expected = np.array([float(tensor) for tensor in counts])
    for _ in range(3):
        counters.advance(going)
        expected += 1.0 if going is None else going
        np.testing.assert_array_equal(counters.values(), expected)
        assert [float(tensor) for tensor in counts] == expected.tolist()
        assert not counters.are_others()


@pytest.mark.parametrize("made", COUNTS.values(), ids=COUNTS)
def test_what_others_write_is_seen_and_gone_on_from(made):
    counts = made()
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


def test_what_float32_cannot_count_is_counted():
    (count,) = new_counters([2.0**24])
    counters = Counters([count])
    counters.keep()
    counters.advance()
    counters.advance()
    assert count.item() == 2.0**24 + 2.0
