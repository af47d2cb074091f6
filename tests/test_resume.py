"""Resumed runs, bit for bit: however parameters are held and grouped, and whatever steps each has taken."""

import numpy as np
import pytest
from ml_dtypes import bfloat16
from oracle import bits, memory, raw
from training import both, copies, make

import fastadam
from fastadam import schedules
from fastadam.kernels.texts.casts import WORDS

SHAPES = {"w": (65, 70), "b": (), "k": (3, 1999), "none": (0, 3)}
STORAGES = {
    "float32": (np.float32, {}),
    "amsgrad and average": (np.float32, {"amsgrad": True, "ema_decay": 0.9}),
    "codes": (np.float32, {"moment_dtype": "float8"}),
    "all bfloat16": (bfloat16, {"moment_dtype": "bfloat16"}),
    "masters and codes": (bfloat16, {"master_weights": True, "moment_dtype": ("float8", "bfloat16")}),
}
storages = pytest.mark.parametrize(("dtype", "options"), STORAGES.values(), ids=STORAGES)
HALVING = schedules.Exponential(0.1, decay_steps=3, decay_rate=0.5, staircase=True)
MEMBERS = ("Adam", "NAdam", "Adamax", "RAdam", "Lion", "AdEMAMix")


def gradients(opt, seed, without=()):
    """Name -> gradient of a seed, as `opt` takes it, None for the names `without`."""

    def drawn(name, view):
        rng = np.random.default_rng([seed, *name.encode()])
        return np.asarray(rng.standard_normal(view.shape), view.dtype)

    return {name: None if name in without else drawn(name, view) for name, view in opt.params.items()}


def kept(opt):
    """Name -> all that is kept of a parameter, arrays as bytes."""
    state = opt.state_dict()["state"]
    numbers = {name: {key: v for key, v in state[name].items() if not isinstance(v, np.ndarray)} for name in state}
    return {name: (bits(raw(opt, name)), numbers[name]) for name in opt.params}


def grouped(arrays, groups):
    """The `params` argument for groups of names."""
    return [{"params": {name: arrays.pop(name) for name in names}} for names in groups]


WHOLE = [list(SHAPES)]
GROUPS = {
    "one": WHOLE,
    "in another order": [["none", "k", "b", "w"]],
    "two": [["w", "k"], ["b", "none"]],
    "each": [["k"], ["none"], ["w"], ["b"]],
}


# --- however parameters are held and grouped


@storages
@pytest.mark.parametrize("saved_flat", [False, True], ids=["from where they lie", "from flat"])
@pytest.mark.parametrize("loaded_flat", [False, True], ids=["to where they lie", "to flat"])
def test_a_state_does_not_tell_how_parameters_were_held(dtype, options, saved_flat, loaded_flat):
    run, other = (
        fastadam.AdamW(make(SHAPES, seed, dtype), **options, flat=flat, seed=seed)
        for seed, flat in ((1, saved_flat), (2, loaded_flat))
    )
    for seed in range(3):
        run.step(gradients(run, seed))
    state = run.state_dict()
    for name, value in copies(run.params).items():
        other.params[name] = value
    other.load_state_dict(state)
    assert kept(other) == kept(run)
    for seed in range(3, 6):
        run.step(gradients(run, seed))
        other.step(gradients(other, seed))
    assert kept(other) == kept(run)


