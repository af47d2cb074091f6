"""The kernels that make up for the steps that rows have missed."""

import re
from unittest import mock

import numpy as np
import pytest
from machine_code import CALL, FUSED, PACKED, assembly, nothing_compiled
from members import has_cuda_host
from oracle import Home

from fastadam.kernels import cpu, reference
from fastadam.kernels.cpu import jit, threads
from fastadam.kernels.cpu.loop import repeated_loop_of
from fastadam.kernels.cpu.rows import catch_up_table
from fastadam.kernels.texts import catch_up

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def history_of(steps, eps, decay):
    """History and totals of so many steps."""
    history = np.column_stack([np.full(steps, 1e-3), eps, *np.broadcast_to([[decay], [0.1], [1e-3]], (3, steps))])
    totals = np.zeros((steps + 1, catch_up.TOTALS))
    for j, step in enumerate(history):
        catch_up.add_logs(totals[j], step, totals[j + 1])
    return history, totals


def addresses_of(parameters):
    return np.array([[cpu.address(array) for array in arrays] for arrays in parameters], np.int64)


@dtypes
@pytest.mark.parametrize("missed", [1, 2, 30, 700])
def test_quadrature_of_missed_steps(dtype, missed):
    """One row after steps that it missed, for every size of v, against the sum over these steps in float64."""
    v = np.logspace(-24, 0, 200).astype(dtype)
    m = np.sqrt(v)
    p = np.ones(200, dtype)
    history, totals = history_of(missed, 1e-8 * np.sqrt(1 - 0.999 ** np.arange(1, missed + 1)), 1 - 1e-5)
    expected_p, root = p.astype(np.float64), np.sqrt(v.astype(np.float64))
    for j, (size, eps_j, decay, _, _) in enumerate(history, start=1):
        expected_p = expected_p * decay - size * m * 0.9**j / (root * 0.999 ** (j / 2) + eps_j)
    expected = expected_p, m * 0.9**missed, v * 0.999**missed
    table, starts = catch_up_table(np.array([0]), missed, history, totals, p.dtype)
    cpu.catch_up(addresses_of([(p, m, v)]), p.dtype, np.array([[0, 0, 0, 200]]), table, starts)()
    unit = np.finfo(dtype).eps
    for actual, exact in zip((p, m, v), expected, strict=True):
        np.testing.assert_allclose(actual, exact, rtol=(4 + 2 * len(table)) * unit, atol=np.finfo(dtype).tiny)


def missed_steps(dtype):
    """(p, m, v) of two parameters, and blocks and table for rows that have missed 2, 30 and 200 steps."""
    rng, parameters = np.random.default_rng(5), []
    for size in (1_000, 20_000):
        p, m = (rng.standard_normal(size).astype(dtype) for _ in range(2))
        parameters.append((p, m, (rng.random(size) * 10.0 ** rng.uniform(-20, 0, size)).astype(dtype)))
    history, totals = history_of(200, 1e-8 * np.sqrt(1 - 0.999 ** np.arange(1, 201)), 0.999)
    table, starts = catch_up_table(np.array([0, 170, 198]), 200, history, totals, np.dtype(dtype))
    blocks = [[0, 0, 0, 64], [0, 2, 64, 65], [1, 0, 7, 8_199], [0, 1, 300, 517], [0, 2, 900, 1_000]]
    # Rows far from one another, which are prefetched.
    blocks += [[1, row % 3, 8_200 + 300 * row, 8_264 + 300 * row] for row in (5, 2, 30, 17, 9, 0)]
    return parameters, np.array(blocks), table, starts


def caught_up(catch, parameters, blocks, table, starts):
    """What `catch` makes of the parameters; it writes nothing beside them."""
    copies = [tuple(array.copy() for array in arrays) for arrays in parameters]
    homes = [[Home(array, shift) for shift, array in enumerate(arrays)] for arrays in copies]
    addresses = np.array([[home.address for home in row] for row in homes], np.int64)
    catch(addresses, parameters[0][0].dtype, blocks, table, starts)()
    for row in homes:
        for home in row:
            home.leave()
    return copies


def expected_rows(parameters, blocks, table, starts):
    parameters = [tuple(array.copy() for array in arrays) for arrays in parameters]
    for parameter, slot, start, stop in blocks:
        for row in table[starts[slot] : starts[slot + 1]]:
            arrays = [array[start:stop] for array in parameters[parameter]]
            for array, value in zip(arrays, catch_up.CATCH_UP.element(*arrays, *row), strict=True):
                array[...] = value
    return parameters


def assert_caught_up(catch, dtype):
    parameters, *rest = missed_steps(dtype)
    expected, actual = expected_rows(parameters, *rest), caught_up(catch, parameters, *rest)
    for wanted, arrays, before in zip(expected, actual, parameters, strict=True):
        np.testing.assert_array_equal(arrays, wanted)
        assert (np.array(arrays) != before).any(axis=1).all()


@dtypes
@pytest.mark.parametrize("parallel", [False, True], ids=["serial", "parallel"])
def test_missed_steps_on_the_cpu_are_the_text_on_numpy(dtype, parallel):
    with mock.patch.object(threads, "PARALLEL_FROM", 0 if parallel else 2**62):
        assert_caught_up(cpu.catch_up, dtype)


@dtypes
def test_missed_steps_on_the_reference_are_the_text_on_numpy(dtype):
    assert_caught_up(reference.catch_up, dtype)


@dtypes
@pytest.mark.skipif(not has_cuda_host(), reason="needs CuPy and g++")
def test_missed_steps_in_the_cuda_source_are_the_text_on_numpy(dtype):
    from cuda_host import cuda_on_host

    from fastadam.kernels import cuda

    with cuda_on_host():
        assert_caught_up(cuda.catch_up, dtype)


@dtypes
@pytest.mark.parametrize("rows", [3, 40])
def test_table_on_threads_is_that_of_one_thread(dtype, rows):
    history, totals = history_of(300, np.full(300, 1e-8), 0.999)
    lasts = np.arange(rows) * 7
    table, starts = catch_up_table(lasts, 300, history, totals, np.dtype(dtype))
    alone = [catch_up_table(lasts[row : row + 1], 300, history, totals, np.dtype(dtype))[0] for row in range(rows)]
    np.testing.assert_array_equal(table, np.concatenate(alone))
    assert np.diff(starts).tolist() == [len(each) for each in alone]


@dtypes
def test_loop_over_missed_steps_is_vectorised(dtype, tmp_path):
    with nothing_compiled(tmp_path):
        listing = assembly(jit.leaf(repeated_loop_of(catch_up.CATCH_UP, np.dtype(dtype))))
    for operation in ("sqrt", "div"):
        assert re.search(PACKED[dtype].format(operation), listing)
    assert not re.search(FUSED, listing)
    assert not re.search(CALL, listing)
