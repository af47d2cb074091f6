"""What torch puts around an optimizer: schedulers, scalers, hooks, closures, averages, compilation, threads."""

import pickle
import threading
import warnings
from contextlib import contextmanager

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch_training import assert_close, every, fused, give_gradients, make, names, pair, torch, train, twins

schedulers = torch.optim.lr_scheduler


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def forward(self, x):
        return self.layers(x)


def nets():
    torch.manual_seed(0)
    net = Net()
    twin = Net()
    twin.load_state_dict(net.state_dict())
    return net, twin


def loss_of(net, step):
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
    return (net(x) - x.sum(1, keepdim=True)).square().mean()


SCHEDULES = {
    "LambdaLR": lambda opt: schedulers.LambdaLR(opt, lambda step: 0.9**step),
    "MultiplicativeLR": lambda opt: schedulers.MultiplicativeLR(opt, lambda step: 0.95),
    "StepLR": lambda opt: schedulers.StepLR(opt, 3, 0.5),
    "MultiStepLR": lambda opt: schedulers.MultiStepLR(opt, [3, 8], 0.5),
    "ConstantLR": lambda opt: schedulers.ConstantLR(opt, 0.5, 4),
    "LinearLR": lambda opt: schedulers.LinearLR(opt, 0.1, total_iters=10),
    "ExponentialLR": lambda opt: schedulers.ExponentialLR(opt, 0.9),
    "PolynomialLR": lambda opt: schedulers.PolynomialLR(opt, 15, 2.0),
    "CosineAnnealingLR": lambda opt: schedulers.CosineAnnealingLR(opt, 10),
    "CosineAnnealingWarmRestarts": lambda opt: schedulers.CosineAnnealingWarmRestarts(opt, 5),
    "CyclicLR": lambda opt: schedulers.CyclicLR(opt, 1e-3, 1e-2, 4),
    "OneCycleLR": lambda opt: schedulers.OneCycleLR(opt, 1e-2, 30),
    "SequentialLR": lambda opt: schedulers.SequentialLR(
        opt, [schedulers.LinearLR(opt, 0.1, total_iters=5), schedulers.ExponentialLR(opt, 0.9)], [5]
    ),
    "ChainedScheduler": lambda opt: schedulers.ChainedScheduler(
        [schedulers.LinearLR(opt, 0.1, total_iters=5), schedulers.ExponentialLR(opt, 0.9)]
    ),
    "SWALR": lambda opt: torch.optim.swa_utils.SWALR(opt, 1e-3, anneal_epochs=5),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["number", "tensor"])
def test_schedulers(schedule, kind):
    net, twin = nets()
    runs = []
    for each, make_opt in ((net, fused.AdamW), (twin, torch.optim.AdamW)):
        opt = make_opt(each.parameters(), lr=0.01 if kind == "number" else torch.tensor(0.01))
        runs.append((each, opt, SCHEDULES[schedule](opt)))
    rates = [[], []]
    for step in range(20):
        for (each, opt, scheduler), seen in zip(runs, rates, strict=True):
            opt.zero_grad()
            loss_of(each, step).backward()
            opt.step()
            scheduler.step()
            seen.append((float(opt.param_groups[0]["lr"]), opt.param_groups[0]["betas"]))
    assert rates[0] == rates[1]
    assert len({rate for rate, _ in rates[0]}) > 1
    assert_close(list(net.parameters()), list(twin.parameters()), 1e-5)


def test_a_scheduler_that_watches_the_loss():
    net, twin = nets()
    for each, make_opt in ((net, fused.Adam), (twin, torch.optim.Adam)):
        opt = make_opt(each.parameters(), lr=0.1)
        scheduler = schedulers.ReduceLROnPlateau(opt, factor=0.5, patience=0)
        for step in range(10):
            opt.zero_grad()
            loss = loss_of(each, step)
            loss.backward()
            opt.step()
            scheduler.step(1.0)
        assert opt.param_groups[0]["lr"] < 0.01
    assert_close(list(net.parameters()), list(twin.parameters()), 1e-5)


