"""Learning-rate schedules: equal to torch's and optax's, exact at their ends, and strict about their arguments."""

import copy
import dataclasses
import doctest
import math
import pickle
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastadam import schedules
from fastadam.schedules import (
    Constant,
    Exponential,
    OneCycle,
    TorchSchedule,
    WarmupCosine,
    WarmupLinear,
    WarmupStableDecay,
    checked,
    from_torch,
)

NAN, INF = float("nan"), float("inf")


def values(schedule, steps):
    return [schedule(step) for step in range(steps)]


# --- against torch and optax


def torch_values(make_scheduler, lr, steps):
    """What a torch optimizer trains with, step for step."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make_scheduler(torch.optim.lr_scheduler, optimizer)
    seen = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps - 1):
        optimizer.step()
        scheduler.step()
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


def equal(expected, lr):
    return pytest.approx(expected, rel=1e-12, abs=1e-15 * lr)


@pytest.mark.parametrize("anneal_strategy", ["cos", "linear"])
@pytest.mark.parametrize("total_steps", [2, 7, 100])
@pytest.mark.parametrize("pct_start", [0.0, 0.3, 0.45, 1.0])
@pytest.mark.parametrize("factors", [{}, {"div_factor": 10.0, "final_div_factor": 3.0}])
def test_one_cycle_is_that_of_torch(anneal_strategy, total_steps, pct_start, factors):
    options = {"total_steps": total_steps, "pct_start": pct_start, "anneal_strategy": anneal_strategy, **factors}
    expected = torch_values(lambda kinds, optimizer: kinds.OneCycleLR(optimizer, 0.2, **options), 0.1, total_steps)
    assert values(OneCycle(0.2, **options), total_steps) == equal(expected, 0.2)


@pytest.mark.parametrize("anneal_strategy", ["cos", "linear"])
@pytest.mark.parametrize("pct_start", [0.0, 0.2, 0.3, 1.0])
@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_one_cycle_of_few_steps_stays_between_its_ends(anneal_strategy, pct_start, total_steps):  # optax#1403
    schedule = schedules.OneCycle(0.5, total_steps, pct_start, anneal_strategy)
    assert all(0.5 / 25e4 <= schedule(step) <= 0.5 for step in range(total_steps))
    assert schedule(total_steps) == 0.5 / 25.0 / 1e4


def test_exponential_is_that_of_torch():
    expected = torch_values(lambda kinds, optimizer: kinds.ExponentialLR(optimizer, gamma=0.9), 0.3, 60)
    assert values(Exponential(0.3, 0.9), 60) == equal(expected, 0.3)


def test_staircase_is_step_lr_of_torch():
    expected = torch_values(lambda kinds, optimizer: kinds.StepLR(optimizer, step_size=7, gamma=0.5), 0.3, 60)
    assert values(Exponential(0.3, 0.5, decay_steps=7, staircase=True), 60) == equal(expected, 0.3)


@pytest.mark.parametrize("kind", [WarmupCosine, WarmupLinear])
def test_warmup_and_decay_are_those_of_torch_in_sequence(kind):
    def make_scheduler(kinds, optimizer):
        warmup = kinds.LinearLR(optimizer, start_factor=0.25, total_iters=5)
        if kind is WarmupCosine:
            decay = kinds.CosineAnnealingLR(optimizer, T_max=35, eta_min=0.02)
        else:
            decay = kinds.LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=35)
        return kinds.SequentialLR(optimizer, [warmup, decay], milestones=[5])

    expected = torch_values(make_scheduler, 0.2, 41)
    assert values(kind(0.2, 5, 40, final_lr=0.02, initial_lr=0.05), 41) == equal(expected, 0.2)


@pytest.mark.parametrize(("warmup_steps", "staircase"), [(0, False), (10, True)])
def test_optax_agrees(warmup_steps, staircase):
    optax = pytest.importorskip("optax")
    decay = {"transition_steps": 7, "decay_rate": 0.5, "end_value": 0.01}
    pairs = [
        (Constant(0.1), optax.constant_schedule(0.1)),
        (
            WarmupCosine(0.1, warmup_steps, 50, final_lr=0.01, initial_lr=0.02),
            optax.warmup_cosine_decay_schedule(0.02, 0.1, warmup_steps, decay_steps=50, end_value=0.01),
        ),
        (
            Exponential(0.1, 0.5, decay_steps=7, staircase=staircase, final_lr=0.01),
            optax.exponential_decay(0.1, staircase=staircase, **decay),
        ),
    ]
    for ours, theirs in pairs:
        assert values(ours, 60) == pytest.approx([checked(theirs, step, "lr") for step in range(60)], rel=1e-5)


# --- at the ends of every phase, exactly

GOLDEN = [
    (Constant(0.1), {0: 0.1, 7: 0.1, 10**9: 0.1}),
    (
        WarmupCosine(0.4, 10, 50, final_lr=0.1, initial_lr=0.2),
        {0: 0.2, 5: 0.3, 10: 0.4, 20: 0.25 + 0.15 * math.sqrt(0.5), 30: 0.25, 50: 0.1, 51: 0.1, 10**9: 0.1},
    ),
    (WarmupCosine(0.4, 0, 40), {0: 0.4, 20: 0.2, 40: 0.0, 41: 0.0}),
    (
        WarmupLinear(0.4, 10, 50, final_lr=0.1, initial_lr=0.2),
        {0: 0.2, 5: 0.3, 10: 0.4, 20: 0.325, 30: 0.25, 50: 0.1, 51: 0.1, 10**9: 0.1},
    ),
    (WarmupLinear(0.4, 8, 16), {0: 0.0, 1: 0.05, 8: 0.4, 9: 0.35, 16: 0.0, 17: 0.0}),
    (
        WarmupStableDecay(0.4, 10, 20, 40, final_lr=0.1, initial_lr=0.2),
        {0: 0.2, 5: 0.3, 10: 0.4, 11: 0.4, 30: 0.4, 40: 0.325, 50: 0.25, 70: 0.1, 71: 0.1, 10**9: 0.1},
    ),
    (WarmupStableDecay(0.4, 10, 20, 40, 0.1, shape="sqrt"), {0: 0.0, 30: 0.4, 40: 0.25, 70: 0.1, 71: 0.1}),
    (WarmupStableDecay(0.4, 10, 20, 40, 0.1, shape="cosine"), {0: 0.0, 30: 0.4, 50: 0.25, 70: 0.1, 71: 0.1}),
    (WarmupStableDecay(0.4, 0, 0, 1), {0: 0.4, 1: 0.0}),
    (
        OneCycle(1.0, 101, pct_start=21 / 101, div_factor=4.0, final_div_factor=2.0),
        {0: 0.25, 10: 0.625, 20: 1.0, 60: 0.5625, 100: 0.125, 101: 0.125, 10**9: 0.125},
    ),
    (
        OneCycle(1.0, 101, pct_start=21 / 101, div_factor=4.0, final_div_factor=2.0, anneal_strategy="linear"),
        {0: 0.25, 5: 0.4375, 20: 1.0, 40: 0.78125, 100: 0.125, 101: 0.125},
    ),
    (OneCycle(1.0, 10, pct_start=0.1), {0: 1.0, 9: 4e-6}),
    (Exponential(0.4, 0.25), {0: 0.4, 1: 0.1, 2: 0.025, 10**9: 0.0}),
    (Exponential(0.4, 0.25, decay_steps=10, final_lr=0.04), {0: 0.4, 5: 0.2, 10: 0.1, 20: 0.04, 10**9: 0.04}),
    (Exponential(0.4, 0.25, decay_steps=10, staircase=True), {0: 0.4, 9: 0.4, 10: 0.1, 19: 0.1, 20: 0.025}),
]
SCHEDULES = [schedule for schedule, _ in GOLDEN]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)


@pytest.mark.parametrize(("schedule", "golden"), GOLDEN, ids=map(repr, SCHEDULES))
def test_golden_values(schedule, golden):
    assert {step: schedule(step) for step in golden} == pytest.approx(golden, rel=1e-14, abs=1e-17)


@pytest.mark.parametrize("shape", ["linear", "cosine", "sqrt"])
def test_both_ends_of_a_decay_are_exact(shape):
    schedule = WarmupStableDecay(0.3, 7, 11, 13, final_lr=1e-5, initial_lr=0.1, shape=shape)
    assert [schedule(step) for step in (0, 7, 18, 31, 32)] == [0.1, 0.3, 0.3, 1e-5, 1e-5]


@every_schedule
def test_values_are_python_floats_for_any_integer(schedule):
    for step in (0, 3, 10**9):
        assert type(schedule(step)) is float
        assert schedule(np.int64(step)) == schedule(step)


@every_schedule
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda schedule: pickle.loads(pickle.dumps(schedule))])
def test_copies_are_equal(schedule, duplicate):
    copied = duplicate(schedule)
    assert copied == schedule
    assert hash(copied) == hash(schedule)
    assert values(copied, 60) == values(schedule, 60)


def test_schedules_of_other_arguments_differ():
    assert all((left == right) == (left is right) for left in SCHEDULES for right in SCHEDULES)
    assert [eval(repr(schedule)) for schedule in SCHEDULES] == SCHEDULES


def test_arguments_are_kept_as_python_numbers():
    schedule = WarmupCosine(np.float64(0.5), np.int64(10), 110)
    assert repr(schedule) == "WarmupCosine(peak_lr=0.5, warmup_steps=10, total_steps=110, final_lr=0.0, initial_lr=0.0)"
    assert schedule == WarmupCosine(0.5, 10, 110)
    assert schedule != WarmupLinear(0.5, 10, 110)
    with pytest.raises(AttributeError):
        schedule.peak_lr = 1.0


rates = st.floats(0.0, 1e3)
lengths = st.integers(0, 50)
decays = st.integers(1, 50)


@st.composite
def bounded(draw):
    """A schedule with the learning rates that bound it."""
    initial, peak, final, warmup, decay = (draw(of) for of in (rates, rates, rates, lengths, decays))
    kind = draw(st.sampled_from([WarmupCosine, WarmupLinear, WarmupStableDecay, OneCycle, Exponential]))
    if kind is OneCycle:
        factors = [draw(st.floats(1.0, 1e5)) for _ in range(2)]
        strategy = draw(st.sampled_from(["cos", "linear"]))
        return OneCycle(peak, decay, draw(st.floats(0.0, 1.0)), strategy, *factors), (peak, peak / math.prod(factors))
    if kind is Exponential:
        low, high = sorted((final, peak))
        rate = draw(st.floats(0.0, 1.0, exclude_min=True))
        return Exponential(high, rate, decay, draw(st.booleans()), low), (low, high)
    ends = {"final_lr": final, "initial_lr": initial}
    if kind is WarmupStableDecay:
        shape = draw(st.sampled_from(["linear", "cosine", "sqrt"]))
        return kind(peak, warmup, draw(lengths), decay, **ends, shape=shape), (initial, peak, final)
    return kind(peak, warmup, warmup + decay, **ends), (initial, peak, final)


@given(bounded(), st.integers(0, 200))
def test_a_learning_rate_lies_within_those_at_the_ends(schedule_and_ends, step):
    schedule, ends = schedule_and_ends
    lr = checked(schedule, step, "lr")
    assert min(ends) * (1 - 1e-15) <= lr <= max(ends) * (1 + 1e-15)


# --- torch's schedulers


@pytest.fixture
def kinds():
    return pytest.importorskip("torch").optim.lr_scheduler


def step_lr(optimizer):
    return pytest.importorskip("torch").optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5)


def test_torch_schedule_forward_and_backward(kinds):
    built = []

    def make_scheduler(optimizer):
        built.append(step_lr(optimizer))
        return built[-1]

    schedule = from_torch(make_scheduler, 0.8)
    assert [schedule(step) for step in (0, 1, 2, 3, 3, 6)] == [0.8, 0.8, 0.8, 0.4, 0.4, 0.2]
    assert len(built) == 1
    assert built[0].last_epoch == 6
    assert [schedule(step) for step in (5, 6, 0)] == [0.4, 0.2, 0.8]
    assert len(built) == 1
    assert type(schedule(9)) is float


def test_torch_schedule_trains_like_torch(kinds):
    def make_scheduler(kinds, optimizer):
        warmup = kinds.LinearLR(optimizer, start_factor=0.25, total_iters=5)
        cycle = kinds.OneCycleLR(optimizer, max_lr=0.3, total_steps=30)
        return kinds.SequentialLR(optimizer, [warmup, cycle], milestones=[5])

    assert values(from_torch(partial(make_scheduler, kinds), 0.2), 30) == torch_values(make_scheduler, 0.2, 30)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda schedule: pickle.loads(pickle.dumps(schedule))])
def test_torch_schedule_is_copied_without_its_progress(kinds, duplicate):
    schedule = from_torch(partial(kinds.StepLR, step_size=3, gamma=0.5), 0.8)
    assert schedule(7) == 0.2
    copied = duplicate(schedule)
    assert [copied(3), schedule(7), copied(7)] == [0.4, 0.2, 0.2]
    assert repr(copied) == repr(schedule)
    assert repr(schedule).startswith("TorchSchedule(make_scheduler=functools.partial(")
    assert repr(schedule).endswith("lr=0.8)")


def test_torch_schedule_after_the_end_of_its_scheduler(kinds):
    schedule = from_torch(partial(kinds.OneCycleLR, max_lr=1.0, total_steps=10), 0.1)
    last = schedule(9)
    with pytest.raises(ValueError, match="total steps is 10"):
        schedule(11)
    assert schedule(9) == last


@pytest.mark.parametrize(
    ("make_scheduler", "lr", "error", "message"),
    [
        (step_lr, -1.0, ValueError, "`lr` must be >= 0, got -1.0"),
        (step_lr, "1", TypeError, "`lr` must be a real number, got '1'"),
        ("step", 1.0, TypeError, "`make_scheduler` must be a function of a torch optimizer, got 'step'"),
        (lambda optimizer: None, 1.0, TypeError, "`make_scheduler` must return a torch LRScheduler, got NoneType"),
    ],
)
def test_torch_schedule_of_bad_arguments(kinds, make_scheduler, lr, error, message):
    assert_raises(error, message, TorchSchedule, make_scheduler, lr)
    assert_raises(error, message, from_torch, make_scheduler, lr)


def test_torch_schedulers_that_are_no_schedule(kinds):
    message = "`make_scheduler` must return a scheduler of the step alone, got ReduceLROnPlateau"
    assert_raises(TypeError, message, from_torch, kinds.ReduceLROnPlateau, 0.1)
    torch = pytest.importorskip("torch")
    used = step_lr(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1))
    message = "`make_scheduler` must schedule the optimizer that it is given, got a StepLR of another"
    assert_raises(ValueError, message, from_torch, lambda optimizer: used, 0.1)
    assert used.last_epoch == 0


# --- bad input


def assert_raises(error, message, function, *args, **options):
    with pytest.raises(error) as caught:
        function(*args, **options)
    assert type(caught.value) is error
    assert str(caught.value) == message


GOOD = {
    Constant: {"lr": 0.1},
    WarmupCosine: {"peak_lr": 0.1, "warmup_steps": 5, "total_steps": 20},
    WarmupLinear: {"peak_lr": 0.1, "warmup_steps": 5, "total_steps": 20},
    WarmupStableDecay: {"peak_lr": 0.1, "warmup_steps": 5, "stable_steps": 5, "decay_steps": 5},
    OneCycle: {"max_lr": 0.1, "total_steps": 20},
    Exponential: {"lr": 0.1, "decay_rate": 0.5},
}


NUMBERS = [(kind, field.name) for kind in GOOD for field in dataclasses.fields(kind) if field.type in (int, float)]


@pytest.mark.parametrize(("kind", "name"), NUMBERS)
def test_values_that_are_no_numbers(kind, name):
    requirement = "an integer" if name.endswith("steps") else "a real number"
    for value in (None, "1", 1j, [1, 2]):
        message = f"`{name}` must be {requirement}, got {value!r}"
        assert_raises(TypeError, message, kind, **(GOOD[kind] | {name: value}))
    if name.endswith("lr"):
        for value, requirement in ((-0.5, ">= 0"), (NAN, "finite"), (INF, "finite")):
            message = f"`{name}` must be {requirement}, got {value}"
            assert_raises(ValueError, message, kind, **(GOOD[kind] | {name: value}))


WORDS = "must be one of 'linear', 'cosine', 'sqrt', got"
BAD = [
    (WarmupCosine, {"warmup_steps": -1}, ValueError, "`warmup_steps` must be >= 0, got -1"),
    (WarmupCosine, {"warmup_steps": 5.0}, TypeError, "`warmup_steps` must be an integer, got 5.0"),
    (WarmupCosine, {"total_steps": 0}, ValueError, "`total_steps` must be >= 1, got 0"),
    (WarmupCosine, {"total_steps": 5}, ValueError, "`total_steps` must be > `warmup_steps` = 5, got 5"),
    (WarmupLinear, {"total_steps": 4}, ValueError, "`total_steps` must be > `warmup_steps` = 5, got 4"),
    (WarmupStableDecay, {"stable_steps": -2}, ValueError, "`stable_steps` must be >= 0, got -2"),
    (WarmupStableDecay, {"decay_steps": 0}, ValueError, "`decay_steps` must be >= 1, got 0"),
    (WarmupStableDecay, {"shape": "cos"}, ValueError, f"`shape` {WORDS} 'cos'"),
    (WarmupStableDecay, {"shape": None}, TypeError, f"`shape` {WORDS} None"),
    (OneCycle, {"total_steps": 0}, ValueError, "`total_steps` must be >= 1, got 0"),
    (OneCycle, {"pct_start": 30}, ValueError, "`pct_start` must be in [0, 1], got 30.0"),
    (OneCycle, {"pct_start": -0.1}, ValueError, "`pct_start` must be in [0, 1], got -0.1"),
    (OneCycle, {"div_factor": 0}, ValueError, "`div_factor` must be > 0, got 0.0"),
    (OneCycle, {"final_div_factor": -1}, ValueError, "`final_div_factor` must be > 0, got -1.0"),
    (
        OneCycle,
        {"anneal_strategy": "cosine"},
        ValueError,
        "`anneal_strategy` must be one of 'cos', 'linear', got 'cosine'",
    ),
    (Exponential, {"decay_rate": 0.0}, ValueError, "`decay_rate` must be in (0, 1], got 0.0"),
    (Exponential, {"decay_rate": 1.1}, ValueError, "`decay_rate` must be in (0, 1], got 1.1"),
    (Exponential, {"decay_steps": 0}, ValueError, "`decay_steps` must be >= 1, got 0"),
    (Exponential, {"staircase": 1}, TypeError, "`staircase` must be True or False, got 1"),
    (Exponential, {"final_lr": 0.2}, ValueError, "`final_lr` must be <= `lr` = 0.1, got 0.2"),
]


@pytest.mark.parametrize(("kind", "changes", "error", "message"), BAD)
def test_bad_arguments(kind, changes, error, message):
    assert_raises(error, message, kind, **(GOOD[kind] | changes))
    kind(**GOOD[kind])


def assert_refuses_bad_steps(schedule):
    assert_raises(ValueError, "`step` must be >= 0, got -1", schedule, -1)
    assert_raises(TypeError, "`step` must be an integer, got 1.5", schedule, 1.5)


@every_schedule
def test_bad_steps(schedule):
    assert_refuses_bad_steps(schedule)


def test_bad_steps_of_a_torch_schedule(kinds):
    assert_refuses_bad_steps(from_torch(step_lr, 0.1))


# --- the value that an optimizer takes


@pytest.mark.parametrize("value", [0.25, np.float32(0.25), np.array(0.25), np.float16(0.25)])
def test_checked_values_are_python_floats(value):
    lr = checked(lambda step: value, 3, "lr")
    assert lr == 0.25
    assert type(lr) is float


def test_checked_takes_the_step():
    assert checked(lambda step: step, 3, "lr") == 3.0


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (NAN, ValueError, "`lr` must be >= 0 and finite, got nan from its schedule at step 7"),
        (np.float32(INF), ValueError, "`lr` must be >= 0 and finite, got inf from its schedule at step 7"),
        (-0.5, ValueError, "`lr` must be >= 0 and finite, got -0.5 from its schedule at step 7"),
        (None, TypeError, "`lr` must be a real number, got None from its schedule at step 7"),
        ("0.1", TypeError, "`lr` must be a real number, got '0.1' from its schedule at step 7"),
        (1j, TypeError, "`lr` must be a real number, got 1j from its schedule at step 7"),
        (np.ones(2), TypeError, "`lr` must be a real number, got array([1., 1.]) from its schedule at step 7"),
    ],
)
def test_checked_refuses(value, error, message):
    assert_raises(error, message, checked, lambda step: value, 7, "lr")


def test_an_error_of_the_schedule_itself_is_left_alone():
    def schedule(step):
        raise ValueError(f"no step {step}")

    assert_raises(ValueError, "no step 7", checked, schedule, 7, "lr")


def test_docstring_examples():
    pytest.importorskip("torch")
    results = doctest.testmod(schedules)
    assert results.failed == 0
    assert results.attempted >= 18
