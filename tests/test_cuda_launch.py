"""What the CUDA backend launches, where and in which order, on a stand-in for CuPy; the host runs the kernels."""

import contextlib
from unittest import mock

import numpy as np
import pytest
from members import MEMBERS, by_cuda_host, check, clocks_launch, launch_of, random_flats
from norm_kernels import draw

pytest.importorskip("cupy")

import cuda_host
from cuda_host import HAS_COMPILER, OnHost, Stream, cuda_on_host, cuda_tables_like, on_host, run_on_host

from fastadam.kernels import GRAD_SCALE, GRADIENT, SKIPPED, TAKEN, cuda, norm
from fastadam.kernels.blocks import BLOCK, cut
from fastadam.kernels.cuda import step as cuda_step
from fastadam.kernels.cuda.source import THREADS, kernel_of
from fastadam.kernels.texts.clip import clip

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="needs g++")


def launched(launch, guarded, stream, steps=1):
    """Run `launch` by `cuda.launcher` in `stream`, so many times; the tables, as they have become."""
    with cuda_on_host(stream):
        tables = cuda_tables_like(launch.tables)

        def launcher(passes, host_tables, *, guarded):
            tables.addresses[...] = host_tables.addresses
            run = cuda.launcher(passes, tables, guarded=guarded)
            return lambda: [run_step(tables, run) for _ in range(steps)]

        def run_step(tables, run):
            tables.send()
            stream.log.append("step")
            run()

        launch.run(launcher, guarded=guarded)
    return tables


@pytest.mark.parametrize("guarded", [False, True])
def test_a_step_is_two_launches_and_addresses_are_copied_once(guarded):
    end = "_guarded" * guarded
    stream = Stream()
    launched(clocks_launch(MEMBERS["adam"], np.float32, [300, 70]), guarded, stream, steps=2)
    step = ["step", f"fastadam_adam_fold{end}", f"fastadam_adam_step{end}"]
    first = stream.log.index("step")
    # Both kernels are compiled by launches over nothing, if they were not before.
    assert stream.log[:first] in ([*step[1:], "copy"], ["copy"])
    assert stream.log[first:] == step * 2


def test_only_a_guarded_step_asks_whether_it_is_taken():
    launch = launch_of(MEMBERS["adam"], random_flats(MEMBERS["adam"], np.float32, 1_000))
    launch.tables.record[TAKEN] = 0.0
    before = launch.flats["p"].copy()
    tables = launched(launch, False, Stream())
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
            tables.addresses[0, column] = cuda.address(on_host(launch.flats[flat]))
        tables.send()
        blocks = cut(np.array([(0, 0, 0, 300, 0), (1, 0, 0, BLOCK + 1, 0)]))
        sums = on_host(np.zeros(len(blocks)))
        squares = cuda.squares(np.float32, "native", blocks, tables, sums)
        step = cuda.launcher(launch.passes, tables, guarded=True)
        before = len(stream.log)
        squares()
        cuda.clip(sums, 1.0, 1.0, np.inf, 0.0, tables)
        step()
        cuda.copy_out(on_host(launch.flats["p"]), on_host(np.zeros(300, np.uint16)), "bfloat16")
    names = ["squares_float_native", "clip", "adam_fold_guarded", "adam_step_guarded", "to_bfloat16"]
    assert stream.log[before:] == [f"fastadam_{name}" for name in names]
    assert device.current == 0


def test_a_clipped_step_allocates_nothing():
    gradients = draw([70 * BLOCK], np.float32)
    with cuda_on_host():
        tables = cuda.tables(1, 1, on_host(np.zeros(0)))
        tables.addresses[0, GRADIENT] = gradients[0].ctypes.data
        tables.send()
        blocks = cut(np.array([(0, 0, 0, 70 * BLOCK, 0)]))
        sums = on_host(np.zeros(len(blocks)))
        squares = cuda.squares(np.float32, "native", blocks, tables, sums)
        squares()
        cuda.clip(sums, 1.0, 1.0, np.inf, 0.0, tables)
        for module in (cuda_host.cuda_launch, cuda_host.cuda_source, cuda_host.device_tables):
            for name in ("zeros", "asarray"):
                setattr(module.cupy, name, None)
        squares()
        cuda.clip(sums, 1.0, 1.0, np.inf, 0.0, tables)


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


# --- the addresses


def written(tables, number):
    """The addresses that `number` stands for, written and sent."""
    tables.addresses[...] = number
    tables.send()


def test_addresses_arrive_in_the_order_of_the_stream_while_the_host_goes_on():
    stream, seen = Stream(lazy=True), []
    with cuda_on_host(stream):
        tables = cuda.tables(3, 1, on_host(np.zeros(0)))
        memory = tables.device_addresses.data.ptr
        for number in range(1, 8):
            written(tables, number)
            stream.put("launch", lambda: seen.append(tables.device_addresses.copy()))
            # The host is up to three copies ahead, and then waits for the oldest.
            assert len(seen) == max(0, number - 3 - 1)
        stream.wait(len(stream.waiting))
    assert [int(each[2, 5]) for each in seen] == list(range(1, 8))
    assert all((each == each[0, 0]).all() for each in seen)
    assert tables.device_addresses.data.ptr == memory


def test_addresses_are_sent_only_when_they_have_changed():
    with cuda_on_host() as stream:
        tables = cuda.tables(3, 1, on_host(np.zeros(0)))
        written(tables, 0)
        assert stream.log == []
        written(tables, 1)
        written(tables, 1)
        tables.addresses[2, 15] = 2
        tables.send()
        assert stream.log == ["copy", "copy"]
        np.testing.assert_array_equal(tables.device_addresses, tables.addresses)


def test_addresses_are_not_sent_into_a_graph():
    stream = Stream()
    with cuda_on_host(stream):
        tables = cuda.tables(3, 1, on_host(np.zeros(0)))
        written(tables, 1)
        stream.capturing = True
        tables.send()
        with pytest.raises(RuntimeError, match="must stay where they are while a CUDA graph is captured"):
            written(tables, 2)
        assert (tables.device_addresses == 1).all()
        # Once it is no longer captured, they are.
        stream.capturing = False
        tables.send()
        assert (tables.device_addresses == 2).all()


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