@both
@pytest.mark.parametrize("after", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("before", GROUPS.values(), ids=GROUPS)
def test_parameters_may_be_grouped_otherwise(before, after, flat):
    options = {"moment_dtype": ("float8", "bfloat16"), "weight_decay": 0.1}
    run = fastadam.NAdam(grouped(make(SHAPES, dtype=bfloat16), before), lr=0.01, **options)
    for seed in range(3):
        run.step(gradients(run, seed))
    arrays = copies(run.params)
    other = fastadam.NAdam(grouped(arrays, after), seed=3, flat=flat, moment_dtype=options["moment_dtype"])
    other.load_state_dict(run.state_dict())
    assert [(group["params"], group["lr"]) for group in other.param_groups] == [(tuple(n), 0.01) for n in after]
    for seed in range(3, 6):
        run.step(gradients(run, seed))
        other.step(gradients(other, seed))
    assert kept(other) == kept(run)


def test_groups_of_other_settings_are_not_joined():
    run = fastadam.Adam(grouped(make(SHAPES), GROUPS["two"]))
    run.param_groups[0]["lr"] = 0.5
    other = fastadam.Adam(make(SHAPES, 1))
    before = memory(other)
    with pytest.raises(
        ValueError, match=r"with one set of settings, got \[.*0\.5.*0\.001.*for \['w', 'b', 'k', 'none'"
    ):
        other.load_state_dict(run.state_dict())
    assert (memory(other), other.param_groups[0]["lr"]) == (before, 1e-3)
    # Parts of one group keep its settings.
    each = fastadam.Adam(grouped(make(SHAPES, 1), GROUPS["each"]))
    each.load_state_dict(run.state_dict())
    assert [group["lr"] for group in each.param_groups] == [0.5, 1e-3, 0.5, 1e-3]


# --- parameters that have not taken the same steps

# Names that have no gradient, for each step.
WITHOUT = [(), ("k",), ("k", "b"), (), ("w",), ("k",), ("w", "b", "k", "none"), ()]
TAKEN = {"w": 6, "b": 6, "k": 4, "none": 7}


def with_gaps(opt, steps):
    for seed in steps:
        opt.step(gradients(opt, seed, WITHOUT[seed % len(WITHOUT)]))


@both
@pytest.mark.parametrize("after", ["one", "each"])
@pytest.mark.parametrize("member", MEMBERS)
def test_every_parameter_goes_on_from_the_steps_that_it_has_taken(member, after, flat):
    kind = getattr(fastadam, member)
    lr = HALVING
    run = kind(make(SHAPES), lr=lr)
    with_gaps(run, range(8))
    state = run.state_dict()["state"]
    assert {name: entry["step"] for name, entry in state.items()} == TAKEN
    assert {name: entry["skipped"] for name, entry in state.items()} == {n: 8 - step for n, step in TAKEN.items()}
    if member == "NAdam":
        assert len({entry["mu_product"] for entry in state.values()}) == 3
    other = kind(grouped(copies(run.params), GROUPS[after]), lr=lr, flat=flat)
    other.load_state_dict(run.state_dict())
    assert kept(other) == kept(run)
    for opt in (run, other):
        with_gaps(opt, range(8, 18))
        assert opt.get_last_lr() == [lr(18)] * len(opt.param_groups)
    assert kept(other) == kept(run)


@pytest.mark.parametrize("member", MEMBERS)
def test_a_parameter_without_gradients_is_stepped_as_if_it_were_alone(member):
    kind = getattr(fastadam, member)
    together = kind(make(SHAPES), lr=0.01, moment_dtype="float8")
    alone = {name: kind({name: array}, lr=0.01, moment_dtype="float8") for name, array in make(SHAPES).items()}
    for seed in range(16):
        without = WITHOUT[seed % len(WITHOUT)]
        together.step(gradients(together, seed, without))
        for name in alone.keys() - set(without):
            alone[name].step({name: gradients(together, seed)[name]})
        if seed == 9:
            saved = together.state_dict()
            together = kind(copies(together.params), lr=0.01, moment_dtype="float8")
            together.load_state_dict(saved)
    assert [entry["step"] for entry in together.state_dict()["state"].values()] == [2 * step for step in TAKEN.values()]
    for name, opt in alone.items():
        assert bits(raw(together, name)) == bits(raw(opt, name))


def test_products_of_nadam_may_differ_where_counts_of_steps_are_one():
    """Parameters that have missed different steps have other momenta behind them, where beta1 has changed meanwhile."""
    run = fastadam.NAdam(make(SHAPES), lr=0.01)
    for seed, without in enumerate([("w",), (), ("k",)]):
        run.param_groups[0]["betas"] = (0.5 + 0.1 * seed, 0.99)
        run.step(gradients(run, seed, without))
    state = run.state_dict()["state"]
    assert state["w"]["step"] == state["k"]["step"] == 2
    assert state["w"]["mu_product"] != state["k"]["mu_product"]
    other = fastadam.NAdam(copies(run.params))
    other.load_state_dict(run.state_dict())
    for opt in (run, other):
        opt.step(gradients(opt, 3))
    assert kept(other) == kept(run)


def test_clocks_that_meet_again_are_one_and_later_states_replace_them():
    opt = fastadam.NAdam(make(SHAPES))
    fresh = opt.state_dict()
    with_gaps(opt, range(8))
    opt.load_state_dict(fresh)
    assert {entry["step"] for entry in opt.state_dict()["state"].values()} == {0}
    for _ in range(20):
        with_gaps(opt, range(8))
        opt.load_state_dict(opt.state_dict())
    assert len(np.unique(opt._engine.plan.clock_of)) == 3
    assert len(opt._engine.plan.tables.carried) == len(SHAPES)


def test_what_was_skipped_is_counted_on():
    def built(arrays, **options):
        return fastadam.Adam(arrays, nonfinite="skip", lr=HALVING, **options)

    run = built(make(SHAPES))
    for seed in range(4):
        grads = gradients(run, seed, without=("k",))
        if seed % 2:
            grads["w"][3, 4] = np.nan
        run.step(grads)
    assert run.skipped_steps == 2
    run.add_param_group({"params": make({"late": 7})})
    run.step(gradients(run, 4))
    arrays = copies(run.params)
    other = built({name: arrays.pop(name) for name in SHAPES})
    other.add_param_group({"params": arrays})
    other.load_state_dict(run.state_dict())
    assert other.skipped_steps == run.skipped_steps == 2
    assert other.get_last_lr() == run.get_last_lr() == [HALVING(5), HALVING(1)]
    assert {name: entry["step"] for name, entry in other.state_dict()["state"].items()} == {
        **{"w": 3, "b": 3, "k": 1, "none": 3},
        "late": 1,
    }


# --- how moments are stored, for each group


def two_formats(seed=0, flat=False, **options):
    groups = [{"params": names, "moment_dtype": dtype} for names, dtype in ((["w"], "float8"), (["b", "none"], None))]
    groups.append({"params": ["k"], "moment_dtype": ["bfloat16", "float16"]})
    arrays = make(SHAPES, seed)
    specified = [{**group, "params": {name: arrays.pop(name) for name in group["params"]}} for group in groups]
    return fastadam.Adam(specified, eps=2.0**-12, flat=flat, **options)


@both
def test_moments_of_each_group_are_stored_as_it_says(flat):
    run = two_formats(flat=flat, moment_dtype="bfloat16")
    assert [group["moment_dtype"] for group in run.param_groups] == ["float8", None, ["bfloat16", "float16"]]
    assert {name: str(raw(run, name)["m"].dtype) for name in SHAPES} == {
        **{"w": "uint8", "b": "float32", "none": "float32", "k": "bfloat16"}
    }
    assert raw(run, "k")["v"].dtype == np.float16
    for seed in range(3):
        run.step(gradients(run, seed))
    other = two_formats(1, moment_dtype=("float16", None))
    for name, value in copies(run.params).items():
        other.params[name] = value
    other.load_state_dict(run.state_dict())
    for opt in (run, other):
        opt.step(gradients(opt, 3))
    assert kept(other) == kept(run)
    assert [group["moment_dtype"] for group in other.param_groups] == ["float8", None, ["bfloat16", "float16"]]


def test_a_group_may_say_what_all_of_another_run_were():
    run = fastadam.Adam({"w": make(SHAPES)["w"]}, moment_dtype="bfloat16")
    other = fastadam.Adam([{"params": {"w": make(SHAPES)["w"]}, "moment_dtype": "bfloat16"}])
    for one, two in ((run, other), (other, run)):
        one.step(gradients(one, 1))
        two.load_state_dict(one.state_dict())
        assert raw(two, "w")["m"].tobytes() == raw(one, "w")["m"].tobytes()
    assert [dict(opt.param_groups[0]).get("moment_dtype") for opt in (run, other)] == [None, "bfloat16"]


def test_formats_of_a_group_stay_when_a_state_is_converted():
    run, other = fastadam.Adam(make(SHAPES), eps=2.0**-12), two_formats()
    run.step(gradients(run, 1))
    before = memory(other)
    with pytest.raises(ValueError, match=r"\['w'\]` must have the keys 'step', 'exp_avg', 'exp_avg_exponent'"):
        other.load_state_dict(run.state_dict())
    assert memory(other) == before
    formats = [buffers.formats for buffers in other.all_buffers]
    joined = {"state": run.state_dict()["state"], "param_groups": other.state_dict()["param_groups"]}
    other.load_state_dict(joined, convert=True)
    assert [buffers.formats for buffers in other.all_buffers] == formats
    assert raw(other, "k")["m"].tobytes() == raw(run, "k")["m"].astype(bfloat16).tobytes()
    assert [group["moment_dtype"] for group in other.param_groups] == ["float8", None, ["bfloat16", "float16"]]


@pytest.mark.parametrize("group", [0, 1])
def test_formats_cannot_be_assigned_later(group):
    opt = fastadam.Adam([{"params": make({"w": 5}), "moment_dtype": "bfloat16"}, {"params": make({"b": 3})}])
    before, named = memory(opt), dict(opt.param_groups[group])
    message = "`moment_dtype` of a group cannot be assigned: its moments are there, and stored already"
    with pytest.raises(TypeError, match=message):
        opt.param_groups[group]["moment_dtype"] = "float16"
    with pytest.raises(TypeError, match=message):
        opt.param_groups[group].update({"lr": 0.5, "moment_dtype": "float32"})
    with pytest.raises(TypeError, match="`moment_dtype` is a part of every parameter group and cannot be deleted"):
        del opt.param_groups[group]["moment_dtype"]
    assert (memory(opt), dict(opt.param_groups[group])) == (before, named)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("float12", ValueError, "`moment_dtype` must be one of .*got 'float12'"),
        (("float32", "x"), ValueError, r"`moment_dtype\[1\]` must be one of"),
        (3, TypeError, "`moment_dtype` must be a string, a pair of them or None, got 3"),
        ("float64", ValueError, "`moment_dtype` must not be float64 without float64 parameters"),
        ((None, "float16"), ValueError, "`eps` must be >= "),
    ],
)
def test_a_bad_format_of_a_group_is_refused(value, error, message):
    params, opt = make({"w": 5}), fastadam.Adam(make({"k": 4}))
    with pytest.raises(error, match=message):
        fastadam.Adam([{"params": params, "moment_dtype": value}])
    with pytest.raises(error, match=message):
        opt.add_param_group({"params": params, "moment_dtype": value})
    assert (len(opt.param_groups), list(opt.params)) == (1, ["k"])


