"""The CUDA kernels on a GPU. Values keep clear of subnormals, which CuPy's -ftz=true flushes."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from gpu import tables_on_device
from members import (
    MAIN,
    MEMBERS,
    NAMES_AND_DTYPES,
    STORED,
    assert_same,
    by_reference,
    clocks_launch,
    launch_of,
    random_flats,
)
from norm_kernels import draw

from fastadam.kernels import GRADIENT, PARAMETER, TAKEN, norm
from fastadam.kernels.blocks import BLOCK, cut
from fastadam.kernels.texts import casts
from fastadam.kernels.texts.catch_up import CATCH_UP
from fastadam.kernels.texts.clip import clip

cupy = pytest.importorskip("cupy")
pytestmark = pytest.mark.gpu

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
members = pytest.mark.parametrize(("name", "dtype"), NAMES_AND_DTYPES)
SIZES = [1_001, 0, 130, 100_003]


class DeviceHome:
    """A place on the device for a copy of `array`, `shift` elements past a 64-byte boundary, between canaries."""

    CANARIES, CANARY = 512, 0xA5

    def __init__(self, array, shift=0):
        self.array, self.start = array, self.CANARIES + shift * array.itemsize
        self.stop = self.start + array.nbytes
        self.memory = cupy.full(self.stop + self.CANARIES, self.CANARY, np.uint8)
        self.memory[self.start : self.stop] = cupy.asarray(array.view(np.uint8))
        self.address = self.memory.data.ptr + self.start

    def leave(self):
        """Copy back what has become of the copy; nothing beside it was written."""
        memory = cupy.asnumpy(self.memory)
        assert (memory[: self.start] == self.CANARY).all(), "written before the beginning of an array"
        assert (memory[self.stop :] == self.CANARY).all(), "written past the end of an array"
        self.array.view(np.uint8)[...] = memory[self.start : self.stop]


def by_gpu(launch, *, guarded=False, folded=True):
    """Run a `members.Launch` on the device, in place; not `folded`, with the scalars that its table has."""
    from fastadam.kernels import cuda

    host, homes = launch.tables, []
    tables = tables_on_device(host, cupy.zeros(0))
    for index, arrays in enumerate(launch.parameters):
        names = ("g", *launch.update.flats)
        mine = [DeviceHome(arrays[name], launch.shift and launch.shift + n) for n, name in enumerate(names)]
        places = [*(home.address for home in mine), launch.places[index]]
        tables.write("addresses", (index, slice(GRADIENT, GRADIENT + len(places))), places)
        homes += mine
    passes = [each if folded else each._replace(clocks=np.zeros(0, np.int64)) for each in launch.passes]
    run = cuda.launcher(passes, tables, guarded=guarded)
    found_inf = cupy.asarray([host.record[TAKEN] == 0.0], np.float32)
    if not folded:
        tables.push(rows=True)
        tables.device_record[TAKEN] = host.record[TAKEN]
    elif guarded:
        tables.ask(found_inf_at=found_inf.data.ptr)
    run()
    for home in homes:
        home.leave()
    host.carried[...], host.table[...] = tables.carried, tables.table


def check_elements(launch, err_msg="", **how):
    """The elements become on the device what they become in the reference, with the scalars of its fold."""
    expected = copy.deepcopy(launch)
    by_reference(expected)
    for name in ("carried", "table"):
        getattr(launch.tables, name)[...] = getattr(expected.tables, name)
    by_gpu(launch, folded=False, **how)
    assert_same(launch, expected, err_msg)


@members
def test_elements_equal_the_reference(name, dtype):
    update = MEMBERS[name]
    for guarded in (False, True):
        for shift in (0, 1):
            launch = replace(clocks_launch(update, dtype, SIZES), shift=shift)
            check_elements(launch, f"guarded {guarded}, shift {shift}", guarded=guarded)
    for length in (1, 3, 31, 127, 128, 129, BLOCK - 1, 3 * BLOCK, 100_003):
        check_elements(launch_of(update, random_flats(update, dtype, length), step=6), f"length {length}")


@pytest.mark.parametrize("name", ["codes", "everything_codes"])
def test_blocks_of_many_elements_equal_the_reference(name, monkeypatch):
    from fastadam.kernels.cuda import step

    monkeypatch.setattr(step, "MANY", 1)
    check_elements(launch_of(MEMBERS[name], random_flats(MEMBERS[name], np.float32, 1_000_003)))


def test_elements_behind_the_end_do_not_count_for_an_exponent():
    update = MEMBERS["everything_codes"]
    for size in (1, 127, 129, 130):
        check_elements(launch_of(update, random_flats(update, np.float32, size), grad_scale=np.inf), f"size {size}")


@members
def test_fold_and_step_are_those_of_the_reference(name, dtype):
    launch = clocks_launch(MEMBERS[name], dtype, SIZES)
    expected, on_device = copy.deepcopy(launch), copy.deepcopy(launch)
    by_reference(expected)
    # The host folds.
    by_gpu(launch)
    assert_same(launch, expected)
    # And the device, whose roots, logarithms and powers of fractions may differ in the last bit of float64.
    launch = on_device
    by_gpu(launch, guarded=True)
    if MEMBERS[name].name not in ("nadam", "ademamix"):
        assert_same(launch, expected)
        return
    tolerance = 1e-6 if dtype is np.float32 else 1e-12
    np.testing.assert_array_equal(launch.tables.carried[:, 0], expected.tables.carried[:, 0])
    np.testing.assert_allclose(launch.tables.carried, expected.tables.carried, rtol=1e-14)
    np.testing.assert_allclose(launch.table, expected.table, rtol=tolerance, atol=0)
    if name not in STORED:
        for arrays, others in zip(launch.parameters, expected.parameters, strict=True):
            for flat in ("p", "g", "m"):
                np.testing.assert_allclose(arrays[flat], others[flat], rtol=tolerance, atol=tolerance, err_msg=flat)


@pytest.mark.parametrize("name", MAIN + STORED)
def test_a_step_that_is_not_taken_writes_nothing_but_zeros_into_the_gradients(name):
    launch = clocks_launch(MEMBERS[name], np.float32, SIZES)
    launch.table[...] = 7.0
    launch.tables.record[:] = np.nan, 0.0, np.nan, 1.0
    expected = copy.deepcopy(launch)
    by_gpu(launch, guarded=True)
    by_reference(expected)
    assert_same(launch, expected)


@dtypes
@pytest.mark.parametrize("sizes", [[1], [8_192, 8_193], [5, 0, 100_003, 127], [64 * 8_192 + 1], [1] * 9_000], ids=len)
def test_norm_equals_the_reference_bit_for_bit(dtype, sizes):
    from fastadam.kernels import cuda

    gradients = draw(sizes, dtype)
    on_device = [cupy.asarray(gradient) for gradient in gradients]
    tables = cuda.tables(len(sizes), 1, cupy.zeros(0))
    tables.addresses[:, GRADIENT] = [cuda.address(gradient) for gradient in on_device]
    tables.send()
    blocks = cut(np.array([(index, 0, 0, size, 0) for index, size in enumerate(sizes)]))
    sums = cupy.full(len(blocks), cupy.nan)
    squares = cuda.squares(dtype, "native", blocks, tables, sums)
    assert sums.size
    expected = clip(0.5, np.float64(norm.squared_norm(gradients)), 3.0, 1e30, 0.0)
    # Again and again: the counters of finished CUDA blocks go back to zero.
    for number in range(20):
        if number % 2:
            squares()
        cuda.clip(sums, 0.5, 3.0, 1e30, 0.0, tables, [] if number % 2 else [squares])
        np.testing.assert_array_equal(cupy.asnumpy(tables.record), [*expected, 0.0])


def test_norm_of_many_blocks_is_the_same_every_time():
    """132 multiprocessors finish in any order; the sum of 1.5e8 elements stays what the reference has."""
    from fastadam.kernels import cuda

    size = 150_000_000
    gradient = cupy.random.default_rng(0).standard_normal(size, np.float32)
    tables = cuda.tables(1, 1, gradient)
    tables.addresses[0, GRADIENT] = cuda.address(gradient)
    tables.send()
    blocks = cut(np.array([(0, 0, 0, size, 0)]))
    sums = cupy.zeros(len(blocks))
    squares = cuda.squares(np.float32, "native", blocks, tables, sums)
    squares()
    expected = norm.combine(cupy.asnumpy(sums))
    for _ in range(50):
        cuda.clip(sums, 1.0, np.inf, np.inf, 0.0, tables, [squares])
        assert float(tables.record[2]) == np.sqrt(expected)


@dtypes
def test_missed_steps_are_made_up_for_as_in_the_reference(dtype):
    from fastadam.kernels import cuda, reference

    rng = np.random.default_rng(1)
    host = [np.abs(rng.standard_normal(5_000)).astype(dtype) for _ in range(3)]
    device = [cupy.asarray(array) for array in host]
    table = rng.random((7, len(CATCH_UP.scalars))).astype(dtype) + dtype(0.1)
    blocks, starts = np.array([(0, 0, 0, 64, 0), (0, 1, 64, 65, 0), (0, 2, 300, 4_999, 0)])[:, :4], [0, 2, 2, 7]
    expected = np.array([[reference.address(array) for array in host]])
    addresses = np.array([[cuda.address(array) for array in device]])
    reference.catch_up(expected, dtype, blocks, table, np.array(starts))()
    cuda.catch_up(addresses, dtype, blocks, table, np.array(starts))()
    for actual, wanted in zip(device, host, strict=True):
        np.testing.assert_array_equal(cupy.asnumpy(actual), wanted)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_every_rounding_to_16_bits_equals_the_reference(kind):
    from fastadam.kernels import cuda

    bits = (np.arange(65_536, dtype=np.uint32) << np.uint32(16))[:, None] | np.array([0, 1, 0x1000, 0x8000, 0xFFFF])
    values = bits.astype(np.uint32).ravel().view(np.float32)
    values = values[~np.isnan(values)]
    rounded = cupy.zeros(values.size, np.uint16)
    cuda.copy_out(cupy.asarray(values), rounded, kind)
    expected = casts.to_bfloat16(values) if kind == "bfloat16" else casts.to_float16(values)
    np.testing.assert_array_equal(cupy.asnumpy(rounded), expected)


def test_elements_beyond_2_to_the_31():
    """The last 5,003 of 2**31 + 5,003 elements, in formats of 1 and 2 bytes, equal a parameter of their own."""
    from fastadam.kernels import cuda

    if cupy.cuda.runtime.memGetInfo()[0] < 16 * 2**30:
        pytest.skip("needs 16 GB of device memory")
    update, first, count = MEMBERS["dithered_codes"], 2**31, 5_003
    end = launch_of(update, random_flats(update, np.float32, count), place=123)
    arrays = {}
    for name, array in end.flats.items():
        offset = first // 128 if name.endswith("_exponent") else first
        arrays[name] = cupy.zeros(offset + array.size, array.dtype)
        arrays[name][offset:] = cupy.asarray(array)
    names = ("g", *update.flats)
    place = (123 - first // 128) % 2**32
    by_reference_end = copy.deepcopy(end)
    by_reference(by_reference_end)
    tables = tables_on_device(by_reference_end.tables, arrays["p"])
    places = [*(cuda.address(arrays[name]) for name in names), place]
    tables.write("addresses", (0, slice(len(places))), places)
    tables.push(rows=True)
    blocks = cut(np.array([(0, 0, 0, first + count, 0)]))
    each = end.passes[0]._replace(clocks=np.zeros(0, np.int64), blocks=blocks)
    cuda.launcher([each], tables, guarded=False)()
    for name, array in by_reference_end.flats.items():
        np.testing.assert_array_equal(cupy.asnumpy(arrays[name][-array.size :]), array, err_msg=name)
    assert not arrays["m"][:first].any()


# --- streams


def ready(size=1_000):
    """Arrays, tables and passes of Adam on the device, and the launch of a step."""
    from fastadam.kernels import cuda

    launch = launch_of(MEMBERS["adam"], random_flats(MEMBERS["adam"], np.float32, size))
    arrays = {name: cupy.asarray(array) for name, array in launch.flats.items()}
    tables = tables_on_device(launch.tables, arrays["p"])
    names = ("g", *MEMBERS["adam"].flats)
    tables.write("addresses", (0, slice(len(names))), [cuda.address(arrays[name]) for name in names])
    assert launch.passes[0].blocks[0, PARAMETER] == 0
    return arrays, tables, cuda.launcher(launch.passes, tables, guarded=False)


def test_addresses_arrive_before_the_launches_that_follow():
    arrays, tables, step = ready()
    gradients = [cupy.full(1_000, float(number), np.float32) for number in range(1, 40)]
    arrays["m"].fill(0)
    blend, expected = 0.1, 0.0
    for number, gradient in enumerate(gradients, 1):
        tables.addresses[0, GRADIENT] = gradient.data.ptr
        tables.send()
        step()
        # With the grad_scale of 0.5.
        expected += blend * (0.5 * number - expected)
    np.testing.assert_allclose(cupy.asnumpy(arrays["m"]), expected, rtol=1e-5)


def test_a_step_runs_on_the_current_stream_and_can_be_captured():
    arrays, tables, step = ready()
    tables.send()
    step()
    before = arrays["p"].copy()
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        # A capture fails on any synchronisation and on work for another stream.
        stream.begin_capture()
        tables.send()
        step()
        graph = stream.end_capture()
    np.testing.assert_array_equal(cupy.asnumpy(arrays["p"]), cupy.asnumpy(before))
    steps = float(tables.carried[0, 0])
    for _ in range(3):
        graph.launch(stream)
    stream.synchronize()
    assert not cupy.array_equal(arrays["p"], before)
    assert float(tables.carried[0, 0]) == steps + 3


def test_addresses_that_changed_are_refused_while_a_graph_is_captured():
    arrays, tables, step = ready()
    tables.send()
    step()
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    other = arrays["g"].copy()
    with stream:
        stream.begin_capture()
        tables.addresses[0, GRADIENT] = other.data.ptr
        with pytest.raises(RuntimeError, match="while a CUDA graph is captured"):
            tables.send()
        stream.end_capture()
    tables.send()
    step()
    cupy.cuda.Device().synchronize()