def test_a_scheduler_goes_on_with_its_optimizer_when_both_are_pickled():  # pytorch#7255
    opt = fused.AdamW([torch.ones(2)], lr=0.5)
    scheduler = schedulers.MultiStepLR(opt, [1, 2], gamma=0.5)
    for lr in (0.5, 0.25, 0.125):
        assert scheduler.optimizer is opt
        assert opt.param_groups[0]["lr"] == lr
        (p,) = opt.param_groups[0]["params"]
        before, p.grad = p.clone(), torch.ones(2)
        opt.step()
        scheduler.step()
        assert (before * (1 - lr * 0.01) - p).tolist() == pytest.approx([lr] * 2, rel=1e-5)
        opt, scheduler = pickle.loads(pickle.dumps((opt, scheduler)))


def test_a_group_that_is_added_later_is_scheduled_too():  # pytorch#20997
    first, later = torch.ones(2), torch.ones(2)
    opt = fused.Adam([first], lr=0.5)
    scheduler = schedulers.ReduceLROnPlateau(opt, factor=0.5, patience=0)
    opt.add_param_group({"params": [later], "lr": 0.25})
    for loss in (1.0, 2.0):
        first.grad, later.grad = torch.ones(2), torch.ones(2)
        opt.step()
        scheduler.step(loss)
    assert [group["lr"] for group in opt.param_groups] == [0.25, 0.125]
    assert later.tolist() == pytest.approx([0.5, 0.5], rel=1e-5)


@pytest.mark.parametrize("step_unscales", [False, True])
@pytest.mark.parametrize("overflow_at", [None, 2])
def test_grad_scaler(step_unscales, overflow_at):
    net, twin = nets()
    runs = []
    for each, make_opt in ((net, fused.Adam), (twin, torch.optim.Adam)):
        opt = make_opt(each.parameters(), lr=0.01, fused=step_unscales)
        assert getattr(opt, "_step_supports_amp_scaling", False) == step_unscales
        runs.append((each, opt, torch.amp.GradScaler("cpu", init_scale=1024.0)))
    for step in range(6):
        for each, opt, scaler in runs:
            opt.zero_grad()
            scaler.scale(loss_of(each, step)).backward()
            if step == overflow_at:
                next(each.parameters()).grad[0, 0] = float("inf")
            scaler.step(opt)
            scaler.update()
            assert "grad_scale" not in vars(opt)
    assert_close(list(net.parameters()), list(twin.parameters()), 1e-5)
    (_, opt, scaler), (_, other, other_scaler) = runs
    assert scaler.get_scale() == other_scaler.get_scale()
    assert opt.skipped_steps == (step_unscales and overflow_at is not None)
    steps = [float(each.state[p]["step"]) for each in (opt, other) for p in each.param_groups[0]["params"]]
    assert set(steps) == {6.0 - (overflow_at is not None)}


OVERFLOWS = {2: "inf", 3: "nan", 9: "-inf"}


def scaled_run(net, opt, scaler, steps, before_step=lambda opt, scaler: None):
    """Scales after each of `steps`, of which some have gradients that are not finite."""
    scales = []
    for step in steps:
        opt.zero_grad()
        scaler.scale(loss_of(net, step)).backward()
        if step in OVERFLOWS:
            list(net.parameters())[1].grad[3] = float(OVERFLOWS[step])
        before_step(opt, scaler)
        scaler.step(opt)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


SCALER = {"device": "cpu", "init_scale": 2.0**14, "growth_interval": 3}


def test_our_scaler_scales_and_skips_as_that_of_torch_and_their_states_are_one():
    net, twin = nets()
    opt, other = fused.AdamW(net.parameters(), lr=0.01, nonfinite="skip"), torch.optim.AdamW(twin.parameters(), lr=0.01)
    scaler, torchs = fused.GradScaler(**SCALER), torch.amp.GradScaler(**SCALER)
    scales = [scaled_run(*each, range(8)) for each in ((net, opt, scaler), (twin, other, torchs))]
    states = scaler.state_dict(), torchs.state_dict()
    assert states[0] == states[1]
    scaler.load_state_dict(states[1])
    torchs.load_state_dict(states[0])
    scales += [scaled_run(*each, range(8, 14)) for each in ((net, opt, scaler), (twin, other, torchs))]
    assert scales[0] == scales[1]
    assert scales[2] == scales[3]
    assert len(set(scales[0] + scales[2])) == 3
    assert opt.skipped_steps == len(OVERFLOWS)
    assert_close(list(net.parameters()), list(twin.parameters()), 1e-5)


