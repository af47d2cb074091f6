"""What an optimizer writes to a device, and what of it can be captured in a CUDA graph: on a stand-in for CuPy."""

import contextlib
import gc
import math
import weakref
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("cupy")

from cuda_host import HAS_COMPILER, FakeDevice, OnHost, Stream, cuda_on_host, on_host

import fastadam
from fastadam.kernels import GRAD_SCALE, SKIPPED, cuda, reference
from fastadam.kernels.texts.formats import Formats
from fastadam.memory.buffers import Buffers
from fastadam.memory.layout import plain
from fastadam.memory.parameters import Parameter
from fastadam.settings.groups import ParamGroup
from fastadam.settings.options import Options
from fastadam.settings.recipes import STEP
from fastadam.step import engine, scale
from fastadam.step.engine import Engine
from fastadam.step.gather import Gradients
from fastadam.step.rows import Rows

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="needs g++")
SIZE = 300


class Watched(FakeDevice):
    """A device that knows whether it is the current one."""

    current = 0

    def __enter__(self):
        self.current += 1

    def __exit__(self, *exception):
        self.current -= 1


@contextlib.contextmanager
def on_device(stream):
    """Let the device be the host, and every assignment to one of its arrays one that is made while it is current."""
    device = Watched()

    def assign(array, where, values):
        assert device.current, f"{where} is written on whatever device is current"
        np.ndarray.__setitem__(array, where, values)

    with contextlib.ExitStack() as stack:
        stack.enter_context(cuda_on_host(stream))
        stack.enter_context(mock.patch.object(OnHost, "device", device))
        # Its arrays are of NumPy, and not on the host.
        stack.enter_context(mock.patch.object(engine, "np", SimpleNamespace(ndarray=int)))
        stack.enter_context(mock.patch.object(OnHost, "__setitem__", assign, create=True))
        yield
    assert device.current == 0


class Made:
    """An engine of two parameters, in the memory of the host, on the CUDA backend."""

    def __init__(self, count=2, groups=1, **options):
        self.options = Options("adam", **options)
        backend = SimpleNamespace(**{name: getattr(cuda, name) for name in cuda.__all__})
        backend.address = reference.address
        device_of = on_host(np.zeros(0, np.uint8))
        formats = Formats(copy=options.get("copy_dtype", "native"))
        buffers = Buffers({name: plain((SIZE,)) for name in range(count)}, formats, np.dtype(np.float32), np.zeros(0))
        self.params = [on_host(np.ones(SIZE, np.float32)) for _ in range(count)]
        self.grads = [np.ones(SIZE, np.float32) for _ in range(count)]
        parameters = [Parameter(name, 0, plain((SIZE,)), array, buffers) for name, array in enumerate(self.params)]
        self.engine = Engine(self.options, backend, device_of)
        self.plan = self.engine.plan
        parts = [parameters[number::groups] for number in range(groups)]
        self.groups = [self.settings([each.name for each in part]) for part in parts]
        self.group = self.groups[0]
        self.engine.add([(part, group, set()) for part, group in zip(parts, self.groups, strict=True)])
        for number, group in enumerate(self.groups):
            group.changed = partial(self.plan.refresh, number)
            group.lr_changed = partial(self.plan.set_lr, number)

    def settings(self, names, lr=0.1):
        values = {"lr": lr, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.01, "amsgrad": False}
        return ParamGroup(
            tuple(names), {**values, "maximize": False, "decoupled_weight_decay": False}, self.options.family_member
        )

    def capture(self, stream, **how):
        """A step that is captured, as a function that replays it; a real stream would not run it as it is captured."""
        before, stream.capturing = len(stream.waiting), True
        self.step(**how)
        stream.capturing = False
        graph = stream.waiting[before:]
        return lambda: [act() for act in graph]

    def step(self, present=(True, True), grad_scale=1.0, rows=None):
        places = [grad.ctypes.data if here else 0 for grad, here in zip(self.grads, present, strict=True)]
        gradients = Gradients(np.array(places, np.int64), rows or {}, self.grads)
        return self.engine.take_step(gradients, self.engine.rates(), grad_scale)

    @property
    def steps(self):
        return self.plan.tables.carried[self.plan.clock_of, STEP].tolist()


def test_all_numbers_are_written_on_the_device_of_the_tables():
    with on_device(Stream()):
        made = Made(max_grad_norm=1.0)
        made.step()
        made.group["lr"] = 0.2
        made.group["betas"] = (0.5, 0.5)
        # Another clock for the one that stands still.
        made.step(present=(True, False))
        made.plan.set_clocks(0, {0: [7.0], 1: [3.0]})
        made.step()
        made.engine.reduction.skipped = 5
        assert made.steps == [8, 4]
        assert made.plan.tables.hyper[0, 0] == 0.2
        assert made.plan.tables.record[SKIPPED] == 5.0
        plain = Made()
        plain.step(grad_scale=2.0)
        assert plain.plan.tables.host.record[GRAD_SCALE] == 2.0


