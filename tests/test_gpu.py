"""The CUDA kernels on a GPU. Values keep clear of subnormals, which CuPy's -ftz=true flushes."""

import copy

import numpy as np
import pytest
from members import (
    MAIN,
    MEMBERS,
    NAMES_AND_DTYPES,
    STORED,
    assert_same,
    by_reference,
    launch_of,
    random_flats,
    rows_launch,
)

from fastadam.kernels import norm
from fastadam.kernels.texts import casts, fold

cupy = pytest.importorskip("cupy")
pytestmark = pytest.mark.gpu

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
members = pytest.mark.parametrize(("name", "dtype"), NAMES_AND_DTYPES)
SIZES = [1_001, 0, 130, 100_003]


class OnDevice:
    """The arguments of a `members.Launch` on the GPU, and `take` to copy what they have become."""

    def __init__(self, launch):
        from fastadam.kernels import cuda

        self.flats = tuple(map(cupy.asarray, launch.flats.values()))
        self.gradients = list(map(cupy.asarray, launch.gradients))
        self.hyper, self.carried, self.table = map(cupy.asarray, (launch.hyper, launch.carried, launch.table))
        self.rows = cupy.asarray(launch.rows)
        self.blocks = cuda.blocks_of(launch.pieces, self.table, launch.update.storage)
        self.addresses = cupy.asarray([cuda.address(gradient) for gradient in self.gradients])

    def take(self, launch):
        for name, flat in zip(launch.flats, self.flats, strict=True):
            launch.flats[name] = cupy.asnumpy(flat)
        launch.gradients = list(map(cupy.asnumpy, self.gradients))
        launch.carried, launch.table = cupy.asnumpy(self.carried), cupy.asnumpy(self.table)


@members
@pytest.mark.parametrize("guarded", [False, True], ids=["", "guarded"])
def test_rows_kernel_equals_the_reference(name, dtype, guarded):
    from fastadam.kernels import cuda

    launch = rows_launch(MEMBERS[name], dtype, SIZES)
    expected = copy.deepcopy(launch)
    by_reference(expected)
    launch.carried, launch.table = expected.carried, expected.table
    device = OnDevice(launch)
    pieces, count = device.blocks
    record = (cupy.asarray([0.5, 1.0, 0.0, 0.0]),) if guarded else ()
    kernel = cuda.step_rows(launch.update, guarded)
    kernel(device.addresses, pieces, len(pieces), device.table, *record, *device.flats, size=count)
    device.take(launch)
    assert_same(launch.arrays(), expected.arrays(), launch.update)


@members
@pytest.mark.parametrize("length", [1, 31, 128, 129, 100_003])
def test_flat_kernel_equals_the_reference(name, dtype, length):
    from fastadam.kernels import cuda

    launch = launch_of(MEMBERS[name], random_flats(MEMBERS[name], dtype, length), step=6)
    expected = copy.deepcopy(launch)
    by_reference(expected)
    launch.table = expected.table
    device = OnDevice(launch)
    cuda.launch_flat(launch.update, device.flats, device.gradients[0], launch.hyper[0], launch.carried[0], 0.5)
    device.carried = cupy.asarray(launch.carried)
    device.take(launch)
    assert_same(launch.arrays(), expected.arrays(), launch.update)


@pytest.mark.parametrize(("name", "dtype"), [pair for pair in NAMES_AND_DTYPES if pair[0] not in STORED])
def test_launcher_folds_and_steps_as_the_reference_does(name, dtype):
    from fastadam.kernels import cuda

    launch = rows_launch(MEMBERS[name], dtype, SIZES)
    expected = copy.deepcopy(launch)
    by_reference(expected)
    device = OnDevice(launch)
    call = cuda.launcher(launch.update, dtype, sum(SIZES))
    arguments = device.blocks, device.rows, device.hyper, device.carried, device.table, launch.grad_scale
    call(device.flats, device.addresses, *arguments)
    device.take(launch)
    # The power function of CUDA may differ in the last bit of float64.
    tolerance = 1e-6 if dtype is np.float32 else 1e-12
    for key, array in expected.arrays().items():
        if key != "low":
            np.testing.assert_allclose(launch.arrays()[key], array, rtol=tolerance, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("name", MAIN + STORED)
def test_a_step_that_is_not_taken_writes_nothing_but_zeros_into_the_gradients(name):
    from fastadam.kernels import cuda

    launch = rows_launch(MEMBERS[name], np.float32, SIZES)
    launch.table[...] = 7.0
    expected, device = copy.deepcopy(launch), OnDevice(launch)
    record = cupy.asarray([np.nan, 0.0, np.nan, 1.0])
    call = cuda.launcher(launch.update, np.float32, sum(SIZES))
    arguments = device.blocks, device.rows, device.hyper, device.carried, device.table, record
    call(device.flats, device.addresses, *arguments)
    device.take(launch)
    if "g" in launch.update.written:
        for start, stop, _, parameter, offset in launch.pieces:
            expected.gradients[parameter][offset : offset + stop - start] = 0.0
    assert_same(launch.arrays(), expected.arrays(), launch.update)


@dtypes
@pytest.mark.parametrize("sizes", [[1], [8_192, 8_193], [5, 0, 100_003, 127], [64 * 8_192 + 1]])
def test_norm_equals_the_reference_bit_for_bit(dtype, sizes):
    from fastadam.kernels import cuda

    gradients = [np.random.default_rng(size).standard_normal(size).astype(dtype) for size in sizes]
    on_device = [cupy.asarray(gradient) for gradient in gradients]
    blocks = norm.blocks_of(sizes)
    lanes, record = cupy.zeros((len(blocks), norm.LANES)), cupy.zeros(len(fold.RECORD))
    addresses = cupy.asarray([cuda.address(gradient) for gradient in on_device])
    cuda.squares_launcher(dtype, sum(sizes))(addresses, cupy.asarray(blocks), lanes)
    cuda.clip(lanes, 0.5, 3.0, 1e30, 0.0, record)
    expected = fold.clip(0.5, np.float64(norm.reference(gradients)), 3.0, 1e30, 0.0)
    np.testing.assert_array_equal(cupy.asnumpy(record), [*expected, 0.0])


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_every_rounding_to_16_bits_equals_the_reference(kind):
    from fastadam.kernels import cuda

    bits = (np.arange(65_536, dtype=np.uint32) << np.uint32(16))[:, None] | np.array([0, 1, 0x1000, 0x8000, 0xFFFF])
    values = bits.astype(np.uint32).ravel().view(np.float32)
    values = values[~np.isnan(values)]
    low = cupy.zeros(values.size, np.uint16)
    cuda.copy_out(cupy.asarray(values), low, kind)
    expected = casts.to_bfloat16(values) if kind == "bfloat16" else casts.to_float16(values)
    np.testing.assert_array_equal(cupy.asnumpy(low), expected)