def test_our_scaler_does_not_touch_gradients():
    net, _ = nets()
    opt, scaler = fused.AdamW(net.parameters(), nonfinite="skip", max_grad_norm=1.0), fused.GradScaler(**SCALER)
    opt.zero_grad()
    scaler.scale(loss_of(net, 0)).backward()
    before = [(p.grad._version, p.grad.clone()) for p in net.parameters()]
    scaler.step(opt)
    scaler.update()
    for p, (version, gradient) in zip(net.parameters(), before, strict=True):
        assert p.grad._version == version
        assert torch.equal(p.grad, gradient)
    with torch.no_grad():
        norm = torch.linalg.vector_norm(torch.cat([g.flatten() / 2.0**14 for _, g in before]))
    assert opt.grad_norm == pytest.approx(float(norm), rel=1e-6)


@pytest.mark.parametrize("kind", ["torch's", "propagate", "unscaled", "switched off"])
def test_our_scaler_is_that_of_torch_for_all_else(kind):
    net, twin = nets()
    make_opt = torch.optim.AdamW if kind == "torch's" else fused.AdamW
    options = {"nonfinite": "skip"} if kind in ("unscaled", "switched off") else {}
    settings = {**SCALER, "enabled": kind != "switched off"}

    def before_step(opt, scaler):
        if kind == "unscaled":
            scaler.unscale_(opt)
            torch.nn.utils.clip_grad_norm_(opt.param_groups[0]["params"], 0.1)

    scales = []
    for each, opt, scaler in (
        (net, make_opt(net.parameters(), lr=0.01, **options), fused.GradScaler(**settings)),
        (twin, torch.optim.AdamW(twin.parameters(), lr=0.01), torch.amp.GradScaler(**settings)),
    ):
        scales.append(scaled_run(each, opt, scaler, range(2 if kind == "switched off" else 6), before_step))
    assert scales[0] == scales[1]
    assert_close(list(net.parameters()), list(twin.parameters()), 1e-5)


def test_our_scaler_steps_once_between_updates_and_not_before_it_has_scaled():
    net, _ = nets()
    opt, scaler = fused.AdamW(net.parameters(), nonfinite="skip"), fused.GradScaler(**SCALER)
    with pytest.raises(AssertionError, match="_scale is None"):
        scaler.step(opt)
    scaler.scale(loss_of(net, 0)).backward()
    scaler.step(opt)
    with pytest.raises(RuntimeError, match="has already been called since the last update"):
        scaler.step(opt)


def test_scale_and_overflow_are_taken_from_attributes():
    # As prime-rl sets them by hand.
    params = [torch.ones(3, requires_grad=True)]
    opt = fused.AdamW(params, lr=0.1, weight_decay=0.0)
    params[0].grad = torch.full((3,), 8.0)
    opt.grad_scale, opt.found_inf = torch.tensor(8.0), torch.tensor(1.0)
    opt.step()
    assert opt.skipped_steps == 1
    assert torch.equal(params[0], torch.ones(3))
    opt.found_inf.zero_()
    opt.step()
    torch.testing.assert_close(opt.state[params[0]]["exp_avg"], torch.full((3,), 0.1))
    del opt.grad_scale, opt.found_inf


