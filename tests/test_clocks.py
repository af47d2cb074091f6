"""Parameters without a gradient: skipped as torch skips them, each with bias corrections of its own steps."""

import math

import numpy as np
import pytest
from oracle import bits, memory, raw
from row_model import WIDTH, dense, draw_rows
from training import HYPER, LARGE, both, by_assignment, copies, make

import fastadam
from fastadam import SparseRows
from fastadam.step import plan as plans

SHAPES = {"w": (3, 5), "b": (), "k": 11, "none": (0, 2), "large": LARGE + 3}
KINDS = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Lion", "AdEMAMix")


def presences(steps, names, seed=0, share=0.6):
    """For each step, the names of what has a gradient: of nothing, now and then, and of everything."""
    rng = np.random.default_rng(seed)
    for step in range(steps):
        chances = rng.random(len(names)) < (0.0, 1.0, share, share)[step % 4]
        # Keys, which keep their order, where a set's would change from process to process.
        yield dict.fromkeys(name for name, present in zip(names, chances, strict=True) if present).keys()


def gradients(names, present, seed, shapes=SHAPES, dtype=np.float32):
    drawn = make(shapes, seed, dtype)
    return {name: drawn[name] if name in present else None for name in names}


def steps_of(opt):
    return {name: entry["step"] for name, entry in opt.state_dict()["state"].items()}


# --- as torch


TORCH = [("Adam", {}), ("Adam", {"amsgrad": True}), ("AdamW", {}), ("NAdam", {}), ("RAdam", {}), ("Adamax", {})]


@pytest.mark.parametrize("listed", [False, True], ids=["mapping", "list"])
@pytest.mark.parametrize(("name", "options"), TORCH, ids=str)
def test_60_steps_with_some_gradients_as_torch_takes_them(name, options, listed):
    torch = pytest.importorskip("torch")
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # NAdam's product of momenta
    try:
        shapes = {"w": (3, 5), "b": (), "k": 11}
        params = make(shapes, dtype=np.float64)
        tensors = {key: torch.nn.Parameter(torch.tensor(param)) for key, param in params.items()}
        theirs = getattr(torch.optim, name)(tensors.values(), **HYPER, **options, foreach=False)
        ours = getattr(fastadam, name)(list(params.values()) if listed else params, **HYPER, **options)
        for seed, present in enumerate(presences(60, list(shapes)), 1):
            grads = gradients(shapes, present, seed, shapes, np.float64)
            for key, tensor in tensors.items():
                tensor.grad = None if grads[key] is None else torch.tensor(grads[key])
            theirs.step()
            ours.step(list(grads.values()) if listed else grads)
    finally:
        torch.set_default_dtype(default)
    saved = theirs.state_dict()["state"]
    for index, (key, tensor) in enumerate(tensors.items()):
        np.testing.assert_allclose(params[key], tensor.detach().numpy(), rtol=0, atol=1e-12)
        entry = ours.state_dict()["state"][index if listed else key]
        assert entry.pop("step") == int(saved[index]["step"])
        assert entry.pop("skipped") == 60 - int(saved[index]["step"]) > 0
        for state, value in entry.items():
            np.testing.assert_allclose(value, saved[index][state].numpy(), rtol=1e-12, atol=1e-15, err_msg=state)
    assert len(set(steps_of(ours).values())) > 1


# --- one optimizer is as many as it has parameters


@both
@pytest.mark.parametrize("name", KINDS)
def test_500_random_steps_of_40_parameters_are_those_of_40_optimizers(name, flat):
    sizes = np.random.default_rng(4).integers(0, 40, 40)
    shapes = {f"p{index}": int(size) for index, size in enumerate(sizes)}
    together = getattr(fastadam, name)(make(shapes), weight_decay=0.1, flat=flat)
    params = make(shapes)
    alone = {key: getattr(fastadam, name)({key: param}, weight_decay=0.1) for key, param in params.items()}
    plan, rng = together._engine.plan, np.random.default_rng(5)
    for seed in range(500):
        # A few patterns that come again, and others.
        share = (0.99, 0.9, 0.5, 1.0)[seed % 4]
        chances = (np.random.default_rng(seed % 12) if seed % 3 else rng).random(40) < share
        present = {key for key, chance in zip(shapes, chances, strict=True) if chance}
        grads = gradients(shapes, present, seed, shapes)
        together.step(grads)
        for key in present:
            alone[key].step({key: grads[key]})
        assert len(np.unique(plan.clock_of)) <= len(plan._part_of_clock) <= 40
    for key, opt in alone.items():
        assert bits(raw(together, key)) == bits(raw(opt, key))
        assert steps_of(together)[key] == steps_of(opt)[key]


