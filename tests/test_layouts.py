"""States of parameters that lie in another order than that of C: groups of 8-bit codes lie in that order too."""

import io
import itertools

import numpy as np
import pytest
from oracle import memory, raw
from stored_model import values
from test_conversion import assert_within
from training import make

import fastadam

TURNS = {
    "C": lambda array: array,
    "F": np.asfortranarray,
    "backwards": lambda array: np.ascontiguousarray(array[::-1, :, ::-1])[::-1, :, ::-1],
    "axes in turn": lambda array: np.ascontiguousarray(array.transpose(1, 2, 0)).transpose(2, 0, 1),
    "both": lambda array: np.ascontiguousarray(array.transpose(2, 0, 1)[:, ::-1]).transpose(1, 2, 0)[::-1],
}
LAYOUTS = {"C": None, "F": [2, 1, 0], "backwards": [-1, 1, -3], "axes in turn": [1, 2, 0], "both": [2, -1, 1]}


def built(turn, seed=0, moment_dtype="float8", **options):
    arrays = {name: TURNS[turn](array) for name, array in make({"w": (7, 3, 300)}, seed).items()}
    return fastadam.AdamW(arrays, lr=0.01, moment_dtype=moment_dtype, **options)


def train(opt, seeds):
    for seed in seeds:
        opt.step({name: make({name: view.shape}, seed)[name] for name, view in opt.params.items()})
    return opt


def assert_converted(new, old):
    """The moments of one are those of the other within the error of codes."""
    mine, others = (opt.buffers.segments["w"].layout for opt in (new, old))
    for flat in "mv":
        actual, exact = (values(raw(opt, "w"))[flat] for opt in (new, old))
        exact = mine.flat(others.view(exact))
        assert_within(actual, exact, np.uint8)
        assert exact.any()


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("moment_dtype", ["float8", ("bfloat16", "float8"), None], ids=str)
def test_codes_are_saved_with_the_order_in_which_they_lie(turn, moment_dtype):
    old, new = (built(turn, seed, moment_dtype) for seed in (0, 1))
    train(old, range(3))
    saved = old.state_dict()
    entry = saved["state"]["w"]
    assert entry.get("layout") == (LAYOUTS[turn] if moment_dtype else None)
    assert (entry["exp_avg"].shape, entry["exp_avg"].flags.c_contiguous) == ((7, 3, 300), True)
    new.params["w"] = old.params["w"]
    new.load_state_dict(saved)
    assert memory(train(new, range(3, 6))) == memory(train(old, range(3, 6)))


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(TURNS, 2)))
def test_codes_of_another_order_are_refused_unless_they_are_converted(source, target):
    old, new = train(built(source), range(3)), train(built(target, 1), [7])
    before = memory(new)
    with pytest.raises(
        ValueError, match=r"\['layout'\]` must be that of the parameter in this optimizer, \[.*convert=Tr"
    ):
        new.load_state_dict(old.state_dict())
    assert memory(new) == before
    new.load_state_dict(old.state_dict(), convert=True)
    assert_converted(new, old)
    train(new, range(3))


@pytest.mark.parametrize(("source", "target"), [("F", "backwards"), ("C", "F"), ("both", "C")])
@pytest.mark.parametrize("moment_dtype", [None, "bfloat16"])
def test_what_has_no_codes_is_taken_in_any_order(source, target, moment_dtype):
    old, new = train(built(source, 0, moment_dtype), range(3)), built(target, 1, moment_dtype)
    new.load_state_dict(old.state_dict())
    for key in ("exp_avg", "exp_avg_sq"):
        assert new.state_dict()["state"]["w"][key].tobytes() == old.state_dict()["state"]["w"][key].tobytes()


def test_a_layout_survives_an_archive_of_arrays():
    old, new = train(built("both"), range(3)), built("both", 1)
    state, file = old.state_dict(), io.BytesIO()
    np.savez(file, **state["state"]["w"])
    file.seek(0)
    new.params["w"] = old.params["w"]
    new.load_state_dict({**state, "state": {"w": dict(np.load(file))}})
    assert memory(new) == memory(old)


@pytest.mark.parametrize("turn", ["F", "both"])
def test_packed_parameters_have_the_order_of_c(turn):
    old, new = train(built(turn), range(3)), built(turn, 1, flat=True)
    assert "layout" not in new.state_dict()["state"]["w"]
    with pytest.raises(ValueError, match="layout"):
        new.load_state_dict(old.state_dict())
    new.load_state_dict(old.state_dict(), convert=True)
    assert_converted(new, old)