@pytest.mark.parametrize(
    "scale",
    [
        *(torch.tensor(8.0, dtype=dtype) for dtype in (torch.bfloat16, torch.float16, torch.float64)),
        torch.tensor(8.0, requires_grad=True),
        torch.tensor([8]),
        8,
    ],
    ids=["bfloat16", "float16", "float64", "requires grad", "integer", "number"],
)
def test_a_scale_of_any_kind(scale):
    params = [torch.ones(3, requires_grad=True)]
    opt = fused.AdamW(params)
    params[0].grad = torch.full((3,), 8.0)
    opt.grad_scale, opt.found_inf = scale, scale * 0
    opt.step()
    torch.testing.assert_close(opt.state[params[0]]["exp_avg"], torch.full((3,), 0.1))
    opt.found_inf = scale
    opt.step()
    assert opt.skipped_steps == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor(8.0, device="meta"), r"must be a number or a tensor of one element in memory, got .* on meta"),
        (torch.ones(2), r"must be a number or a tensor of one element in memory, got Tensor of shape \(2,\)"),
        (torch.tensor(8j), "must be a real number, got 8j"),
        ("8", "must be a real number, got '8'"),
        (torch.tensor(float("nan")), "must be finite, got nan"),
        (torch.tensor(0.0), "must not be 0, got 0"),
    ],
    ids=["meta", "two elements", "complex", "text", "nan", "zero"],
)
def test_a_scale_that_is_none_is_refused(value, message):
    params = [torch.ones(3, requires_grad=True)]
    opt = fused.AdamW(params)
    params[0].grad = torch.ones(3)
    opt.grad_scale = value
    with pytest.raises((TypeError, ValueError), match=f"`grad_scale` {message}"):
        opt.step()
    if "element" in message:
        opt.found_inf = value
        with pytest.raises(TypeError, match=f"`found_inf` {message}"):
            opt.step()
    assert torch.equal(params[0], torch.ones(3))


def test_averaged_models():
    net, twin = nets()
    averages = []
    for each, make_opt in ((net, fused.Adam), (twin, torch.optim.Adam)):
        opt, average = make_opt(each.parameters(), lr=0.01), torch.optim.swa_utils.AveragedModel(each)
        for step in range(5):
            opt.zero_grad()
            loss_of(each, step).backward()
            opt.step()
            average.update_parameters(each)
        averages.append(list(average.parameters()))
    assert_close(*averages, 1e-5)


def test_hooks_of_an_instance_and_of_all():
    params, calls = make(), []
    opt = fused.Adam(params, lr=0.01)
    give_gradients(params, twins(params), torch.Generator())
    handles = [
        opt.register_step_pre_hook(lambda opt, args, kwargs: calls.append("pre")),
        opt.register_step_post_hook(lambda opt, args, kwargs: calls.append("post")),
        register_optimizer_step_pre_hook(lambda opt, args, kwargs: calls.append("all pre")),
        register_optimizer_step_post_hook(lambda opt, args, kwargs: calls.append("all post")),
    ]
    opt.step()
    assert calls == ["all pre", "pre", "post", "all post"]
    for handle in handles:
        handle.remove()
    opt.step()
    assert len(calls) == 4
    assert opt.state[params[0]]["step"] == 2


def test_a_hook_may_replace_the_arguments():
    params = make()
    opt = fused.Adam(params)
    opt.register_step_pre_hook(lambda opt, args, kwargs: ((opt, lambda: 7.0), {}))
    assert opt.step() == 7.0


def test_a_class_with_a_step_of_its_own_has_its_hooks_once():
    class Clipped(fused.Adam):
        def step(self, closure=None):
            return super().step(closure)

    calls, params = [], make()
    opt = Clipped(params)
    opt.register_step_pre_hook(lambda *_: calls.append("pre"))
    opt.step()
    assert calls == ["pre"]


def test_closures_compute_the_gradients_of_the_step():
    net, twin = nets()
    for each, make_opt in ((net, fused.Adam), (twin, torch.optim.Adam)):
        opt = make_opt(each.parameters(), lr=0.01)

        def closure(each=each, opt=opt):
            opt.zero_grad()
            loss = loss_of(each, 0)
            loss.backward()
            return loss

        with torch.no_grad():
            losses = [opt.step(closure).item() for _ in range(5)]
        assert losses[-1] < losses[0]
    assert_close(list(net.parameters()), list(twin.parameters()), 1e-5)


@every
def test_the_method_zero_grad_is_torchs(name):
    params = make()
    opt = getattr(fused, name)(params, zero_grad=True)
    give_gradients(params, twins(params), torch.Generator())
    gradients = [p.grad for p in params if p.requires_grad]
    opt.step()
    assert all(not gradient.any() for gradient in gradients)
    opt.zero_grad()
    assert all(p.grad is None for p in params)


