"""A schedule as the learning rate: the same bits as by hand, errors before anything is written, and resume."""

import math
import pickle

import numpy as np
import pytest
import systems
from ml_dtypes import bfloat16
from oracle import bits, memory
from training import LARGE, copies, make

import fastadam
from fastadam import schedules

SHAPES = {"w": (3, 5), "b": ()}
WARMUP = schedules.WarmupCosine(peak_lr=0.1, warmup_steps=3, total_steps=9)


def inverse_root(step):
    return 0.1 / math.sqrt(step + 1)


def torch_cosine(optimizer):
    import torch

    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)


def from_torch():
    pytest.importorskip("torch")
    return schedules.from_torch(torch_cosine, lr=0.1)


def from_optax():
    return pytest.importorskip("optax").warmup_cosine_decay_schedule(0.0, 0.1, 3, 9)


SCHEDULES = {"own": lambda: WARMUP, "function": lambda: inverse_root, "torch": from_torch, "optax": from_optax}
kinds_of_schedules = pytest.mark.parametrize("made", SCHEDULES.values(), ids=SCHEDULES.keys())


def two_groups(kind=fastadam.AdamW, shapes=SHAPES, **options):
    """Groups of `w` and of the rest, which has `lr=0.25`."""
    rest = make(shapes)
    first = {"w": rest.pop("w")}
    return kind([{"params": first}, {"params": rest, "lr": 0.25}], weight_decay=0.1, **options)


# --- numbers


def test_an_array_that_is_given_as_a_rate_is_read_once():  # pytorch#163093
    rate = np.array(0.5)
    opt = fastadam.Adam([{"params": [np.ones(2)]}, {"params": [np.ones(2)]}], lr=rate)
    rate[...] = 0.25
    assert opt.get_last_lr() == [0.5, 0.5]
    opt.param_groups[0]["lr"] = rate
    rate[...] = 0.125
    opt.param_groups[1]["lr"] *= 0.5
    assert opt.get_last_lr() == [0.25, 0.25]


@pytest.mark.parametrize("kind", [float, np.float32, np.float64, np.array, bfloat16], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("dtype", [np.float32, bfloat16], ids=["float32", "bfloat16"])
def test_the_kind_of_a_number_changes_no_dtype_and_no_bit(kind, dtype):  # optax#1405
    params = [np.ones(3, dtype), np.ones(3, dtype)]
    for array, lr in zip(params, (kind(2.0**-5), 2.0**-5), strict=True):
        opt = fastadam.AdamW([array], lr=lr, seed=0)
        opt.step([np.full(3, 0.5, dtype)])
        assert opt.state_dict()["state"][0]["exp_avg"].dtype == np.float32
    assert params[0].tobytes() == params[1].tobytes() != np.ones(3, dtype).tobytes()


# --- the same as by hand


@kinds_of_schedules
@pytest.mark.parametrize("name", ["AdamW", "NAdam", "Adamax", "RAdam", "Lion", "AdEMAMix"])
def test_schedule_is_the_assignment_before_each_step(name, made):
    schedule, kind = made(), getattr(fastadam, name)
    scheduled, by_hand = two_groups(kind, lr=schedule), two_groups(kind)
    for step in range(12):
        lr = float(schedule(step))
        assert scheduled.get_last_lr() == [lr, 0.25]
        by_hand.param_groups[0]["lr"] = lr
        scheduled.step(make(SHAPES, step))
        by_hand.step(make(SHAPES, step))
    assert memory(scheduled) == memory(by_hand)
    assert scheduled.param_groups[0]["lr"] is schedule


@pytest.mark.parametrize("size", [5, LARGE], ids=["small", "large"])
def test_schedule_of_each_group_and_of_all(size):
    shapes = {"w": size, "b": ()}
    own, common = two_groups(shapes=shapes), two_groups(shapes=shapes, lr=inverse_root)
    own.param_groups[0]["lr"], own.param_groups[1]["lr"] = inverse_root, WARMUP
    common.param_groups[1]["lr"] = WARMUP
    by_hand = two_groups(shapes=shapes)
    for step in range(4):
        for group, schedule in zip(by_hand.param_groups, (inverse_root, WARMUP), strict=True):
            group["lr"] = schedule(step)
        for opt in (own, common, by_hand):
            opt.step(make(shapes, step))
    assert memory(own) == memory(common) == memory(by_hand)


def test_torch_scheduler_is_that_of_a_torch_optimizer():
    torch = pytest.importorskip("torch")
    params, opt = make(SHAPES, dtype=np.float64), fastadam.AdamW(make(SHAPES, dtype=np.float64), lr=from_torch())
    tensors = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in params.items()}
    theirs = torch.optim.AdamW(tensors.values(), lr=0.1, foreach=False)
    scheduler = torch_cosine(theirs)
    for step in range(20):
        grads = make(SHAPES, step, np.float64)
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(grads[name])
        theirs.step()
        scheduler.step()
        opt.step(grads)
        assert opt.get_last_lr() == pytest.approx(scheduler.get_last_lr(), rel=1e-15)
    for name, tensor in tensors.items():
        np.testing.assert_allclose(opt.params[name], tensor.detach().numpy(), rtol=0, atol=1e-12)