def test_a_scheduled_rate_is_written_on_the_device_of_the_tables():
    with on_device(Stream()):
        made = Made()
        made.group["lr"] = lambda step: 0.5 ** (step + 1)
        made.step()
        made.step()
        assert made.plan.tables.hyper[0, 0] == 0.25


def captured(made, stream, act, error):
    """While a graph is captured, `act()` raises `error`, and neither launches nor changes anything."""
    settings, log = dict(made.group), list(stream.log)
    held = {name: getattr(made.plan.tables, name).tobytes() for name in ("hyper", "carried", "table", "record")}
    stream.capturing = True
    with pytest.raises(RuntimeError, match=error):
        act()
    stream.capturing = False
    assert dict(made.group) == settings
    assert stream.log == log
    for name, before in held.items():
        assert getattr(made.plan.tables, name).tobytes() == before, name


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}])
def test_a_step_like_the_one_before_can_be_captured(options):
    stream = Stream()
    with on_device(stream):
        made = Made(**options)
        made.step()
        before = len(stream.log)
        stream.capturing = True
        made.step()
    settled = "fastadam_squares_float_native_settle_adam" if options else "fastadam_settle_adam"
    assert stream.log[before:] == [settled, "fastadam_adam_step"]


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}, {"max_grad_norm": 1.0, "nonfinite": "skip"}])
def test_replays_take_steps_with_the_numbers_that_are_written_between_them(options):
    stream = Stream()

    def train(made, replay):
        for number in range(4):
            if number == 1:
                made.group["lr"] = 0.3
            if number == 2:
                made.group.update(betas=(0.8, 0.95), weight_decay=0.1)
            if number == 3 and "nonfinite" in options:
                made.grads[0][5] = np.inf
            replay()
        return made.params, made.grads, made.steps

    with on_device(stream):
        captured, plain = Made(**options), Made(**options)
        captured.step(grad_scale=0.5)
        results = train(captured, captured.capture(stream, grad_scale=0.5))
        # What ran as it was captured is the first step more, for a real stream runs nothing then.
        plain.step(grad_scale=0.5)
        plain.step(grad_scale=0.5)
        expected = train(plain, lambda: plain.step(grad_scale=0.5))
    for array, other in zip((*results[0], *results[1]), (*expected[0], *expected[1]), strict=True):
        np.testing.assert_array_equal(array, other)
    # A step that is skipped is not counted.
    assert results[2] == expected[2] == [5.0 if "nonfinite" in options else 6.0] * 2


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}, {"nonfinite": "skip"}])
def test_replays_read_a_scale_that_is_written_on_the_device(options):
    stream, factor = Stream(), on_host(np.full(1, 0.5, np.float32))
    with on_device(stream):
        captured, plain = Made(**options), Made(**options)
        captured.engine.read_scale(factor)
        captured.step()
        replay = captured.capture(stream)
        # A step that is asked for another one changes nothing for those.
        captured.engine.read_scale(None)
        captured.step(grad_scale=3.0)
        for number in (2.0, 0.125):
            np.ndarray.fill(factor, number)
            replay()
        for number in (0.5, 0.5, 3.0, 2.0, 0.125):
            plain.step(grad_scale=number)
    for array, other in zip(captured.params, plain.params, strict=True):
        np.testing.assert_array_equal(array, other)
    assert captured.steps == plain.steps == [5, 5]


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}])
def test_replays_read_the_gradients_of_the_step_that_was_captured(options):
    stream = Stream()
    with on_device(stream):
        captured, plain = Made(**options), Made(**options)
        captured.step()
        replay = captured.capture(stream)
        # A step with gradients elsewhere, which are gone then; none of those of the replays is.
        of_replays, captured.grads = captured.grads, [grad * 5 for grad in captured.grads]
        captured.step()
        captured.grads = [np.full(SIZE, np.nan, np.float32)] * 2
        del stream.log[:]
        replay()
        assert stream.log == []
        captured.grads = of_replays
        # One for the gradients, and one for the rate.
        captured.group["lr"] = 0.5
        captured.step()
        assert stream.log.count("copy") == 2
        for factor in (1, 1, 5, 1):
            plain.grads = [np.full(SIZE, factor, np.float32)] * 2
            plain.step()
        plain.group["lr"] = 0.5
        plain.step()
    for array, other in zip(captured.params, plain.params, strict=True):
        np.testing.assert_array_equal(array, other)


