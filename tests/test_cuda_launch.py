"""What the CUDA backend launches, where and in which order, on a stand-in for CuPy; the host runs the kernels."""

import contextlib
import copy
from unittest import mock

import numpy as np
import pytest
from members import MEMBERS, by_cuda_host, check, clocks_launch, launch_of, random_flats, tables_of
from norm_kernels import draw

pytest.importorskip("cupy")

import cuda_host
from cuda_host import HAS_COMPILER, OnHost, Stream, cuda_on_host, cuda_tables_like, on_host, run_on_host

from fastadam.kernels import GRAD_SCALE, GRADIENT, SKIPPED, TAKEN, Pass, cuda, norm, reference
from fastadam.kernels.blocks import BLOCK, cut
from fastadam.kernels.cuda import norm as cuda_norm
from fastadam.kernels.cuda import step as cuda_step
from fastadam.kernels.cuda.source import THREADS, kernel_of
from fastadam.kernels.texts.clip import clip
from fastadam.kernels.texts.member import CLIP

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="needs g++")


def launched(launch, guarded, stream, steps=1, before=lambda tables: None):
    """Run `launch` by `cuda.launcher` in `stream`, so many times; the tables, as they have become."""
    with cuda_on_host(stream):
        tables = cuda_tables_like(launch.tables)

        def launcher(passes, host_tables, *, guarded):
            tables.write("addresses", ..., host_tables.addresses)
            run = cuda.launcher(passes, tables, guarded=guarded)
            return lambda: [run_step(run) for _ in range(steps)]

        def run_step(run):
            before(tables)
            tables.send()
            stream.log.append("step")
            run()

        launch.run(launcher, guarded=guarded)
    return tables


def test_a_plain_step_is_one_copy_and_one_launch():
    stream = Stream()
    launched(clocks_launch(MEMBERS["adam"], np.float32, [300, 70] * 10), False, stream, steps=2)
    assert stream.log[stream.log.index("step") :] == ["step", "copy", "fastadam_adam_step"] * 2
    # What is launched later is compiled by launches over nothing, if it was not before.
    assert set(stream.log[: stream.log.index("step")]) <= {"fastadam_adam_step", "fastadam_settle_adam"}


@pytest.mark.parametrize("guarded", [False, True])
def test_a_step_that_the_device_decides_about_is_two_launches(guarded):
    end, factor = "_guarded" * guarded, np.ones(1, np.float32)
    stream = Stream()
    launch = clocks_launch(MEMBERS["adam"], np.float32, [300, 70] * 10)
    launched(launch, guarded, stream, 2, lambda tables: tables.ask(factor_at=factor.ctypes.data))
    step = ["fastadam_settle_adam", f"fastadam_adam_step{end}"]
    # Once the clocks are on the device, nothing is copied.
    assert stream.log[stream.log.index("step") :] == ["step", "copy", *step, "step", *step]


@pytest.mark.parametrize("dtypes", [(np.float32, np.float32), (np.float64, np.float32)])
def test_clocks_of_several_texts_are_folded_in_one_launch(dtypes):
    updates, factor = [MEMBERS["adamw"], MEMBERS["radam"]], np.ones(1, np.float32)
    expected = tables_of(updates[0], 0, [2.0, 4.0, 300.0])
    clocks, none = [np.array([2, 0]), np.array([1])], np.zeros((0, 5), np.int64)
    passes = [Pass(*each, none) for each in zip(updates, map(np.dtype, dtypes), clocks, strict=True)]
    with cuda_on_host() as stream:
        tables = cuda_tables_like(expected)
        run = cuda.launcher(passes, tables, guarded=False)
        tables.ask(factor_at=factor.ctypes.data)
        del stream.log[:]
        run()
    reference.launcher(passes, expected, guarded=False)()
    assert stream.log[:2] == ["copy", "fastadam_settle_adam_radam"]
    for clock, dtype in ((0, dtypes[0]), (1, dtypes[1]), (2, dtypes[0])):
        folded, others = (np.ascontiguousarray(each.table[clock]).view(dtype) for each in (tables, expected))
        np.testing.assert_array_equal(folded, others)
    np.testing.assert_array_equal(tables.carried, expected.carried)