def test_a_profiler_sees_the_step():
    params = make()
    opt = fused.Adam(params)
    give_gradients(params, twins(params), torch.Generator())
    with torch.profiler.profile() as profile:
        opt.step()
    assert any(event.key == "Optimizer.step#Adam.step" for event in profile.key_averages())


def test_autograd_notices_that_parameters_were_written():
    net, _ = nets()
    opt = fused.Adam(net.parameters(), lr=0.01)
    loss = loss_of(net, 0)
    loss.backward(retain_graph=True)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_one_optimizer_for_each_parameter_steps_in_backward():
    net, twin = nets()
    opts = {p: fused.Adam([p], lr=0.01) for p in net.parameters()}
    threads = set()

    def step(p):
        threads.add(threading.get_ident())
        opts[p].step()
        opts[p].zero_grad()

    for p in net.parameters():
        p.register_post_accumulate_grad_hook(step)
    other = torch.optim.Adam(twin.parameters(), lr=0.01)

    def backward(steps):
        for number in steps:
            loss_of(net, number).backward()

    backward(range(5))
    thread = threading.Thread(target=backward, args=(range(5, 10),))
    thread.start()
    thread.join()
    for number in range(10):
        other.zero_grad()
        loss_of(twin, number).backward()
        other.step()
    assert len(threads) == 2
    assert_close(list(net.parameters()), list(twin.parameters()), 1e-5)


def test_threads_step_optimizers_of_their_own_at_once():
    results, errors = {}, []

    def work(number):
        try:
            params = make()
            train(fused.Adam(params, lr=0.01), torch.optim.SGD(twins(params)), params, twins(params), 20)
            results[number] = params
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for number in range(1, 4):
        assert all(torch.equal(p, first) for p, first in zip(results[number], results[0], strict=True))


@names
def test_a_compiled_training_step_calls_it(name):
    net, twin = nets()
    runs = [(net, getattr(fused, name)(net.parameters(), lr=0.01))]
    runs += [(twin, getattr(torch.optim, name)(twin.parameters(), lr=0.01, foreach=False))]
    torch._dynamo.reset()

    def training_step(opt, net, x):
        opt.zero_grad()
        loss = (net(x) - 1.0).square().mean()
        loss.backward()
        opt.step()
        return loss

    # The backend that compiles nothing: no C++ compiler is asked for.
    compiled = torch.compile(training_step, backend="eager")
    steps = [compiled, training_step]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(5):
            x = torch.randn(16, 4, generator=torch.Generator().manual_seed(number))
            for (each, opt), step in zip(runs, steps, strict=True):
                step(opt, each, x)
    assert_close(list(net.parameters()), list(twin.parameters()), 1e-5)


def test_steps_in_inference_mode_and_without_gradients():
    opt, other, params, others = pair("Adam", torch.float32, lr=0.01)
    give_gradients(params, others, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        opt.step()
    with torch.no_grad():
        other.step()
    train(opt, other, params, others, 5)
    assert_close(params, others, 1e-5)


TIES = {
    "the same memory": lambda flat: [flat.view(-1), flat.view(4, -1), flat[:1_000]],
    "a part of it": lambda flat: [flat[:70_000], flat[90_000:], flat[50_000:100_000], flat[99_000:]],
}


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("later", [False, True], ids=["from the start", "later"])
def test_parameters_that_share_memory_are_stepped_one_after_the_other(ties, later):
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    runs = []
    for make_opt in (fused.AdamW, torch.optim.AdamW):
        params = [p.clone() if later else p for p in TIES[ties](values.clone())]
        runs.append((make_opt([p.requires_grad_() for p in params], lr=0.1), params))
    for step in range(6):
        for opt, params in runs:
            if later and step == 3:
                for p, view in zip(params, TIES[ties](values.clone()), strict=True):
                    p.data = view
            for index, p in enumerate(params):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * step + index))
            opt.step()
    assert_close(runs[0][1], runs[1][1], 1e-5)