def test_an_address_that_a_replay_reads_is_never_zero():
    stream = Stream()
    with on_device(stream):
        made = Made()
        made.step()
        replay = made.capture(stream)
        made.step(present=(True, False))
        before = made.params[1].copy()
        replay()
    assert (made.params[1] != before).all()


def test_what_a_graph_reads_lives_as_long_as_the_optimizer():
    stream = Stream()
    with on_device(stream):
        made = Made(max_grad_norm=1.0)
        factor = on_host(np.ones(1, np.float32))
        made.engine.read_scale(factor)
        made.step()
        made.capture(stream)
        read = [weakref.ref(each) for each in (factor, *made.grads, made.plan.tables.numbers)]
        # Launches are prepared anew, gradients and the scale are elsewhere, and so are all tables.
        made.plan.forget_launches()
        made.engine.read_scale(None)
        made.grads = [grad.copy() for grad in made.grads]
        made.step()
        made.engine.add([])
        del factor
        gc.collect()
    assert all(each() is not None for each in read)
    assert made.plan.graphs.steps == 1


def test_a_group_of_a_captured_step_notices_that_the_optimizer_or_a_parameter_is_gone():
    params = {"w": np.ones(3), "b": np.ones(2)}
    opt = fastadam.Adam(params)
    group = opt.param_groups[0]
    opt._engine.plan.graphs.steps = 1
    group["lr"] = 0.5
    params["w"] = np.zeros(3)
    for assign in (lambda: group.__setitem__("lr", 0.25), lambda: group.update(betas=(0.5, 0.5))):
        with pytest.raises(ValueError, match=r"`params\['w'\]` must stay the array that this optimizer trains"):
            assign()
    del opt, params
    gc.collect()
    for assign in (lambda: group.__setitem__("lr", 0.25), lambda: group.update(betas=(0.5, 0.5))):
        with pytest.raises(RuntimeError, match="the optimizer must live as long as a CUDA graph with"):
            assign()
    assert (group["lr"], group["betas"]) == (0.5, (0.9, 0.999))


class OfDevice:
    """An array on a device."""

    __dlpack__ = None

    def __init__(self, dtype="f4", shape=(), place=64, device=0):
        self.dtype, self.shape, self.size, self.itemsize = (
            np.dtype(dtype),
            shape,
            math.prod(shape),
            np.dtype(dtype).itemsize,
        )
        self.data, self.device = SimpleNamespace(ptr=place), SimpleNamespace(id=device)


def test_a_scale_is_a_number_or_one_float32_on_the_gpu_of_the_parameters():
    params = {"w": OfDevice(shape=(3,))}
    with mock.patch.object(scale, "as_array", lambda value, label: value):
        for good in (OfDevice(), OfDevice(shape=(1, 1))):
            assert scale.scale_of(good, params) == (1.0, good)
        assert scale.scale_of(2, params) == scale.scale_of(np.array(2.0), params) == (2.0, None)
        for bad, error, message in (
            (OfDevice("f8"), TypeError, "must be a number, or one float32 in an array on the GPU, got float64"),
            (OfDevice(shape=(2,)), TypeError, r"got float32 of shape \(2,\)"),
            (OfDevice(place=66), ValueError, "`grad_scale` must be aligned to 4 bytes"),
            (OfDevice(device=1), ValueError, "`grad_scale` must be on cuda:0 like params, got cuda:1"),
            (-1.0, ValueError, "`grad_scale` must be >= 0"),
        ):
            with pytest.raises(error, match=message):
                scale.scale_of(bad, params)


def on_cpu(grads_of_steps, **options):
    """Parameters after these steps on the CPU."""
    params = {name: np.ones(SIZE, np.float32) for name in range(2)}
    opt = fastadam.Adam(params, lr=0.1, betas=(0.9, 0.99), weight_decay=0.01, **options)
    for grads in grads_of_steps:
        with contextlib.suppress(FloatingPointError):
            opt.step(dict(enumerate(grads)))
    return [*params.values()]


@pytest.mark.parametrize("how", ["plain", "captured", "skip", "raise"])
def test_gradients_of_each_parameter_are_clipped_by_their_own_norm(how):
    rng, stream = np.random.default_rng(0), Stream()
    steps = [[scale * rng.standard_normal(SIZE, np.float32) for scale in (0.01, 3.0)] for _ in range(4)]
    options = {"max_grad_norm_per_param": 0.5, **({"nonfinite": how} if how in ("skip", "raise") else {})}
    if "nonfinite" in options:
        steps[2][0][7] = np.inf
    if how == "plain":  # is no factor on the gradients of the other
        steps[3][0][7] = np.inf
    if how == "captured":
        steps[2:] = [steps[1]] * 2
    with on_device(stream):
        made = Made(**options)
        for grads in steps[:2] if how == "captured" else steps:
            made.grads = grads
            with contextlib.suppress(FloatingPointError):
                made.step()
        if how == "captured":
            made.capture(stream)()
        assert made.plan.tables.on_device
    for array, other in zip(made.params, on_cpu(steps, **options), strict=True):
        np.testing.assert_array_equal(array, other)
    assert made.steps == [3 if "nonfinite" in options else 4] * 2


