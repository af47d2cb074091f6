"""Columns and arrays of other libraries: refused by name with what to pass, and what is passed is right."""

from importlib import import_module

import numpy as np
import pytest

import fastadam

VALUES = np.array([1.0, -2.0, 3.0, 0.5], np.float32)


def of_pint(pint):
    return pint.UnitRegistry().Quantity(VALUES.copy(), "m")


# Library -> the array, its name in the message, the clause of the message, and what that says.
LIBRARIES = {
    "pandas": (lambda pd: pd.Series(VALUES), "pandas.Series", "x.to_numpy(copy=True)"),
    "polars": (lambda pl: pl.Series(VALUES), "polars.Series", "x.to_numpy(writable=True)"),
    "xarray": (lambda xr: xr.DataArray(VALUES.copy()), "xarray.DataArray", "x.values"),
    "awkward": (lambda ak: ak.Array(VALUES.copy()), "awkward.Array", "ak.to_numpy(x)"),
    "dask.array": (lambda da: da.from_array(VALUES.copy()), "dask.Array", "x.compute()"),
    "pint": (of_pint, "pint.Quantity", "x.magnitude"),
    "sparse": (lambda sparse: sparse.COO.from_numpy(VALUES), "sparse.COO", "x.todense()"),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_refused_with_what_to_pass_which_is_right(library):
    module = import_module(library)
    make, name, clause = LIBRARIES[library]
    x = make(module)
    message = f"must be a NumPy or CuPy array, or an array that speaks DLPack, got {name}: pass `{clause}`"
    w = VALUES.copy()
    opt = fastadam.Adam({"w": w}, lr=0.1)
    for act in (
        lambda: fastadam.Adam({"w": x}),
        lambda: fastadam.Adam(x),
        lambda: opt.step({"w": x}),
        lambda: opt.grads.__setitem__("w", x),
    ):
        with pytest.raises(TypeError) as caught:
            act()
        assert str(caught.value).endswith(message)
    assert w.tobytes() == VALUES.tobytes()
    passed = eval(clause, {"x": x, "ak": module})
    opt.step({"w": passed})
    twin = VALUES.copy()
    fastadam.Adam([twin], lr=0.1).step([VALUES])
    assert w.tobytes() == twin.tobytes()
    fastadam.Adam({"w": passed}, lr=0.1).step({"w": VALUES})
    assert passed.tobytes() == twin.tobytes()
