"""What is stored in another format: the float32 step rounded once, and the description of a storage."""

from dataclasses import replace

import numpy as np
import pytest
from members import BLOCKED, MEMBERS, RECIPES, STORED, by_reference, encode, launch_of, random_flats

from fastadam.kernels.texts.formats import NATIVE, Formats
from fastadam.kernels.texts.update import Recipe, update_of

# --- what is rounded


@pytest.fixture
def bfloat16():
    return pytest.importorskip("ml_dtypes").bfloat16


def stepped_wide(name, launch, dtypes):
    """Buffer -> its values after the step of `launch` in float32, not yet rounded; `dtypes` are those of buffers."""
    wide = {
        flat: array.view(dtypes[flat]).astype(np.float32) if flat in dtypes else array.copy()
        for flat, array in launch.flats.items()
    }
    native = launch_of(update_of(replace(RECIPES[name], storage=NATIVE)), wide)
    by_reference(native)
    return native.flats


@pytest.mark.parametrize("name", ["moments_bfloat16", "all_float16"])
def test_reference_is_the_step_on_float32_rounded_to_nearest(name, bfloat16):
    buffers = ("m", "v") if name == "moments_bfloat16" else ("p", "g", "m", "v", "v_max", "ema")
    dtypes = dict.fromkeys(buffers, bfloat16 if name == "moments_bfloat16" else np.float16)
    launch = launch_of(MEMBERS[name], random_flats(MEMBERS[name], np.float32, 5_000))
    expected = stepped_wide(name, launch, dtypes)
    by_reference(launch)
    for buffer in launch.update.buffers:
        values = expected[buffer]
        rounded = values.astype(dtypes[buffer]).view(np.uint16) if buffer in dtypes else values
        np.testing.assert_array_equal(launch.flats[buffer], rounded, err_msg=buffer)


@pytest.mark.parametrize("name", ["all_dithered", "lion_dithered", "ademamix_dithered"])
def test_dithered_buffers_are_one_of_the_two_neighbours_and_right_on_average(name, bfloat16):
    update = MEMBERS[name]
    launch = launch_of(update, random_flats(update, np.float32, 100_000))
    expected = stepped_wide(name, launch, dict.fromkeys(update.buffers, bfloat16))
    by_reference(launch)
    for buffer in update.flats:
        bits = expected[buffer].view(np.uint32)
        up = launch.flats[buffer].astype(np.int64) - (bits >> 16)
        assert set(up) == {0, 1}
        # Five standard deviations of a mean of 100,000 coins, at most.
        assert abs(up.mean() - (bits & 0xFFFF).mean() / 65_536) < 5 * 0.5 / np.sqrt(100_000)


def test_split_parameters_are_those_of_float32(bfloat16):
    update, native = MEMBERS["split"], update_of(Recipe())
    p, g, m, v = (np.random.default_rng(1).random((4, 5_000), np.float32) - np.float32(0.5)).copy()
    launch = launch_of(
        update, {**encode(update.storage, "p", p), "g": g.astype(bfloat16).view(np.uint16), "m": m, "v": abs(v)}
    )
    expected = launch_of(native, {"p": p, "g": g.astype(bfloat16).astype(np.float32), "m": m.copy(), "v": abs(v)})
    for _ in range(20):
        by_reference(launch)
        by_reference(expected)
    upper, remainder = launch.flats["p"], launch.flats["remainder"]
    joined = (upper.astype(np.int64) * 65_536 + remainder.view(np.int16)).astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(joined, expected.flats["p"])
    np.testing.assert_array_equal(launch.flats["v"], expected.flats["v"])


@pytest.mark.parametrize(("p", "end"), [("bfloat16", 1.0), ("dithered", 0.99)])
def test_steps_below_the_last_place_add_up_if_dithered(p, end):
    update = update_of(Recipe(storage=Formats(p=p)))
    g = np.ones(10_000, np.float32)
    buffers = {**encode(update.storage, "p", g), "g": g, "m": np.zeros_like(g), "v": np.zeros_like(g)}
    launch = launch_of(update, buffers, step=1, grad_scale=1.0, lr=1e-4)
    for _ in range(100):
        by_reference(launch)
    values = (launch.flats["p"].astype(np.uint32) << np.uint32(16)).view(np.float32)
    assert abs(values.mean(dtype=float) - end) < 2e-4
    # Every element, by a few of its last places: its thresholds change from step to step.
    assert np.abs(values - end).max() < 3 * 2.0**-8
    assert (values == 1.0).all() or p == "dithered"