def test_optax_schedule_is_that_of_an_optax_optimizer():
    schedule, params, grads = from_optax(), make(SHAPES), [make(SHAPES, step) for step in range(20)]
    theirs = systems.run_optax("adamw", params, grads, lr=schedule, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    opt = fastadam.AdamW(copies(params), lr=schedule, weight_decay=0.1, convention="optax")
    for step in grads:
        opt.step(step)
    for name, array in theirs.items():
        np.testing.assert_allclose(opt.params[name], array, rtol=1e-5, atol=5e-5)


def test_schedule_is_called_once_a_step_with_the_steps_before():
    calls = []
    opt = two_groups(lr=lambda step: calls.append(step) or 0.1)
    for seed in range(3):
        opt.step(make(SHAPES, seed))
    assert calls == [0, 1, 2]
    assert {type(step) for step in calls} == {int}
    opt.param_groups[0]["lr"] = 0.5
    opt.step(make(SHAPES, 3))
    assert calls == [0, 1, 2]
    assert opt.get_last_lr() == [0.5, 0.25]


def test_added_group_counts_its_own_steps():
    opt = fastadam.Adam(make({"w": 3}), lr=inverse_root)
    for seed in (1, 2):
        opt.step(make({"w": 3}, seed))
    opt.add_param_group({"params": make({"added": 2})})
    assert opt.get_last_lr() == [inverse_root(2), inverse_root(0)]


# --- resume


@kinds_of_schedules
def test_resumed_schedule_goes_on_to_the_last_bit(made):
    straight = two_groups(lr=made())
    for seed in range(4):
        straight.step(make(SHAPES, seed))
    resumed = two_groups(lr=made())
    for name, view in resumed.params.items():
        view[...] = straight.params[name]
    # A schedule is not part of the state: closures, as those of optax, can't be pickled.
    resumed.load_state_dict(pickle.loads(pickle.dumps(straight.state_dict())))
    for seed in range(4, 10):
        assert resumed.get_last_lr() == straight.get_last_lr()
        straight.step(make(SHAPES, seed))
        resumed.step(make(SHAPES, seed))
    assert memory(resumed) == memory(straight)


# --- steps that are not taken


def test_skipped_steps_count_for_the_schedule_and_refused_ones_do_not():
    bad = {"w": np.full((3, 5), np.nan, np.float32), "b": np.zeros((), np.float32)}
    skip, refuse = (two_groups(lr=inverse_root, nonfinite=policy) for policy in ("skip", "raise"))
    by_hand = two_groups()
    skip.step(make(SHAPES, 1))
    skip.step(bad)
    assert skip.get_last_lr()[0] == inverse_root(2)
    resumed = two_groups(lr=inverse_root, nonfinite="skip")
    for name, view in resumed.params.items():
        view[...] = skip.params[name]
    resumed.load_state_dict(skip.state_dict())
    for step in (0, 2):
        by_hand.param_groups[0]["lr"] = inverse_root(step)
        by_hand.step(make(SHAPES, step + 1))
    for opt in (skip, resumed):
        opt.step(make(SHAPES, 3))
        assert memory(opt) == memory(by_hand)
    with pytest.raises(FloatingPointError):
        refuse.step(bad)
    assert refuse.get_last_lr()[0] == inverse_root(0)


BAD = {
    "nan": (math.nan, ValueError, r"`lr` must be >= 0 and finite, got nan from its schedule at step 2"),
    "inf": (np.float32(np.inf), ValueError, r"`lr` must be >= 0 and finite, got inf from its schedule at step 2"),
    "negative": (-0.5, ValueError, r"`lr` must be >= 0 and finite, got -0.5 from its schedule at step 2"),
    "string": ("fast", TypeError, r"`lr` must be a real number, got 'fast' from its schedule at step 2"),
    "nothing": (None, TypeError, r"`lr` must be a real number, got None from its schedule at step 2"),
    "complex": (1j, TypeError, r"`lr` must be a real number, got 1j from its schedule at step 2"),
    "array": (
        np.ones(2),
        TypeError,
        r"`lr` must be a real number, got array\(\[1., 1.\]\) from its schedule at step 2",
    ),
}


@pytest.mark.parametrize("options", [{}, {"nonfinite": "skip", "zero_grad": True}], ids=["plain", "skip"])
@pytest.mark.parametrize(("value", "error", "message"), BAD.values(), ids=BAD.keys())
def test_bad_value_of_a_schedule(value, error, message, options):
    broken = [False]
    opt, clean = (two_groups(**options) for _ in range(2))
    for one in (opt, clean):
        one.add_param_group({"params": make({"added": LARGE}), "lr": lambda step: value if broken[0] else 0.1})
        for seed in (1, 2):
            one.step(make({**SHAPES, "added": LARGE}, seed))
    for name, view in opt.grads.items():
        view[...] = make({**SHAPES, "added": LARGE}, 9)[name]
    grads = make({**SHAPES, "added": LARGE}, 3)
    kept = memory(opt), bits(opt.grads), bits(grads)
    broken[0] = True
    for attempt in (lambda: opt.step(grads), opt.step, opt.get_last_lr):
        with pytest.raises(error, match=message):
            attempt()
    assert (memory(opt), bits(opt.grads), bits(grads)) == kept
    assert opt.skipped_steps == 0
    broken[0] = False
    clean.step(copies(grads))
    opt.step(grads)
    assert memory(opt) == memory(clean)


def test_schedule_that_raises_leaves_everything_as_it_was():
    opt = two_groups(lr=lambda step: 1 / (1 - step))
    opt.step(make(SHAPES, 1))
    before = memory(opt)
    with pytest.raises(ZeroDivisionError):
        opt.step(make(SHAPES, 2))
    assert memory(opt) == before
    opt.param_groups[0]["lr"] = 0.1
    opt.step(make(SHAPES, 2))
