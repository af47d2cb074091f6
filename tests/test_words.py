"""Random words depend on seed, name and index alone: how parameters are held, ordered and grouped changes no bit."""

from hashlib import blake2b

import numpy as np
import pytest
from ml_dtypes import bfloat16
from oracle import bits, raw
from training import LARGE, make

import fastadam
from fastadam.memory.parameters import random_place

SHAPES = {"w": (65, 70), "b": (), "k": (3, 1999), "large": (LARGE + 77,), "none": (0, 3)}
STORAGES = {
    "all bfloat16": {"moment_dtype": "bfloat16"},
    "codes": {"moment_dtype": "float8"},
    "codes and bfloat16": {"moment_dtype": ("float8", "bfloat16")},
}
storages = pytest.mark.parametrize("options", STORAGES.values(), ids=STORAGES)


def trained(arrays, options, kind=fastadam.AdamW, groups=(), later=(), gradients=None, **more):
    """Name -> the bytes of all that is kept, after three steps.

    `groups` are names that have a group of their own, `later` those that are added when the optimizer is there.
    """
    params = {name: array for name, array in arrays.items() if name not in (*groups, *later)}
    others = [{"params": {name: arrays[name]}, "label": name} for name in groups]
    added = {name: arrays.pop(name) for name in later}
    names = list(arrays)
    arrays.clear()
    opt = kind([{"params": params}, *others], lr=0.01, seed=5, **options, **more)
    for name in later:
        opt.add_param_group({"params": {name: added.pop(name)}})
    for seed in range(3):
        opt.step(dict((gradients or (lambda s: make(SHAPES, s, bfloat16)))(seed)))
    return {name: bits(raw(opt, name)) for name in [*names, *later]}


def drawn(names=SHAPES):
    arrays = make(SHAPES, 9, bfloat16)
    return {name: arrays[name] for name in names}


HELD = {
    "packed": {"flat": True},
    "in another order": {"order": ["k", "none", "large", "w", "b"]},
    "in another order, packed": {"order": ["large", "b", "w", "none", "k"], "flat": True},
    "in groups": {"groups": ("b", "k")},
    "in groups, packed": {"groups": ("k", "w"), "flat": True},
    "added later": {"later": ("w", "large")},
    "added later, packed": {"later": ("b", "k"), "groups": ("w",), "flat": True},
}


@storages
@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
def test_how_parameters_are_held_changes_no_bit(options, held):
    expected = trained(drawn(), options)
    order = held.get("order", SHAPES)
    assert trained(drawn(order), options, **{key: value for key, value in held.items() if key != "order"}) == expected


@pytest.mark.parametrize("kind", [fastadam.NAdam, fastadam.Adamax, fastadam.RAdam, fastadam.Lion, fastadam.AdEMAMix])
def test_nor_does_it_with_other_members(kind):
    options = STORAGES["codes"]
    expected = trained(drawn(), options, kind)
    for held in HELD.values():
        arrays = drawn(held.get("order", SHAPES))
        assert trained(arrays, options, kind, **{key: held[key] for key in held if key != "order"}) == expected


@storages
def test_another_name_and_another_seed_have_other_words(options):
    (moments,) = {trained({name: drawn()["large"]}, options, gradients=gradient_of(name))[name]["m"] for name in "a"}
    for name, seed in (("b", 5), ("a", 6)):
        opt = fastadam.AdamW({name: drawn()["large"]}, lr=0.01, seed=seed, **options)
        for step in range(3):
            opt.step(gradient_of(name)(step))
        assert raw(opt, name)["m"].tobytes() != moments


def gradient_of(name):
    return lambda seed: {name: make(SHAPES, seed, bfloat16)["large"]}


@storages
def test_words_count_elements_as_they_lie(options):
    """A transposed parameter has the words of the contiguous one with its memory."""

    def moments(turn):
        params = {name: turn(array) for name, array in drawn(["w", "k"]).items()}
        return trained(params, options, gradients=lambda seed: {n: turn(make(SHAPES, seed, bfloat16)[n]) for n in "wk"})

    for turn in (np.transpose, lambda array: array[::-1, ::-1], lambda array: array.T[:, ::-1][:, ::-1]):
        assert moments(turn) == moments(np.asarray)
    # Another order in memory has other words for the same elements.
    assert moments(np.asfortranarray) != moments(np.asarray)


# --- names

PLACES = {
    ("w", 3): b"s:w",
    ("", 0): b"s:",
    ("größe", 1): "s:größe".encode(),
    (7, 3): b"i:7",
    (-2, 3): b"i:-2",
    (0, 5): b"i:0",
    (("w", 0), 3): b"n:3",
    (None, 12): b"n:12",
    (True, 2): b"n:2",
    (1.5, 2): b"n:2",
}


@pytest.mark.parametrize(("given", "hashed"), PLACES.items(), ids=str)
@pytest.mark.parametrize("seed", [0, 5, 2**70])
def test_place_is_a_hash_of_seed_and_name(given, hashed, seed):
    digest = blake2b(str(seed).encode() + b":" + hashed, digest_size=4).digest()
    assert random_place(seed, *given) == int.from_bytes(digest, "little")


def test_places_of_any_string_can_be_found():
    assert len({random_place(0, name, 0) for name in ("\udc80", "\udc81", "a\0", "a")}) == 4


def test_parameters_without_names_have_their_positions():
    options, shapes = STORAGES["codes"], {0: (65, 70), 1: (5000,)}
    ways = [lambda arrays: arrays, lambda arrays: list(arrays.values()), lambda arrays: iter([*arrays.values()])]
    results = []
    for way in ways:
        opt = fastadam.AdamW(way(make(shapes)), **options)
        opt.step(make(shapes, 1))
        results.append({name: bits(raw(opt, name)) for name in shapes})
    assert results[1:] == results[:1] * 2
    named = fastadam.AdamW({str(name): array for name, array in make(shapes).items()}, **options)
    named.step({str(name): array for name, array in make(shapes, 1).items()})
    assert raw(named, "0")["m"].tobytes() != results[0][0]["m"]


def test_other_names_have_their_place_in_the_order():
    options, shapes = STORAGES["codes"], {("w", 1): (65, 70), ("w", 2): (5000,), None: 4500}
    opt, renamed = (fastadam.AdamW(make(shapes), **options) for _ in range(2))
    opt.step(make(shapes, 1))
    other = dict(zip("ab", [("w", 1), ("w", 2)], strict=True))
    # Other objects in the same places have the same words.
    renamed = fastadam.AdamW({(key,): make(shapes)[name] for key, name in other.items()}, **options)
    renamed.step({(key,): make(shapes, 1)[name] for key, name in other.items()})
    for key, name in other.items():
        assert bits(raw(renamed, (key,))) == bits(raw(opt, name))
