"""Parameters of several dtypes in one optimizer, where they lie and packed."""

import numpy as np
import pytest
from ml_dtypes import bfloat16
from oracle import bits
from refusal import refuses
from training import HYPER, both

import fastadam

DTYPES = {"half": np.float16, "single": np.float32, "double": np.float64, "brain": bfloat16}


def of_dtypes(seed):
    rng = np.random.default_rng(seed)
    return {
        f"{name}{index}": rng.standard_normal((3, 4 + index)).astype(dtype)
        for index in range(2)
        for name, dtype in DTYPES.items()
    }


@both
@pytest.mark.parametrize("how", ["mapping", "list", "written"])
@pytest.mark.parametrize("options", [{}, {"moment_dtype": (None, None), "ema_decay": 0.9}], ids=str)
def test_parameters_of_several_dtypes_step_as_each_dtype_alone(how, options, flat):
    opt = fastadam.Adam(of_dtypes(0), **HYPER, **options, flat=flat)
    alone = {
        dtype: fastadam.Adam(
            {name: array for name, array in of_dtypes(0).items() if array.dtype == dtype}, **HYPER, **options, flat=flat
        )
        for dtype in DTYPES.values()
    }
    assert len(opt.param_groups) == 1
    assert len(opt.all_buffers) == len(DTYPES)
    for seed in (1, 2, 3):
        grads = of_dtypes(seed)
        if how == "written":
            for name, gradient in grads.items():
                opt.grads[name] = gradient
        opt.step({"mapping": grads, "list": list(grads.values()), "written": None}[how], grad_scale=0.5)
        for dtype, other in alone.items():
            other.step({name: gradient for name, gradient in grads.items() if gradient.dtype == dtype}, grad_scale=0.5)
    state = opt.state_dict()["state"]
    for other in alone.values():
        for name, entry in other.state_dict()["state"].items():
            assert bits({"p": opt.params[name]}) == bits({"p": other.params[name]})
            arrays = {key: value for key, value in entry.items() if isinstance(value, np.ndarray)}
            assert bits({key: state[name][key] for key in arrays}) == bits(arrays)


@both
def test_flat_gradients_and_buffers_need_one_dtype(flat):
    opt = fastadam.Adam(of_dtypes(0), flat=flat)
    refuses(lambda: opt.buffers, ValueError, "`buffers` needs one set of flat buffers, got 4", opt)
    refuses(lambda: opt.step(np.ones(8)), ValueError, "`buffers` needs one set of flat buffers, got 4", opt)


@both
def test_a_clipped_norm_is_that_of_all_dtypes(flat):
    grads = of_dtypes(1)
    opt = fastadam.Adam(of_dtypes(0), max_grad_norm=1.0, flat=flat)
    opt.step(grads)
    norm = np.sqrt(sum(np.sum(np.square(gradient.astype(np.float64))) for gradient in grads.values()))
    np.testing.assert_allclose(opt.grad_norm, norm, rtol=1e-12)