@both
@pytest.mark.parametrize("name", ["AdamW", "NAdam"])
def test_groups_and_gradients_written_in_place(name, flat):
    """Between steps with some gradients there are steps with all of them, written into `grads`."""
    params = make(SHAPES)
    first = {key: params.pop(key) for key in ("w", "large")}
    groups = [{"params": first, "lr": 0.1}, {"params": params, "lr": 0.3}]
    together = getattr(fastadam, name)(groups, flat=flat, weight_decay=0.1)
    alone = {
        key: getattr(fastadam, name)({key: param}, lr=0.1 if key in first else 0.3, weight_decay=0.1)
        for key, param in make(SHAPES).items()
    }
    for seed, present in enumerate(presences(40, list(SHAPES)), 1):
        grads = gradients(SHAPES, present, seed)
        if present == SHAPES.keys():
            by_assignment(together, grads)
        else:
            together.step(grads)
        for key in present:
            alone[key].step({key: grads[key]})
    assert {key: bits(raw(together, key)) for key in SHAPES} == {key: bits(raw(alone[key], key)) for key in SHAPES}


def test_a_step_without_any_gradient_changes_nothing():
    for options in ({}, {"max_grad_norm": 1.0}, {"nonfinite": "raise"}, {"zero_grad": True}):
        opt = fastadam.NAdam(make(SHAPES), **options)
        opt.step(make(SHAPES, 1))
        before = memory(opt)
        opt.step(dict.fromkeys(SHAPES))
        assert memory(opt) == before
        assert opt.grad_norm in (None, 0.0)
        assert opt.skipped_steps == 0
        opt.step(make(SHAPES, 2))
        assert set(steps_of(opt).values()) == {2}


def test_none_in_a_list_and_a_missing_name():
    opt = fastadam.Adam([np.ones(2), np.ones(3)])
    opt.step([None, np.ones(3)])
    assert steps_of(opt) == {0: 0, 1: 1}
    named = fastadam.Adam({"a": np.ones(2), "b": np.ones(3)})
    with pytest.raises(ValueError, match="`grads` must have an entry for every parameter, got none for 'b'"):
        named.step({"a": np.ones(2)})
    assert steps_of(named) == {"a": 0, "b": 0}


