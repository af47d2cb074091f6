"""States that fastadam 0.1 saved load, and their runs go on bit for bit; `data/states_0_1.npz` has what came of them."""

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