@pytest.mark.parametrize("name", ["adam", "nadam", "codes"])
def test_what_lies_on_the_device_is_multiplied_divided_and_skips(name):
    update, numbers = MEMBERS[name], np.array([0.75, 4.0, 0.0], np.float32)
    places = numbers.ctypes.data + 4 * np.arange(3)

    def decided(tables):
        tables.ask(*places.tolist())

    flats, expected = random_flats(update, np.float32, 1_000), None
    for skipped in (0.0, 1.0):
        numbers[2] = skipped
        launch = launch_of(update, copy.deepcopy(flats), grad_scale=0.5)
        expected = launch_of(update, copy.deepcopy(flats), grad_scale=0.5 * 0.75 / 4.0)
        expected.tables.record[TAKEN] = 1.0 - skipped
        expected.run(reference.launcher, guarded=True)
        tables = launched(launch, True, Stream(), before=decided)
        for flat, array in expected.flats.items():
            np.testing.assert_array_equal(launch.flats[flat], array, flat)
        np.testing.assert_array_equal(tables.carried, expected.tables.carried)
        assert tables.record[TAKEN] == 1.0 - skipped
        assert tables.record[SKIPPED] == skipped


def test_only_a_guarded_step_asks_whether_it_is_taken():
    launch = launch_of(MEMBERS["adam"], random_flats(MEMBERS["adam"], np.float32, 1_000))
    before = launch.flats["p"].copy()
    tables = launched(launch, False, Stream(), before=lambda tables: tables.device_record.__setitem__(TAKEN, 0.0))
    assert (launch.flats["p"] != before).all()
    assert tables.carried[0, 0] == launch.tables.carried[0, 0] + 1


def test_elements_behind_the_end_do_not_count_for_an_exponent():
    # There a gradient of zero, times infinity, would be NaN.
    update = MEMBERS["everything_codes"]
    for size in (1, 127, 129, 130, BLOCK + 1):
        check(launch_of(update, random_flats(update, np.float32, size), grad_scale=np.inf), by_cuda_host(guarded=False))


@pytest.mark.parametrize("name", ["adam", "codes", "everything_codes"])
def test_few_and_many_elements_of_a_block_give_the_same_bits(name):
    update = MEMBERS[name]
    sizes = set()
    for many in (1, 10**9):
        with mock.patch.object(cuda_step, "MANY", many):
            sizes.add(cuda_step.elements_of(update, 10**6))
            check(launch_of(update, random_flats(update, np.float32, 3 * BLOCK + 5)), by_cuda_host(guarded=False))
    assert sizes == ({2_048} if name == "adam" else {2_048, 4_096})


class Watched(contextlib.AbstractContextManager):
    """A device that knows whether it is the current one."""

    id, current = "watched", 0

    def __enter__(self):
        self.current += 1

    def __exit__(self, *exception):
        self.current -= 1