def test_launches_that_could_not_be_prepared_leave_none_that_read_other_gradients(monkeypatch):
    opt, clean = (fastadam.Adam(make({"a": 4, "b": 5})) for _ in range(2))
    for one in (opt, clean):
        by_assignment(one, make({"a": 4, "b": 5}, 1))
    before = memory(opt)
    with monkeypatch.context() as patch:
        patch.setattr(plans, "cut", lambda pieces: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            opt.step({"a": np.full(4, 9.0, np.float32), "b": None})
    assert memory(opt) == before
    for one in (opt, clean):
        by_assignment(one, make({"a": 4, "b": 5}, 2))
    assert memory(opt) == memory(clean)


# --- schedules, settings and groups


def test_schedules_count_what_was_asked_of_the_group():
    schedule, params = fastadam.schedules.WarmupCosine(0.1, 3, 40), make({"a": 3, "b": 4, "c": 2})
    groups = [{"params": {"a": params["a"], "b": params["b"]}}, {"params": {"c": params["c"]}}]
    opt = fastadam.AdamW(groups, lr=schedule)
    by_hand = fastadam.AdamW(make({"a": 3, "b": 4, "c": 2}))
    for seed, present in enumerate(presences(30, ["a", "b", "c"])):
        assert opt.get_last_lr() == [schedule(seed)] * 2
        by_hand.param_groups[0]["lr"] = float(schedule(seed))
        for one in (opt, by_hand):
            one.step(gradients("abc", present, seed, {"a": 3, "b": 4, "c": 2}))
    assert memory(opt) == memory(by_hand)
    assert max(steps_of(opt).values()) < 30


def test_assigned_settings_reach_all_clocks_of_a_group():
    shapes = {f"p{index}": 5 for index in range(6)}
    opt, fresh = (fastadam.AdamW(make(shapes), lr=0.5) for _ in range(2))
    for seed, present in enumerate(presences(12, list(shapes))):
        for one in (opt, fresh):
            one.step(gradients(shapes, present, seed, shapes))
    assert len(set(steps_of(opt).values())) > 2
    opt.param_groups[0]["lr"] = 0.01
    opt.param_groups[0].update({"betas": (0.3, 0.6), "eps": 1e-3, "weight_decay": 0.2, "maximize": True})
    # The same settings, from a state.
    state = fresh.state_dict()
    state["param_groups"][0].update({key: value for key, value in opt.param_groups[0].items() if key != "params"})
    fresh.load_state_dict(state)
    for one in (opt, fresh):
        one.step(make(shapes, 50))
    assert memory(opt) == memory(fresh)
    hyper = opt._engine.plan.tables.hyper[np.unique(opt._engine.plan.clock_of)]
    assert len(hyper) > 2
    assert (hyper == hyper[0]).all()


def test_rates_of_465_groups_are_numbers_written_in_place(monkeypatch):
    opt = fastadam.AdamW([{"params": [np.ones(2)]} for _ in range(465)])
    opt.step([np.ones(2)] * 465)
    plan, calls, before = opt._engine.plan, [], dict(opt._engine.plan._prepared)
    monkeypatch.setattr(plans, "hyper_of", lambda *a, _of=plans.hyper_of, **k: calls.append(a) or _of(*a, **k))
    for index, group in enumerate(opt.param_groups):
        group["lr"] = index / 465
    assert not calls
    assert plan.tables.hyper[plan.clock_of, plans.LR].tolist() == [index / 465 for index in range(465)]
    opt.param_groups[7]["weight_decay"] = 0.5
    assert len(calls) == 1
    assert plan._prepared == before
    opt.step([np.ones(2)] * 465)
    assert opt.params[0][0] > opt.params[464][0]


def test_groups_added_after_clocks_were_split():
    shapes = {"a": 4, "b": 5, "c": 6}
    opt, alone = fastadam.NAdam(make(shapes)), {}
    for key, param in make({**shapes, "d": 3}).items():
        alone[key] = fastadam.NAdam({key: param})
    for seed, present in enumerate(presences(10, "abc")):
        grads = gradients("abc", present, seed, shapes)
        opt.step(grads)
        for key in present:
            alone[key].step({key: grads[key]})
    opt.add_param_group({"params": {"d": make({**shapes, "d": 3})["d"]}})
    assert steps_of(opt)["d"] == 0
    for seed, present in enumerate(presences(20, "abcd", seed=9), 10):
        grads = gradients("abcd", present, seed, {**shapes, "d": 3})
        opt.step(grads)
        for key in present:
            alone[key].step({key: grads[key]})
    for key, one in alone.items():
        assert bits(raw(opt, key)) == bits(raw(one, key))
    assert len(opt._engine.plan._part_of_clock) <= 4


@pytest.mark.parametrize("name", KINDS)
def test_resumed_clocks_go_on_to_the_last_bit(name):
    straight, resumed = (getattr(fastadam, name)(make(SHAPES), lr=0.01) for _ in range(2))
    for seed, present in enumerate(presences(15, list(SHAPES))):
        straight.step(gradients(SHAPES, present, seed))
    resumed.step(make(SHAPES, 1))
    for key, view in resumed.params.items():
        view[...] = straight.params[key]
    resumed.load_state_dict(straight.state_dict())
    for seed, present in enumerate(presences(15, list(SHAPES), seed=3), 15):
        for opt in (straight, resumed):
            opt.step(gradients(SHAPES, present, seed))
    assert memory(resumed) == memory(straight)
    assert [entry["skipped"] for entry in resumed.state_dict()["state"].values()] == [
        30 - step for step in steps_of(straight).values()
    ]


# --- with the rest of a step


@pytest.mark.parametrize("options", [{"max_grad_norm": 0.5}, {"nonfinite": "skip"}], ids=str)
def test_norm_is_that_of_the_gradients_that_are_there(options):
    opt = fastadam.AdamW(make(SHAPES), **options)
    for seed, present in enumerate(presences(12, list(SHAPES))):
        grads = gradients(SHAPES, present, seed)
        some = fastadam.AdamW({key: opt.params[key].copy() for key in present} or {"w": np.ones(0)}, **options)
        some.step({key: grads[key] for key in present} or {"w": np.ones(0)})
        opt.step(grads)
        squares = math.fsum(float(x) ** 2 for g in grads.values() if g is not None for x in g.ravel())
        assert opt.grad_norm == some.grad_norm == pytest.approx(math.sqrt(squares), rel=1e-12)


@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_a_refused_step_moves_no_clock(policy):
    opt, clean = (fastadam.NAdam(make(SHAPES), nonfinite=kind) for kind in (policy, "propagate"))
    skipped = 0
    for seed, present in enumerate(presences(24, list(SHAPES))):
        grads = gradients(SHAPES, present, seed)
        bad = {key: None if g is None else g * np.float32(np.nan) for key, g in grads.items()}
        finite = not any(g is not None and g.size for g in grads.values())
        before = memory(opt)
        if policy == "raise" and not finite:
            with pytest.raises(FloatingPointError):
                opt.step(bad)
        else:
            opt.step(bad)
            skipped += policy == "skip" and not finite
        assert memory(opt) == before or finite
        assert opt.skipped_steps == skipped
        if not finite:
            opt.step(grads)
        clean.step(grads)
    assert memory(opt)[0] == memory(clean)[0]


@both
def test_gradients_that_are_there_are_zeroed(flat):
    opt, clean = (fastadam.Adam(make(SHAPES), zero_grad=zeroed, flat=flat) for zeroed in (True, False))
    for seed, present in enumerate(presences(12, list(SHAPES))):
        grads = gradients(SHAPES, present, seed)
        clean.step(copies({key: grads[key] for key in present}) | dict.fromkeys(SHAPES.keys() - present))
        opt.step(grads)
        assert not any(gradient.any() for gradient in grads.values() if gradient is not None)
    assert memory(opt) == memory(clean)


# --- exact rows


@pytest.mark.parametrize(
    ("name", "options"), [("Adam", {}), ("AdamW", {}), ("NAdam", {"decoupled_weight_decay": True})], ids=str
)
def test_exact_rows_miss_no_step_in_which_their_parameter_had_no_gradient(name, options):
    rng = np.random.default_rng(8)
    shapes = {"first": (30, WIDTH), "second": (20, WIDTH), "bias": 5}
    options = {**options, "lr": fastadam.schedules.WarmupCosine(1e-2, 20, 300)}
    if name != "Adam":
        options["weight_decay"] = 0.1
    here, there = (make(shapes, dtype=np.float64) for _ in range(2))
    opt, expected = getattr(fastadam, name)(here, sparse="exact", **options), getattr(fastadam, name)(there, **options)
    for seed, present in enumerate(presences(200, list(shapes), share=0.7)):
        grads = gradients(shapes, present & {"bias"}, seed, shapes, np.float64)
        denser = dict(grads)
        for key in present - {"bias"}:
            count = shapes[key][0]
            indices, values = draw_rows(rng, np.float64, count=3, rows=count)
            denser[key] = dense(indices, values, count)
            grads[key] = denser[key] if seed % 11 == 5 else SparseRows(indices, values)
        opt.step(grads)
        expected.step(denser)
        if seed % 50 == 49:
            opt.catch_up("first", range(0, 30, 2))
    assert steps_of(opt) == steps_of(expected)
    for key, view in here.items():
        np.testing.assert_allclose(view, there[key], rtol=1e-12, atol=1e-13, err_msg=key)


def test_history_is_kept_for_clocks_with_rows_only():
    opt = fastadam.Adam({"table": np.ones((9, 2)), "a": np.ones(2), "b": np.ones(2)}, sparse="exact")
    rows = SparseRows([1], np.ones((1, 2)))
    opt.step({"table": rows, "a": np.ones(2), "b": np.ones(2)})
    opt.step({"table": rows, "a": np.ones(2), "b": None})
    opt.step({"table": None, "a": np.ones(2), "b": np.ones(2)})
    opt.step({"table": rows, "a": None, "b": np.ones(2)})
    history, plan = opt._engine._history, opt._engine.plan
    assert set(history._past) == {plan.clock_of[0]}
    assert history._past[plan.clock_of[0]].steps == 3