def test_clipping_does_not_go_with_parameters_that_share_memory():
    flat = torch.ones(10)
    params = [("a", flat[:6].requires_grad_()), ("b", flat[4:].requires_grad_())]
    for _, p in params:
        p.grad = torch.ones_like(p)
    opt = fused.AdamW(params, max_grad_norm=1.0)
    with pytest.raises(ValueError, match=r"`max_grad_norm`.* need parameters that share no memory, got `b`, which"):
        opt.step()
    assert torch.equal(flat, torch.ones(10))


@pytest.mark.parametrize("kind", ["one tensor", "a part of it", "one of parameters that share memory"])
@pytest.mark.parametrize("options", [{}, {"nonfinite": "raise"}], ids=str)
def test_gradients_that_share_memory_are_all_read_before_they_are_zeroed(kind, options):
    if kind == "one of parameters that share memory" and options:
        pytest.skip("refused")
    runs = []
    for make_opt, own in ((fused.AdamW, {"zero_grad": True, **options}), (torch.optim.AdamW, {})):
        params = [torch.ones(100_000), torch.ones(100_000), torch.ones(5)]
        if kind == "one of parameters that share memory":
            params[1] = params[0].view(-1)
        runs.append((make_opt([p.requires_grad_() for p in params], lr=0.1, **own), params))
    for step in range(6):
        for opt, params in runs:
            flat = torch.randn(150_000, generator=torch.Generator().manual_seed(step))
            params[0].grad = flat[:100_000]
            # Apart in some steps.
            params[1].grad = params[0].grad.clone() if step in (2, 3) else params[0].grad
            if kind == "a part of it":
                params[1].grad = flat[50_000:]
            params[2].grad = None if step == 4 else torch.ones(5)
            opt.step()
        assert all(p.grad is None or not p.grad.any() for p in runs[0][1])
    assert_close(runs[0][1], runs[1][1], 1e-5)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Passing(TorchDispatchMode):
    """A mode that looks on, as one that counts does."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options", [{}, {"moment_dtype": "float8"}, {"ema_decay": 0.9, "copy_dtype": "float16"}], ids=str
)
@pytest.mark.parametrize(
    "mode",
    [
        lambda: torch.device("meta"),
        lambda: default_device("meta"),
        lambda: default_dtype(torch.bfloat16),
        lambda: default_dtype(torch.float64),
        Passing,
    ],
    ids=["meta", "default meta", "default bfloat16", "default float64", "dispatch"],
)
def test_states_are_real_and_on_the_device_of_their_parameter_in_any_mode(mode, options):
    params = [torch.ones(5_000).requires_grad_(), torch.ones(2, 3).requires_grad_()]
    others = twins(params)
    opt, other = (fused.NAdam(each, lr=0.1, **options) for each in (params, others))
    for step in range(3):
        for each in (*params, *others):
            each.grad = torch.full_like(each, 1.0 + step)
        # In the order of its memory, and in another, which is copied.
        params[1].grad = params[1].grad.T.contiguous().T
        other.step()
        with mode():
            opt.step()
    assert all(torch.equal(p, twin) for p, twin in zip(params, others, strict=True))
    for p, twin in zip(params, others, strict=True):
        assert opt.state[p].keys() == other.state[twin].keys()
        for key, value in opt.state[p].items():
            assert (type(value), value.device) == (torch.Tensor, p.device)
            assert value.dtype == other.state[twin][key].dtype or key in ("step", "mu_product")


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("allow", [False, True])
def test_a_step_that_would_make_fake_tensors_is_refused(allow):
    params = [torch.ones(3, 4).requires_grad_(), torch.ones(2).requires_grad_()]
    opt = fused.AdamW(params, lr=0.1)
    for step in range(3):
        for p in params:
            p.grad = torch.ones_like(p)
        if step != 1:  # a first step makes the state, and a later one a copy of a gradient that lies in another order
            params[0].grad = torch.ones(4, 3).T
            before, state = twins(params), len(opt.state)
            message = "what torch makes in `step` must be a tensor with memory of its own, got FakeTensor"
            with FakeTensorMode(allow_non_fake_inputs=allow), pytest.raises(TypeError, match=message):
                opt.step()
            assert all(torch.equal(p, value) for p, value in zip(params, before, strict=True))
            assert len(opt.state) == state
        opt.step()
    assert all(type(value) is torch.Tensor for entry in opt.state.values() for value in entry.values())