# --- several dtypes


@both
def test_parameters_of_several_dtypes_are_resumed(flat):
    dtypes = {"w": np.float32, "b": np.float64, "k": bfloat16, "none": np.float16}

    def built(seed):
        arrays = {name: np.asarray(array, dtypes[name]) for name, array in make(SHAPES, seed).items()}
        return fastadam.AdamW(arrays, lr=0.01, flat=flat, seed=seed)

    run, other = built(1), built(2)
    for seed in range(3):
        run.step(gradients(run, seed))
    assert {name: entry["exp_avg"].dtype for name, entry in run.state_dict()["state"].items()} == {
        name: np.dtype(np.float64 if dtype == np.float64 else np.float32) for name, dtype in dtypes.items()
    }
    for name, value in copies(run.params).items():
        other.params[name] = value
    other.load_state_dict(run.state_dict())
    assert kept(other) == kept(run)
    for opt in (run, other):
        opt.step(gradients(opt, 3))
    assert kept(other) == kept(run)
    assert [len(run.all_buffers), len(run.param_groups)] == [4, 1]


# --- names of what the members keep


KEYS = {
    "Adam": ["step", "exp_avg", "exp_avg_sq"],
    "NAdam": ["step", "exp_avg", "exp_avg_sq", "mu_product"],
    "Adamax": ["step", "exp_avg", "exp_inf"],
    "RAdam": ["step", "exp_avg", "exp_avg_sq"],
    "Lion": ["step", "exp_avg"],
    "AdEMAMix": ["step", "exp_avg", "exp_avg_slow", "exp_avg_sq"],
}


@pytest.mark.parametrize("member", MEMBERS)
def test_names_of_the_state(member):
    opt = getattr(fastadam, member)({"w": np.ones((65, 70), np.float32)}, moment_dtype="float8")
    entry = opt.state_dict()["state"]["w"]
    codes = [key for key in KEYS[member] if key.startswith("exp")]
    assert {"words", "words_seed"} <= entry.keys()
    assert [key for key in entry if key in KEYS[member]] == KEYS[member]
    assert entry.keys() - {*KEYS[member]} == {*(f"{key}_exponent" for key in codes), "words", "words_seed"}
    assert (entry["words"], entry["words_seed"]) == (WORDS, 0)
