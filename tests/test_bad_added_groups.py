"""Groups that cannot be added: the optimizer is as before."""

from collections import UserDict

import numpy as np
import pytest
from refusal import DTYPES, F4, refuses
from training import both

import fastadam


class Stubborn(UserDict):
    """A mapping that does not let go of what it has."""

    def __setitem__(self, key, value):
        if key in self.data:
            raise PermissionError(f"{key} is final")
        super().__setitem__(key, value)


@both
@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        (np.ones(3), TypeError, "`param_group` must be a dict with the key 'params', got ndarray"),
        ({"lr": 0.1}, TypeError, "`param_group` must be a dict with the key 'params'"),
        ({"params": {}}, ValueError, r"`param_group\['params'\]` must hold at least one parameter"),
        ({"params": {"w": np.ones(2, F4)}}, ValueError, "got 'w' twice"),
        ({"params": [np.ones(2, int)]}, TypeError, rf"`param_group\['params'\]\[0\]` must be {DTYPES}"),
    ],
)
def test_added_group(group, error, message, flat):
    opt = fastadam.Adam({"w": np.ones(4, F4)}, flat=flat)
    refuses(lambda: opt.add_param_group(group), error, message, opt)
    assert list(opt.params) == ["w"]


@both
def test_added_group_over_memory_that_trains_already(flat):
    params = {"w": np.ones(4, F4)}
    opt = fastadam.Adam(params, flat=flat)
    group = {"params": {"again": params["w"]}}
    message = (
        r"`param_group\['params'\]\['again'\]` must not share memory with the parameters and buffers of this optimizer"
    )
    refuses(lambda: opt.add_param_group(group), ValueError, message, opt, params)
    refuses(lambda: opt.add_param_group({"params": params["w"][1:]}), ValueError, "must not share memory", opt, params)


def test_mapping_that_refuses_its_views():
    params = {"a": np.ones(3, F4), "b": Stubborn(w=np.ones(2, F4))}
    first, second = {"a": params["a"]}, params["b"]
    del params
    act = lambda: fastadam.Adam([{"params": first}, {"params": second}], flat=True)  # noqa: E731
    refuses(act, PermissionError, "w is final", first, second)
    opt = fastadam.Adam(first, flat=True)
    refuses(lambda: opt.add_param_group({"params": second}), PermissionError, "w is final", opt, second)
