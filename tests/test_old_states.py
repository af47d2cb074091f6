"""States of fastadam 0.1 load, and their runs go on bit for bit; `data/states_0_1.npz` has what came of them.

Of the float64 run it has what comes of it since powers of betas are repeated squares: up to 1.2e-14 from 0.1's.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from ml_dtypes import bfloat16

import fastadam

ARCHIVE = np.load(Path(__file__).parent / "data" / "states_0_1.npz")
CASES = json.loads(str(ARCHIVE["meta"]))
EXACT = [case for case in CASES if case != "stochastic_codes"]
ways = pytest.mark.parametrize("flat", [False, True], ids=["where they lie", "flat"])


def arrays(case, part, kinds=None):
    prefix = f"{case}/{part}/"
    return {key.removeprefix(prefix): ARCHIVE[key] for key in ARCHIVE.files if key.startswith(prefix)}


def bfloat16_if(array, wanted):
    return array.view(bfloat16) if wanted else array


def params_of(case):
    saved = arrays(case, "params")
    return {name: bfloat16_if(a, CASES[case]["dtype"] == "bfloat16").copy() for name, a in saved.items()}


def state_of(case):
    meta, saved = CASES[case], arrays(case, "state")
    state = {
        name: {
            key: bfloat16_if(saved[f"{name}/{key}"], value == "bfloat16") if isinstance(value, str) else value
            for key, value in entry.items()
        }
        for name, entry in meta["state"].items()
    }
    return {"state": state, "param_groups": meta["param_groups"]}


def optimizer(case, params, **changed):
    options = {**CASES[case]["options"], **changed}
    if options.pop("exclude", False):
        options["exclude_from_weight_decay"] = lambda name: name == "b"
    return getattr(fastadam, CASES[case]["class"])(params, lr=0.01, **options)


def gradients(case, seed, params):
    rng = np.random.default_rng(seed)
    dtype = np.float64 if CASES[case]["dtype"] == "float64" else np.float32
    # In the order in which they were drawn for the archive.
    names = [name for name in "wbek" if name in params]
    drawn = {name: np.asarray(rng.standard_normal(params[name].shape), dtype) for name in names}
    return {name: array.astype(params[name].dtype) for name, array in drawn.items()}


@ways
@pytest.mark.parametrize("case", EXACT)
def test_a_run_of_version_0_1_goes_on_bit_for_bit(case, flat):
    params = params_of(case)
    opt = optimizer(case, params, flat=flat)
    opt.load_state_dict(state_of(case))
    for seed in (6, 7, 8):
        opt.step(gradients(case, seed, params))
    for name, expected in arrays(case, "after").items():
        assert opt.params[name].tobytes() == expected.tobytes(), name
    state = opt.state_dict()["state"]
    for key, expected in arrays(case, "after_state").items():
        name, part = key.split("/")
        assert state[name][part].tobytes() == expected.tobytes(), key


def test_a_state_with_stochastic_rounding_is_refused_unless_it_is_converted():
    params = params_of("stochastic_codes")
    opt = optimizer("stochastic_codes", params)
    with pytest.raises(ValueError, match=r"made by fastadam 0\.1.*convert=True"):
        opt.load_state_dict(state_of("stochastic_codes"))
    opt.load_state_dict(state_of("stochastic_codes"), convert=True)
    state = opt.state_dict()["state"]["k"]
    for key in ("exp_avg", "exp_avg_exponent", "exp_avg_sq", "exp_avg_sq_exponent"):
        np.testing.assert_array_equal(state[key], arrays("stochastic_codes", "state")[f"k/{key}"])
    opt.step(gradients("stochastic_codes", 6, params))
    assert opt.state_dict()["state"]["k"]["step"] == 6


# --- groups that version 0.1 had made of one


def saved_in_two_groups(**changed):
    """A state of weights and a bias, as version 0.1 had those that are excluded from weight decay."""
    opt = fastadam.AdamW({"w": np.ones(5), "b": np.ones(3)}, lr=0.25, weight_decay=0.5)
    opt.step({"w": np.full(5, 2.0), "b": np.full(3, 2.0)})
    state = opt.state_dict()
    (group,) = state["param_groups"]
    excluded = {**group, "params": ["b"], "weight_decay": 0.0, **changed}
    return {**state, "param_groups": [{**group, "params": ["w"]}, excluded]}


def excluding(*groups):
    return fastadam.AdamW(list(groups), exclude_from_weight_decay=lambda name: name == "b")


def test_what_is_excluded_from_weight_decay_may_be_a_group_in_an_older_state():
    opt = excluding({"params": {"w": np.ones(5), "b": np.ones(3)}})
    opt.load_state_dict(saved_in_two_groups())
    assert (opt.param_groups[0]["lr"], opt.param_groups[0]["weight_decay"]) == (0.25, 0.5)
    with pytest.raises(ValueError, match=r"one set of settings, got .*0\.125.* for \['w', 'b'\]"):
        opt.load_state_dict(saved_in_two_groups(lr=0.125))
    # Without the option, weight decay is what the groups say.
    plain = fastadam.AdamW({"w": np.ones(5), "b": np.ones(3)})
    with pytest.raises(ValueError, match="one set of settings"):
        plain.load_state_dict(saved_in_two_groups())


def test_a_group_of_what_is_excluded_alone_keeps_its_settings():
    opt = excluding({"params": {"w": np.ones(5)}}, {"params": {"b": np.ones(3)}})
    opt.load_state_dict(saved_in_two_groups(lr=0.125))
    assert [(group["lr"], group["weight_decay"]) for group in opt.param_groups] == [(0.25, 0.5), (0.125, 0.0)]
