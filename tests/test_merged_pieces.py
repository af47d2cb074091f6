"""Parameters that lie one after the other are stepped as one piece, where nothing can tell."""

import numpy as np
import pytest
from oracle import assert_same_bits
from training import make, pmv

import fastadam

SHAPES = {"a": (32,), "b": (16, 3), "c": (16,), "d": (5,), "e": (16,)}


def pieces(opt, grads=None):
    opt.step(grads)
    (prepared,) = list(opt._engine.plan._prepared.values())[-1:]
    blocks = prepared.launch.held[1]
    return len(blocks)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        # "d" leaves a gap before "e".
        ({}, 2),
        ({"amsgrad": True}, 2),
        # A cache line holds 32 elements of bfloat16.
        ({"moment_dtype": "bfloat16", "rounding": "nearest"}, 4),
        ({"moment_dtype": "bfloat16"}, 5),
    ],
    ids=str,
)
def test_neighbours_in_the_buffers_are_one_piece(options, count):
    opt, other = (fastadam.Adam(make(SHAPES), flat=True, **options) for _ in range(2))
    grads = make(SHAPES, 1)
    for name, gradient in grads.items():
        opt.grads[name] = gradient
    assert [pieces(opt) for _ in range(3)] == [count] * 3
    # New arrays are copied into the buffer; those that come again are read where they lie.
    assert [pieces(other, grads) for _ in range(3)] == [count, len(SHAPES), len(SHAPES)]
    assert_same_bits(pmv(opt), pmv(other))


def test_groups_and_parameters_without_a_gradient_are_apart():
    first, second = ({name: array} for name, array in make({"a": (32,), "b": (32,)}).items())
    opt = fastadam.Adam([{"params": first}, {"params": second, "lr": 0.5}], flat=True)
    opt.grads["a"], opt.grads["b"] = 1.0, 1.0
    assert pieces(opt) == 2
    one = fastadam.Adam(make({"a": (32,), "b": (32,)}), flat=True)
    one.step({"a": np.ones(32, np.float32), "b": None})
    one.grads["a"] = 1.0
    assert pieces(one) == 2
