"""State dictionaries: torch's layout, bitwise resume, and refusal of all that does not fit."""

import copy
import io
import pickle

import numpy as np
import pytest
from oracle import assert_same_bits, memory
from training import both

import fastadam

SHAPES = {"w": (4, 5), "b": (), "none": (0, 2), "large": (40_000,)}


def draw(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


def grouped(arrays, **options):
    """Two groups with settings of their own, and two steps of difference between their counts."""
    first, second = ({name: arrays.pop(name) for name in names} for names in (("w", "b"), ("none", "large")))
    optimizer = fastadam.Adam([{"params": first, "lr": 0.1, "label": "head"}], weight_decay=0.01, **options)
    for seed in (1, 2):
        optimizer.step({name: draw(seed)[name] for name in first})
    optimizer.add_param_group({"params": second, "betas": (0.5, 0.75), "decoupled_weight_decay": True})
    return optimizer


def everything(optimizer):
    """Copies of all that a step reads or writes."""
    return memory(optimizer), repr(optimizer), [list(buffers.flats) for buffers in optimizer.all_buffers]


def assert_unchanged(optimizer, before):
    assert everything(optimizer) == before


def through_pickle(state):
    return pickle.loads(pickle.dumps(state))


def through_npz(state):
    """As users save it who save arrays only."""
    arrays = {f"{name}/{key}": value for name, entry in state["state"].items() for key, value in entry.items()}
    file = io.BytesIO()
    np.savez(file, **arrays)
    file.seek(0)
    loaded, entries = np.load(file), {}
    for name in state["state"]:
        entries[name] = {key: loaded[f"{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
    return {"state": entries, "param_groups": state["param_groups"]}


def test_layout_is_that_of_torch():
    optimizer = fastadam.Adam(draw(0), lr=0.5, betas=(0.8, 0.9))
    optimizer.step(draw(1))
    state = optimizer.state_dict()
    assert list(state) == ["state", "param_groups"]
    assert list(state["state"]) == list(SHAPES)
    for name, entry in state["state"].items():
        assert list(entry) == ["step", "exp_avg", "exp_avg_sq"]
        assert entry["step"] == 1
        assert type(entry["step"]) is int
        for moment in (entry["exp_avg"], entry["exp_avg_sq"]):
            assert type(moment) is np.ndarray
            assert (moment.shape, moment.dtype) == (SHAPES[name], np.float32)
        np.testing.assert_allclose(entry["exp_avg"], 0.2 * draw(1)[name], rtol=1e-6)
    assert state["param_groups"] == [
        {
            "params": list(SHAPES),
            "lr": 0.5,
            "betas": (0.8, 0.9),
            "eps": 1e-8,
            "weight_decay": 0.0,
            "amsgrad": False,
            "maximize": False,
            "decoupled_weight_decay": False,
        }
    ]


@both
def test_state_is_a_copy_both_ways(flat):
    optimizer = fastadam.Adam(draw(0), flat=flat)
    optimizer.step(draw(1))
    state = optimizer.state_dict()
    kept = copy.deepcopy(state)
    optimizer.step(draw(2))
    np.testing.assert_array_equal(state["state"]["w"]["exp_avg"], kept["state"]["w"]["exp_avg"])
    optimizer.load_state_dict(state)
    before = everything(optimizer)
    state["state"]["w"]["exp_avg"][...] = 7.0
    state["param_groups"][0]["lr"] = 7.0
    assert_unchanged(optimizer, before)


@both
@pytest.mark.parametrize("saved_as", [copy.deepcopy, through_pickle, through_npz], ids=lambda f: f.__name__)
def test_resumed_run_is_the_same_run_to_the_last_bit(saved_as, flat):
    straight = grouped(draw(0), flat=flat)
    straight.step(draw(3))
    saved, params = saved_as(straight.state_dict()), {name: view.copy() for name, view in straight.params.items()}
    straight.param_groups[1]["lr"] = 0.03
    for seed in range(4, 9):
        straight.step(draw(seed))

    first, second = ({name: params.pop(name) for name in names} for names in (("w", "b"), ("none", "large")))
    resumed = fastadam.Adam([{"params": first}, {"params": second}], flat=flat)
    resumed.load_state_dict(saved)
    assert resumed.param_groups[0]["label"] == "head"
    resumed.param_groups[1]["lr"] = 0.03
    for seed in range(4, 9):
        resumed.step(draw(seed))
    expected, actual = straight.state_dict(), resumed.state_dict()
    assert actual["param_groups"] == expected["param_groups"]
    for name in SHAPES:
        moments = [
            (entry[name]["exp_avg"], entry[name]["exp_avg_sq"]) for entry in (actual["state"], expected["state"])
        ]
        assert_same_bits((resumed.params[name], *moments[0]), (straight.params[name], *moments[1]))
    assert [entry["step"] for entry in actual["state"].values()] == [8, 8, 6, 6]


def test_loaded_settings_are_those_of_the_next_step():
    saved = fastadam.Adam(np.ones(3), lr=0.5, maximize=True).state_dict()
    flat = np.ones(3)
    optimizer = fastadam.Adam(flat, lr=0.1)
    optimizer.load_state_dict(saved)
    optimizer.step(np.ones(3))
    np.testing.assert_allclose(flat, 1.5, rtol=1e-6)


def test_groups_stay_the_same_objects_when_a_state_is_loaded():  # apex#766
    flat = np.ones(3)
    optimizer = fastadam.Adam(flat, lr=0.1)
    group = optimizer.param_groups[0]
    optimizer.load_state_dict(optimizer.state_dict())
    group["lr"] = 0.5
    assert optimizer.param_groups[0] is group
    optimizer.step(np.ones(3))
    np.testing.assert_allclose(flat, 0.5, rtol=1e-6)


def test_state_with_an_added_group_is_taken_when_the_group_is_there_again():  # Lightning#6891
    saved = fastadam.Adam({"head": np.ones(3)})
    saved.add_param_group({"params": {"body": np.ones(2)}, "lr": 0.5})
    saved.step({"head": np.ones(3), "body": np.ones(2)})
    resumed = fastadam.Adam({"head": np.ones(3)})
    with pytest.raises(ValueError, match=r"must have an entry for every parameter and no other, got \['body'\]"):
        resumed.load_state_dict(saved.state_dict())
    resumed.add_param_group({"params": {"body": np.ones(2)}})
    resumed.load_state_dict(saved.state_dict())
    assert resumed.get_last_lr() == [1e-3, 0.5]
    assert resumed.state_dict()["state"]["body"]["step"] == 1


def test_state_before_the_first_step_can_be_loaded_over_a_later_one():
    optimizer = fastadam.Adam(draw(0))
    fresh = optimizer.state_dict()
    optimizer.step(draw(1))
    optimizer.load_state_dict(fresh)
    assert {entry["step"] for entry in optimizer.state_dict()["state"].values()} == {0}
    np.testing.assert_array_equal(optimizer.buffers.m, 0.0)


def test_moments_may_be_arrays_of_another_library():
    torch = pytest.importorskip("torch")
    optimizer, other = fastadam.Adam(draw(0)), fastadam.Adam(draw(0))
    optimizer.step(draw(1))
    state = optimizer.state_dict()
    for entry in state["state"].values():
        entry.update({key: torch.tensor(entry[key]) for key in ("exp_avg", "exp_avg_sq")})
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.buffers.m, optimizer.buffers.m)
    np.testing.assert_array_equal(other.buffers.v, optimizer.buffers.v)


def at(*keys, value):
    """A change of a state dictionary: `value` at the path `keys`."""

    def change(state):
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return change


def without(*keys):
    def change(state):
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return change


MISFITS = {
    "no state": (without("state"), TypeError, "`state_dict`"),
    "no groups": (without("param_groups"), TypeError, "`state_dict`"),
    "state is a list": (at("state", value=[]), TypeError, r"`state_dict\['state'\]` must be a dict, got \[\]"),
    "groups are a number": (at("param_groups", value=3), TypeError, r"`state_dict\['param_groups'\]`.*3"),
    "group is a number": (at("param_groups", 0, value=3), TypeError, r"`state_dict\['param_groups'\]\[0\]`.*3"),
    "a group less": (without("param_groups", 1), ValueError, r"got none of \['none', 'large'\] for"),
    "group without names": (without("param_groups", 0, "params"), TypeError, r"\['params'\]` must be .*None"),
    "a name in no group": (at("param_groups", 0, "params", value=["b"]), ValueError, r"none of \['w'\] for \['w', 'b'"),
    "a name in two groups": (at("param_groups", 1, "params", value=["w", "none", "large"]), ValueError, "got 'w'"),
    "a name that is none": (at("param_groups", 0, "params", value=["w", []]), TypeError, r"names of .*, got \[\]"),
    "two settings for a group": (
        at("param_groups", value=[{"params": ["w"], "lr": 1.0}, {"params": ["b"]}, {"params": ["none", "large"]}]),
        ValueError,
        r"with one set of settings, got .* for \['w', 'b'\]",
    ),
    "a name less": (without("state", "b"), ValueError, "'b'"),
    "an unknown name": (at("state", "more", value={}), ValueError, "'more'"),
    "entry is no dict": (at("state", "w", value=1), TypeError, r"`state_dict\['state'\]\['w'\]` must be a dict, got 1"),
    "no moment": (without("state", "w", "exp_avg_sq"), ValueError, r"exp_avg_sq', got \['step', 'exp_avg'\]"),
    "moment of another shape": (at("state", "w", "exp_avg", value=np.zeros((5, 4), "f4")), ValueError, r"\(5, 4\)"),
    "moment to broadcast": (at("state", "w", "exp_avg", value=np.zeros(5, "f4")), ValueError, r"\(5,\)"),
    "moment of another dtype": (at("state", "w", "exp_avg_sq", value=np.zeros((4, 5))), TypeError, "float64"),
    "moment in another byte order": (at("state", "w", "exp_avg", value=np.zeros((4, 5), ">f4")), TypeError, ">f4"),
    "moment is no array": (at("state", "large", "exp_avg", value="x"), TypeError, r"\['large'\]\['exp_avg'\]`.*str"),
    "negative step": (at("state", "w", "step", value=-1), ValueError, r"\['step'\]` must be >= 0, got -1"),
    "fractional step": (at("state", "w", "step", value=2.5), TypeError, r"\['step'\]` must be an integer, got 2.5"),
    "two steps in a group": (at("state", "w", "step", value=9), ValueError, r"number of steps, taken .*\[3, 9\]"),
    "bad lr": (at("param_groups", 1, "lr", value=-1.0), ValueError, "`lr` must be >= 0, got -1"),
    "bad betas": (at("param_groups", 1, "betas", value=(0.9, 1.0)), ValueError, r"`betas\[1\]`"),
}


@pytest.mark.parametrize(("change", "error", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_what_does_not_fit_is_refused_and_changes_nothing(change, error, message):
    optimizer, other = grouped(draw(0)), grouped(draw(9))
    for each in (optimizer, other):
        each.step(draw(3))
    state = other.state_dict()
    change(state)
    before = everything(optimizer)
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(state)
    assert_unchanged(optimizer, before)
    optimizer.step(draw(4))


@pytest.mark.parametrize("value", [None, 3, "state", [("state", {})]], ids=repr)
def test_state_must_be_a_dict(value):
    with pytest.raises(TypeError, match="`state_dict` must be a dict"):
        fastadam.Adam(np.ones(3)).load_state_dict(value)


def test_a_refused_state_allocates_nothing():
    optimizer, other = fastadam.Adam(draw(0)), fastadam.Adam(draw(1), amsgrad=True)
    other.step(draw(2))
    state, before = other.state_dict(), everything(optimizer)
    del state["state"]["large"]["max_exp_avg_sq"]
    for convert in (False, True):
        with pytest.raises(ValueError, match=r"\['large'\]` must have the keys .*'max_exp_avg_sq'"):
            optimizer.load_state_dict(state, convert=convert)
        assert_unchanged(optimizer, before)