@pytest.mark.parametrize("options", [{"max_grad_norm": 0.5}, {"max_grad_norm_per_param": 0.5}], ids=" ".join)
def test_a_norm_that_the_host_has_read_is_that_of_the_step(options):
    factor = on_host(np.full(1, 0.5, np.float32))
    with on_device(Stream()):
        made, other = (Made(nonfinite="raise", **options) for _ in range(2))
        made.engine.read_scale(factor)
        for _ in range(2):
            made.step()
            other.step(grad_scale=0.5)
    for array, expected in zip(made.params, other.params, strict=True):
        np.testing.assert_array_equal(array, expected)


FULL = {"max_grad_norm": 1.0, "nonfinite": "skip", "ema_decay": 0.9, "copy_dtype": "bfloat16", "zero_grad": True}


@pytest.mark.parametrize(("count", "groups"), [(1, 1), (1_000, 1), (40, 20)])
@pytest.mark.parametrize(
    ("options", "launches"),
    [({}, 1), ({"max_grad_norm": 1.0}, 2), ({"max_grad_norm_per_param": 1.0}, 2), (FULL, 2)],
    ids=["plain", "clipped", "each clipped", "full"],
)
def test_launches_of_a_step_are_as_many_for_any_number_of_tensors_and_groups(count, groups, options, launches):
    stream = Stream()
    with on_device(stream):
        made = Made(count, groups, **options)
        present = [True] * count
        made.step(present)
        for number in range(2):
            made.grads = [grad.copy() for grad in made.grads]
            for group in made.groups:
                group["lr"] = 0.1 + number
            del stream.log[:]
            made.step(present)
            assert [each for each in stream.log if each != "copy"] == stream.log[-launches:]
            # The numbers of a thousand clocks are more than CUDA copies at once.
            assert stream.log.count("copy") == (4 if count == 1_000 and "max_grad_norm_per_param" in options else 1)


def test_what_cannot_be_captured_says_so_before_anything_is_launched():
    stream = Stream()
    with on_device(stream):
        made = Made()
        before_the_first = "must have been taken once before it is captured"
        captured(made, stream, made.step, before_the_first)
        made.step()
        captured(made, stream, lambda: made.step(present=(True, False)), before_the_first)
        rows = {0: Rows(np.array([0]), np.array([0]), made.grads[0][:1])}
        captured(made, stream, lambda: made.step(rows=rows), before_the_first)
        captured(made, stream, lambda: made.step(grad_scale=3.0), "another `grad_scale`.* must not be written")
        made.grads[0] = made.grads[0].copy()
        captured(made, stream, made.step, "must stay where they are while a CUDA graph is captured")
        made.step()
        assert made.steps == [2, 2]


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}])
def test_numbers_written_since_the_last_step_are_not_captured(options):
    stream = Stream()
    with on_device(stream):
        made = Made(**options)
        made.step()
        made.group["lr"] = 0.5
        captured(
            made, stream, made.step, "a step must have been taken since numbers of a group or a state were written"
        )
        made.step()
        stream.capturing = True
        before = stream.log.count("copy")
        made.step()
        assert stream.log.count("copy") == before


def test_settings_are_not_written_into_a_graph():
    stream = Stream()
    with on_device(stream):
        made = Made()
        made.step()
        captured(made, stream, lambda: made.group.update(lr=0.5, betas=(0.1, 0.1)), "must not be written")
        captured(made, stream, lambda: made.group.__setitem__("lr", 0.5), "the learning rate of a group must not")
        captured(made, stream, lambda: made.plan.set_clocks(0, {0: [1.0], 1: [1.0]}), "a state must not")
        made.group["lr"] = 0.5
        made.step()
        assert made.plan.tables.hyper[0, 0] == 0.5


REFUSED = {
    "schedule": ({}, "`lr` must be a number while a CUDA graph is captured, got a schedule"),
    "raise": ({"nonfinite": "raise"}, "`nonfinite` must not be 'raise' while a CUDA graph is captured"),
    "exact": ({"sparse": "exact"}, "`sparse` must not be 'exact' while a CUDA graph is captured"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_options_that_need_the_host_are_not_captured(why):
    stream, (options, error) = Stream(), REFUSED[why]
    with on_device(stream):
        made = Made(**options)
        if why == "schedule":
            made.group["lr"] = lambda step: 0.1
        made.step()
        captured(made, stream, made.step, error)