DITHERED = {
    "all_dithered": ("p", "m", "v"),
    "codes": ("m", "v"),
    "lion_dithered": ("p", "m"),
    "ademamix_codes": ("m", "m_slow", "v"),
}
dithered = pytest.mark.parametrize("name", DITHERED)


@dithered
def test_roundings_depend_on_the_place_and_on_the_step_alone(name):
    def after(**changed):
        launch = launch_of(MEMBERS[name], random_flats(MEMBERS[name], np.float32, 1_000), **changed)
        by_reference(launch)
        return {buffer: launch.flats[buffer].tobytes() for buffer in DITHERED[name]}

    assert after() == after()
    for buffer, array in after(place=1).items():
        assert after()[buffer] != array


@dithered
def test_part_of_a_parameter_has_the_words_of_its_elements(name):
    update, first = MEMBERS[name], 384
    flats = random_flats(update, np.float32, 1_000)
    # Beyond the last place comes the first.
    whole = launch_of(update, {flat: array.copy() for flat, array in flats.items()}, place=2**32 - 500)
    part = {flat: array[first // 128 if flat.endswith("_exponent") else first :] for flat, array in flats.items()}
    part = launch_of(update, part, place=2**32 - 500 + first)
    for launch in (whole, part):
        by_reference(launch)
    for flat in update.flats:
        expected = whole.flats[flat][first // 128 if flat.endswith("_exponent") else first :]
        np.testing.assert_array_equal(part.flats[flat], expected, err_msg=flat)


# --- the description of a storage


def test_flat_arrays_of_a_storage():
    storage = Formats(p="split", g="bfloat16", m="signed_fast", v="unsigned_slow", copy="float16")
    flats = {name: storage.flats(name) for name in ("p", "g", "m", "v", "v_max")}
    assert flats == {
        "p": ("p", "remainder"),
        "g": ("g",),
        "m": ("m", "m_exponent"),
        "v": ("v", "v_exponent"),
        "v_max": ("v_max",),
    }
    dtypes = {flat: storage.dtype(flat) for flats in flats.values() for flat in flats}
    assert {flat for flat, dtype in dtypes.items() if dtype == "uint8"} == {"m", "m_exponent", "v", "v_exponent"}
    assert {flat for flat, dtype in dtypes.items() if dtype == "uint16"} == {"p", "remainder", "g"}
    assert dtypes["v_max"] == "native"


def test_storages_are_equal_if_all_formats_are():
    storage = Formats(v="bfloat16", p="native", m="float16")
    assert storage == Formats(m="float16", v="bfloat16") != NATIVE
    assert hash(storage) == hash(Formats(m="float16", v="bfloat16"))
    assert repr(storage) == "Formats(m='float16', v='bfloat16')"
    assert storage.only(("p", "v")) == Formats(v="bfloat16")
    assert (storage["m"], storage["anything"]) == ("float16", "native")
    assert Formats(p="dithered", m="dithered_fast", v="unsigned_slow", g="bfloat16").nearest == Formats(
        p="bfloat16", m="bfloat16", v="unsigned_slow", g="bfloat16"
    )


@pytest.mark.parametrize("name", STORED)
def test_order_of_the_flat_arrays_is_that_of_the_buffers(name):
    update = MEMBERS[name]
    assert update.flats == tuple(
        flat for buffer in update.buffers if buffer != "g" for flat in update.storage.flats(buffer)
    )
    assert update.flats[0] == "p"


def test_arithmetic_is_in_float32_unless_the_parameters_are_native():
    assert Formats(m="bfloat16").arithmetic(np.zeros(1, np.float64)) == np.float64
    assert Formats(p="dithered").arithmetic(np.zeros(1, np.uint16)) == np.float32


def test_columns_have_turn_and_toss_where_something_is_dithered():
    dithered = {name for name in MEMBERS if "turn" in MEMBERS[name].columns}
    assert dithered == {name for name in MEMBERS if "dithered" in name} | {"split_codes", *BLOCKED}
    for name in dithered:
        assert MEMBERS[name].storage.dithers
        assert MEMBERS[name].columns == (*MEMBERS[name].scalars, "turn", "toss")