class OfDevice(Stream):
    """A stream of a device, into which things are put while that is the current one."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def put(self, what, act):
        assert self.device.current, what
        super().put(what, act)


def test_everything_is_done_on_the_device_of_the_tables():
    device, gradients = Watched(), draw([300, BLOCK + 1], np.float32)
    update = MEMBERS["adam"]
    launch = launch_of(update, random_flats(update, np.float32, 300))
    with cuda_on_host(OfDevice(device)) as stream, mock.patch.object(OnHost, "device", device):
        tables = cuda.tables(2, 1, on_host(np.zeros(0)))
        tables.addresses[:, GRADIENT] = [cuda.address(on_host(gradient)) for gradient in gradients]
        for column, flat in enumerate(update.flats, 1):
            tables.write("addresses", (0, column), cuda.address(on_host(launch.flats[flat])))
        tables.write("hyper", (0, slice(None)), launch.tables.hyper[0])
        blocks = cut(np.array([(0, 0, 0, 300, 0), (1, 0, 0, BLOCK + 1, 0)]))
        sums = on_host(np.zeros(len(blocks)))
        squares = cuda.squares(np.float32, "native", blocks, tables, sums)
        step = cuda.launcher(launch.passes, tables, guarded=True)
        before = len(stream.log)
        cuda.clip(sums, 1.0, 1.0, np.inf, 0.0, tables, [squares])
        step()
        squares()
        cuda.clip(sums, 1.0, 1.0, np.inf, 0.0, tables)
        assert tables.record[TAKEN] == 1.0
        cuda.copy_out(on_host(launch.flats["p"]), on_host(np.zeros(300, np.uint16)), "bfloat16")
    names = ["squares_float_native_settle_adam", "adam_step_guarded", "squares_float_native", "settle", "to_bfloat16"]
    launches = [each for each in stream.log[before:] if each != "copy"]
    assert launches == [f"fastadam_{name}" for name in names]
    assert device.current == 0


def test_a_clipped_step_allocates_nothing():
    update, size = MEMBERS["adam"], 70 * BLOCK
    launch = launch_of(update, random_flats(update, np.float32, size))
    with cuda_on_host() as stream:
        tables = cuda_tables_like(launch.tables)
        tables.addresses[0, GRADIENT] = launch.flats["g"].ctypes.data
        tables.write("addresses", (0, slice(1, 4)), [launch.flats[flat].ctypes.data for flat in update.flats])
        blocks = cut(np.array([(0, 0, 0, size, 0)]))
        sums = on_host(np.zeros(len(blocks)))
        squares = cuda.squares(np.float32, "native", blocks, tables, sums)
        step = cuda.launcher(launch.passes, tables, guarded=False)

        def clipped():
            cuda.clip(sums, 1.0, 1.0, np.inf, 0.0, tables, [squares])
            step()

        clipped()
        for module in (cuda_host.cuda_launch, cuda_host.cuda_source, cuda_host.cuda_norm, cuda_host.device_tables):
            for name in ("zeros", "asarray"):
                setattr(module.cupy, name, None)
        del stream.log[:]
        clipped()
    assert stream.log == ["fastadam_squares_float_native_settle_adam", "fastadam_adam_step"]


@pytest.mark.parametrize("order", ["forward", "backward", "shuffled"])
@pytest.mark.parametrize("sizes", [[1], [BLOCK] * 64, [BLOCK] * 65, [1] * 8_192, [1] * 8_193, [1] * 17_000], ids=len)
def test_norm_does_not_depend_on_which_cuda_block_is_the_last(sizes, order):
    orders = {
        "forward": None,
        "backward": lambda numbers: numbers.__setitem__(slice(None), numbers[::-1].copy()),
        "shuffled": np.random.default_rng(0).shuffle,
    }
    gradients, record = draw(sizes, np.float32), np.array([0.0, 0.0, 0.0, 2.0])
    cuda_host.clip_on_host(gradients, 0.5, 3.0, 1e30, 0.0, record, order=orders[order])
    expected = clip(0.5, np.float64(norm.squared_norm(gradients)), 3.0, 1e30, 0.0)
    np.testing.assert_array_equal(record, [*expected, 2.0 + (1.0 - expected[1])])
    assert record[SKIPPED] == 2.0


@pytest.fixture
def small_blocks(monkeypatch):
    """Let the reduction be one of blocks of 256 elements, so that few sums have several levels."""
    for module, name, value in ((norm, "BLOCK", 256), (norm, "LINES", 2), (cuda_norm, "BLOCK", 256)):
        monkeypatch.setattr(module, name, value)
    cuda_norm.settle_kernel.cache_clear()
    yield
    cuda_norm.settle_kernel.cache_clear()


@pytest.mark.parametrize("order", ["forward", "shuffled"])
@pytest.mark.parametrize("counts", [[1], [64, 1, 257, 2], [1] * 300], ids=len)
@pytest.mark.usefixtures("small_blocks")
def test_factor_of_each_parameter_does_not_depend_on_which_cuda_block_is_the_last(counts, order):
    rng = np.random.default_rng(0)
    sums, ends = rng.standard_normal(sum(counts)) ** 2, np.cumsum(counts)
    clocks = rng.permutation(len(counts))
    host = reference.tables(1, len(counts))
    reference.clip(sums.copy(), 0.25, np.inf, 1e30, 0.0, host, each=reference.each(ends, clocks, 0.1, host))
    with cuda_on_host(order=None if order == "forward" else rng.shuffle):
        tables = cuda.tables(1, len(counts), on_host(np.zeros(0)))
        each = cuda.each(ends, clocks, 0.1, tables)
        for _ in range(2):
            cuda.clip(on_host(sums.copy()), 0.25, np.inf, 1e30, 0.0, tables, each=each)
            np.testing.assert_array_equal(tables.record, host.record)
        np.testing.assert_array_equal(tables.device_hyper.reshape(len(counts), -1)[:, CLIP], host.hyper[:, CLIP])
        assert not tables.counters(1).any()
    assert len(set(host.hyper[:, CLIP])) > 1 or counts == [1]


# --- the addresses


def pushed(tables, number):
    """The addresses of gradients that `number` stands for, written and sent."""
    tables.addresses[:, GRADIENT] = number
    tables.send()
    tables.push()


def test_addresses_arrive_in_the_order_of_the_stream_while_the_host_goes_on():
    stream, seen = Stream(lazy=True), []
    with cuda_on_host(stream):
        tables = cuda.tables(3, 1, on_host(np.zeros(0)))
        memory = tables.gradients.data.ptr
        for number in range(1, 8):
            pushed(tables, number)
            stream.put("launch", lambda: seen.append(tables.gradients.copy()))
            # The host is up to three copies ahead, and then waits for the oldest.
            assert len(seen) == max(0, number - 3 - 1)
        stream.wait(len(stream.waiting))
    assert [int(each[2]) for each in seen] == list(range(1, 8))
    assert all((each == each[0]).all() for each in seen)
    assert tables.gradients.data.ptr == memory


def test_only_what_has_changed_is_sent():
    with cuda_on_host() as stream:
        tables = cuda.tables(3, 1, on_host(np.zeros(0)))
        pushed(tables, 0)
        assert stream.log == []
        pushed(tables, 1)
        pushed(tables, 1)
        tables.write("addresses", (2, 15), 2)
        pushed(tables, 1)
        assert stream.log == ["copy", "copy"]
        np.testing.assert_array_equal(tables.device_addresses.reshape(3, -1), tables.addresses)


def test_rows_and_hyperparameters_of_clocks_in_use_are_sent():
    with cuda_on_host():
        tables = cuda.tables(5, 5, on_host(np.zeros(0)))
        for clock in (0, 1, 2):
            tables.write("hyper", (clock, slice(None)), np.arange(24.0) + clock)
            tables.write("carried", (clock, slice(2)), np.array([10.0 + clock, 20.0]))
        tables.copy_clock(2, 3)
        tables.host.table[...] = np.arange(5)[:, np.newaxis]
        tables.write("record", GRAD_SCALE, 0.25)
        tables.to_device()
        np.testing.assert_array_equal(tables.carried[:, 0], [10, 11, 12, 12, 0])
        np.testing.assert_array_equal(tables.table[:, 5], [0, 1, 2, 3, 0])
        np.testing.assert_array_equal(tables.device_hyper.reshape(5, 24)[:, 1], [1, 2, 3, 3, 0])
        assert tables.asked[0] == 0.25
        # Then the device has them.
        tables.write("carried", (1, slice(1)), np.array([7.0]))
        tables.write("hyper", (1, 0), 3.5)
        tables.copy_clock(1, 4)
        tables.push()
        np.testing.assert_array_equal(tables.carried[:, 0], [10, 7, 12, 12, 7])
        hyper = tables.device_hyper.reshape(5, 24)
        assert hyper[1, 0] == hyper[4, 0] == 3.5
        larger = cuda.tables(6, 6, on_host(np.zeros(0)))
        larger.take_over(tables)
        np.testing.assert_array_equal(larger.carried[:, 0], [10, 7, 12, 12, 7, 0])


def test_addresses_are_not_sent_into_a_graph():
    stream = Stream()
    with cuda_on_host(stream):
        tables = cuda.tables(3, 1, on_host(np.zeros(0)))
        pushed(tables, 1)
        stream.capturing = True
        pushed(tables, 1)
        for moved in (lambda: pushed(tables, 2), lambda: tables.write("addresses", (0, 1), 5) or tables.send()):
            with pytest.raises(RuntimeError, match="must stay where they are while a CUDA graph is captured"):
                moved()
        assert (tables.gradients == 1).all()
        # Once it is no longer captured, they are.
        stream.capturing = False
        pushed(tables, 2)
        assert (tables.gradients == 2).all()
        assert tables.device_addresses[1] == 5


def test_numbers_that_are_not_on_the_device_are_not_captured_and_those_of_a_graph_are_sent_at_once():
    stream = Stream()
    with cuda_on_host(stream):
        tables = cuda.tables(1, 1, on_host(np.zeros(0)))
        tables.write("hyper", (0, 0), 1.0)
        stream.capturing = True
        with pytest.raises(RuntimeError, match="a step must have been taken since numbers of a group or a state"):
            tables.send()
        stream.capturing = False
        tables.push(rows=True)
        stream.capturing = True
        tables.send()
        assert tables.on_device
        stream.capturing = False
        del stream.log[:]
        tables.write("hyper", (0, 0), 2.0)
        assert stream.log == ["copy"]
        assert tables.device_hyper[0] == 2.0


def test_tables_without_parameters_are_sent():
    with cuda_on_host() as stream:
        tables = cuda.tables(0, 0, on_host(np.zeros(0)))
        tables.send()
        cuda.launcher([], tables, guarded=False)()
        assert stream.log == []
    assert tables.record[GRAD_SCALE] == 0.0


# --- the host in the place of the device


def test_host_notices_a_shuffle_that_not_all_lanes_of_a_warp_take_part_in():
    body = "if (threadIdx.x % 32 < {lanes}) numbers[i] = warp_maximum((uint32)threadIdx.x);"
    numbers = np.zeros(THREADS, np.uint32)
    kernel = kernel_of("whole_warps", [], ["raw uint32 numbers"], body.format(lanes=32))
    run_on_host(kernel, (numbers,), THREADS)
    np.testing.assert_array_equal(numbers, np.repeat([31, 63, 95, 127], 32))
    kernel = kernel_of("parts_of_warps", [], ["raw uint32 numbers"], body.format(lanes=7))
    with pytest.raises(AssertionError, match="without all of its lanes"):
        run_on_host(kernel, (numbers,), THREADS)


def test_host_runs_the_source_that_it_is_given(monkeypatch):
    import cuda_program

    source = cuda_program.source

    def edited(*kernels, **keywords):
        return source(*kernels, **keywords).replace("g * g - v", "g * g + v")

    monkeypatch.setattr(cuda_program, "source", edited)
    cuda_host._library.cache_clear()
    try:
        with pytest.raises(AssertionError, match="Arrays are not equal"):
            check(launch_of(MEMBERS["adam"], random_flats(MEMBERS["adam"], np.float32, 100)), by_cuda_host(False))
    finally:
        cuda_host._library.cache_clear()
