"""Optimizers of torch on a GPU: on a stand-in for CuPy, with tensors on the CPU that are said to be on a device."""

import contextlib
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("cupy")

from cuda_host import HAS_COMPILER, OnHost, Stream, cuda_on_host, on_host  # noqa: E402

import fastadam.torch  # noqa: E402
from fastadam.kernels import cuda, reference  # noqa: E402
from fastadam.step import engine  # noqa: E402
from fastadam.torch import device_share, optimizer, share, stepper  # noqa: E402
from fastadam.torch.tensors import array_over  # noqa: E402

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="needs g++")


@contextlib.contextmanager
def tensors_on_device(stream):
    """Let tensors on the CPU be on a device whose kernels run in `stream`; yields how often a step was put there."""
    backend = SimpleNamespace(**{name: getattr(cuda, name) for name in cuda.__all__})
    backend.address, entered = reference.address, []
    replaced = {
        (share, "backend_of"): lambda array, label: backend,
        (share, "array_over"): lambda tensor: on_host(array_over(tensor)),
        (device_share, "on_stream"): lambda tensor: contextlib.nullcontext(entered.append(tensor)),
        (stepper, "is_on_device"): lambda tensor: True,
        (optimizer, "is_on_device"): lambda tensor: True,
        (engine, "np"): SimpleNamespace(ndarray=int),
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(cuda_on_host(stream))
        for (module, name), value in replaced.items():
            stack.enter_context(mock.patch.object(module, name, value))
        yield entered


def tensors():
    torch.manual_seed(0)
    params = [torch.randn(300), torch.randn(7, 5)]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def trained(opt, steps=5, overflow_at=()):
    """Steps with a loss scale of 8; the gradients are not finite in some of them, of which torch's scaler tells."""
    opt.grad_scale, opt.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    for number in range(steps):
        opt.found_inf.fill_(float(number in overflow_at))
        opt.step()
    steps = {float(entry["step"]) for entry in opt.state_dict()["state"].values()}
    return [p.detach().numpy().copy() for group in opt.param_groups for p in group["params"]], steps, opt.skipped_steps


@pytest.mark.parametrize("overflow_at", [(), (0, 3)])
@pytest.mark.parametrize("name", ["AdamW", "NAdam"])
def test_the_device_reads_found_inf_and_the_scale_and_counts(name, overflow_at):
    stream = Stream()
    with tensors_on_device(stream) as entered:
        found = trained(getattr(fastadam.torch, name)(tensors()), overflow_at=overflow_at)
    # Making, reading and each step.
    assert len(entered) >= 5
    expected = trained(getattr(fastadam.torch, name)(tensors()), overflow_at=overflow_at)
    for array, other in zip(found[0], expected[0], strict=True):
        np.testing.assert_array_equal(array, other)
    assert found[1:] == expected[1:] == ({5.0 - len(overflow_at)}, len(overflow_at))


@pytest.mark.parametrize("overflow_at", [(), (0, 3)])
def test_the_host_reads_them_where_it_has_parameters(overflow_at):
    with mock.patch.object(optimizer, "is_on_device", return_value=True):
        found = trained(fastadam.torch.AdamW(tensors()), overflow_at=overflow_at)
    expected = trained(fastadam.torch.AdamW(tensors()), overflow_at=overflow_at)
    for array, other in zip(found[0], expected[0], strict=True):
        np.testing.assert_array_equal(array, other)
    assert found[1:] == expected[1:] == ({5.0 - len(overflow_at)}, len(overflow_at))


@pytest.mark.parametrize("overflow_at", [(), (0, 3)])
def test_the_host_reads_them_where_it_has_some_of_the_parameters(overflow_at):
    def trained_in_turn():
        large, small = tensors()
        # What shares memory is stepped apart.
        small.set_(large[:35].reshape(7, 5))
        opt = fastadam.torch.AdamW([large])
        first = trained(opt, overflow_at=overflow_at)
        opt.add_param_group({"params": [small]})
        second = trained(opt, overflow_at=overflow_at)
        kinds = [share.is_on_device for share in opt._stepper.shares]
        return first[0], [float(entry["step"]) for entry in opt.state.values()], second[0], second[2], kinds

    def is_large(tensor):
        return tensor.numel() > 100

    with tensors_on_device(Stream()), mock.patch.object(stepper, "is_on_device", is_large):
        found = trained_in_turn()
    expected = trained_in_turn()
    assert (found[4], expected[4]) == ([True, False], [False, False])
    for arrays, others in ((found[0], expected[0]), (found[2], expected[2])):
        for array, other in zip(arrays, others, strict=True):
            np.testing.assert_array_equal(array, other)
    assert found[1] == expected[1] == [10.0 - 2 * len(overflow_at), 5.0 - len(overflow_at)]
    assert found[3] == expected[3] == 2 * len(overflow_at)


def test_no_step_waits_for_the_device():
    stream = Stream(lazy=True)
    with tensors_on_device(stream), mock.patch.object(OnHost, "get", side_effect=AssertionError("waits")):
        opt = fastadam.torch.AdamW(tensors())
        opt.grad_scale, opt.found_inf = torch.tensor(8.0), torch.tensor(0.0)
        for _ in range(3):
            opt.step()
        assert stream.done == 0
        names = [name for name in stream.log if name != "copy"]
    assert names[-2:] == ["fastadam_settle_adam", "fastadam_adam_step_guarded"]


def capture(opt, stream):
    """A step that is captured, as a function that replays it; a real stream would not run it as it is captured."""
    before, stream.capturing = len(stream.waiting), True
    opt.step()
    stream.capturing = False
    graph = stream.waiting[before:]
    return lambda: [act() for act in graph]


@pytest.mark.parametrize("overflow", [None, 0.0])
def test_replays_take_the_scale_and_the_settings_that_are_written_between_them(overflow):
    stream, (captured, plain) = Stream(), (tensors(), tensors())
    options, settings = (
        {"weight_decay": 0.1, "max_grad_norm": 1.0},
        {"lr": 0.5, "betas": (0.5, 0.8), "weight_decay": 0.3},
    )

    def steps(opt, capturing):
        opt.grad_scale = torch.tensor(8.0)
        if overflow is not None:
            opt.found_inf = torch.tensor(overflow)
        opt.step()
        again = capture(opt, stream) if capturing else opt.step() or opt.step
        for scale, changed in ((4.0, {}), (2.0, settings)):
            opt.grad_scale.fill_(scale)
            opt.param_groups[0].update(changed)
            opt.send_settings()
            again()

    with tensors_on_device(stream):
        steps(fastadam.torch.AdamW(captured, **options), capturing=True)
    steps(fastadam.torch.AdamW(plain, **options), capturing=False)
    for p, other in zip(captured, plain, strict=True):
        np.testing.assert_array_equal(p.numpy(), other.numpy())


def test_settings_are_not_sent_to_replays_of_what_is_gone():
    stream, params = Stream(), tensors()
    with tensors_on_device(stream):
        opt = fastadam.torch.AdamW(params)
        with pytest.raises(RuntimeError, match="a step must have been taken before `send_settings`"):
            opt.send_settings()
        opt.step()
        capture(opt, stream)
        opt.param_groups[0]["lr"] = 0.5
        del stream.log[:]
        opt.send_settings()
        assert stream.log == ["copy"]
        kept = params[0].data
        for change in (lambda: setattr(params[0], "data", kept.clone()), lambda: opt.param_groups[0]["params"].pop()):
            change()
            opt.param_groups[0]["lr"] = 0.25
            with pytest.raises(RuntimeError, match="parameters, their states and groups must be those"):
                opt.send_settings()
            params[0].data = kept
        assert stream.log == ["copy"]
        # What the graph writes to lives on.
        opt.step()
        assert [len(share._params) for share in opt._stepper._of_graphs] == [2]


def test_a_captured_step_counts_what_is_replayed():
    stream, (captured, plain) = Stream(), (tensors(), tensors())
    with tensors_on_device(stream):
        opt = fastadam.torch.AdamW(captured, capturable=True)
        opt.step()
        replay = capture(opt, stream)
        for _ in range(3):
            replay()
        assert {float(entry["step"]) for entry in opt.state_dict()["state"].values()} == {5.0}
    expected = fastadam.torch.AdamW(plain)
    for _ in range(5):
        expected.step()
    for p, other in zip(captured, plain, strict=True):
        np.testing.assert_array_equal(p.numpy(), other.numpy())


def test_what_the_device_has_skipped_is_kept_when_parameters_are_added():
    stream = Stream()
    with tensors_on_device(stream):
        opt = fastadam.torch.AdamW(tensors(), nonfinite="skip")
        opt.step()
        opt.param_groups[0]["params"][0].grad[7] = torch.inf
        opt.step()
        assert opt.skipped_steps == 1
        opt.add_param_group({"params": tensors()})
        opt.step()
        assert opt.skipped_steps == 2


def test_our_scaler_leaves_it_to_the_device_and_does_not_wait():
    """As on the CPU, which is held against torch's."""

    def run(opt, scaler):
        params, scales = opt.param_groups[0]["params"], []
        gradients = [p.grad.clone() for p in params]
        for number in range(7):
            scaler.scale(torch.zeros(1))
            for p, gradient in zip(params, gradients, strict=True):
                p.grad.copy_(gradient * scaler._scale)
            if number in (0, 4):
                params[1].grad[2, 3] = torch.nan
            scaler.step(opt)
            scaler.update()
            scales.append(scaler.get_scale())
        return [p.clone() for p in params], scales

    settings = {"device": "cpu", "init_scale": 256.0, "growth_interval": 3}
    options = {"nonfinite": "skip", "max_grad_norm": 1.0}
    stream = Stream()
    with tensors_on_device(stream), mock.patch.object(OnHost, "get", side_effect=AssertionError("waits")):
        opt = fastadam.torch.AdamW(tensors(), **options)
        params, scales = run(opt, fastadam.torch.GradScaler(**settings))
    expected = run(fastadam.torch.AdamW(tensors(), **options), fastadam.torch.GradScaler(**settings))
    assert scales == expected[1] == [128.0, 128.0, 128.0, 256.0, 128.0, 128.0, 128.0]
    assert all(map(torch.equal, params, expected[0]))
