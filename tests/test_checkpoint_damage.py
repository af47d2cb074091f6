"""Checkpoints that are damaged, cut off or hostile: refused in bounded time, with nothing written."""

import json
import random
import time

import numpy as np
import pytest
from checkpointing import checksums_of, everything, header_of, make, sealed, small, train
from refusal import exactly

from fastadam.checkpoints import CheckpointError

METADATA = "__metadata__"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The bytes of a good file of a small optimizer."""
    path = tmp_path_factory.mktemp("good") / "run.safetensors"
    small(ema_decay=0.5).save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def loading(tmp_path_factory):
    """Loads bytes into an optimizer, which must raise `CheckpointError` (or another error) and change nothing."""
    path = tmp_path_factory.mktemp("bad") / "run.safetensors"
    opt = small(5, ema_decay=0.5)
    before = everything(opt)

    def load(data, errors=CheckpointError, match=None):
        path.write_bytes(data)
        began = time.process_time()
        with pytest.raises(errors, match=match):
            opt.load(path)
        assert everything(opt) == before
        assert time.process_time() - began < 5.0
        assert path.read_bytes() == data

    return load


def test_the_good_file_loads(good, tmp_path):
    path = tmp_path / "run.safetensors"
    path.write_bytes(good)
    run, other = small(ema_decay=0.5), small(5, ema_decay=0.5)
    other.load(path)
    assert everything(other) == everything(run)


def test_every_flipped_bit_of_the_header_is_found(good, loading):
    length = len(good) - len(header_of(good)[1])
    places = random.Random(0).sample(range(64, 8 * length), 150)
    for place in [*range(64), *places]:
        flipped = bytearray(good)
        flipped[place // 8] ^= 1 << place % 8
        loading(bytes(flipped))


def test_every_flipped_bit_of_the_arrays_is_found_and_named(good, loading):
    header, data = header_of(good)
    start = 8 * (len(good) - len(data))
    tensors = {name: entry["data_offsets"] for name, entry in header.items() if name != METADATA}
    for place in random.Random(1).sample(range(8 * len(data)), 100):
        flipped = bytearray(good)
        flipped[(start + place) // 8] ^= 1 << place % 8
        name = next(name for name, (first, stop) in tensors.items() if first <= place // 8 < stop)
        loading(bytes(flipped), match=f"is damaged: '{name}' must have the checksum that was saved")


def test_every_truncation_is_found(good, loading):
    for length in [*range(0, 40, 3), *random.Random(2).sample(range(40, len(good)), 100), len(good) - 1]:
        loading(good[:length])
    loading(good + b"\0")


def test_what_is_no_file_of_ours_is_said_to_be_none(loading, tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "model.safetensors"
    save_file({"w": np.ones(3, np.float32)}, path)
    loading(path.read_bytes(), match="must have one checksum of its header, got 0: it is no checkpoint of fastadam")
    loading(b"", match="must begin with the length of its header")
    loading(b"PK\x03\x04" + b"pickled" * 100, match="must begin with the length of its header")


# --- hostile headers, with the right checksums


def entry(**changed):
    """A change of the entry of tensor "w"."""

    def change(header, data):
        header["w"] = {**header["w"], **changed}

    return change


def manifest(change):
    """A change of what the metadata say."""

    def changed(header, data):
        found = json.loads(header[METADATA]["fastadam"])
        change(found)
        header[METADATA]["fastadam"] = json.dumps(found)

    return changed


def text(old, new):
    """A change of the text of the header."""

    def change(header, data):
        found = json.dumps(header, separators=(",", ":"))
        assert old in found
        return found.replace(old, new, 1)

    return change


def setting(*keys, value):
    def change(found):
        for key in keys[:-1]:
            found = found[key]
        found[keys[-1]] = value

    return manifest(change)


def swapped(header, data):
    first, second = (header[name]["data_offsets"] for name in ("b", "b.exp_avg"))
    header["b.exp_avg"]["data_offsets"] = list(first)
    assert first != second


def renamed(header, data):
    header["stranger"] = header.pop("w.exp_avg")
    header[METADATA]["crc32"] = json.dumps(
        checksums_of({name: each for name, each in header.items() if name != METADATA}, data)
    )


# What is wrong -> name -> change.
HEADERS = {
    "one after the other": {
        "overlapping": swapped,
        "shifted": entry(data_offsets=[10**6, 10**6 + 48]),
        "a tensor less": lambda header, data: header.pop("w") and None,
    },
    "must have as many bytes as F32": {
        "beyond the file": entry(data_offsets=[0, 2**62]),
        "backwards": entry(data_offsets=[48, 0]),
        "three offsets": entry(data_offsets=[0, 48, 96]),
        "huge shape": entry(shape=[2**62, 2**62]),
        "wrong shape": entry(shape=[3, 5]),
    },
    "must have a shape that an array can have": {
        "huge shape of nothing": entry(shape=[2**62, 2**62, 0], data_offsets=[0, 0]),
    },
    "must have a data_offsets of integers >= 0": {
        "below zero": entry(data_offsets=[-48, 0]),
        "offsets of a float": entry(data_offsets=[0.0, 48.0]),
        "offsets are text": entry(data_offsets="0,48"),
    },
    "must have a shape of integers >= 0": {
        "negative shape": entry(shape=[-3, -4]),
        "true shape": entry(shape=[True, 12]),
        "a thousand axes": entry(shape=[1] * 1000 + [12]),
        "shape is none": entry(shape=None),
    },
    "must have a dtype of F64, F32": {
        "dtype is a number": entry(dtype=3),
        "dtype of integers": entry(dtype="I32"),
    },
    "must have dtype, shape and data_offsets, and nothing else": {
        "unknown key": entry(extra=1),
        "entry is a list": lambda header, data: header.update(w=[1, 2]),
    },
    "must have tensors of its parameters only, got .stranger": {
        "a tensor of nobody": renamed,
    },
    "must have a checksum for every tensor and no other": {
        "a tensor without checksum": lambda header, data: header[METADATA].update(crc32="{}"),
    },
    "must have 8 hexadecimal digits": {
        "checksum is a number": lambda header, data: header[METADATA].update(
            crc32=json.dumps(dict.fromkeys(json.loads(header[METADATA]["crc32"]), 1))
        ),
    },
    "must have .fastadam. in its metadata: it is no checkpoint": {
        "no metadata": lambda header, data: header.update({METADATA: {"header_crc32": "00000000"}}),
    },
    "must have strings only": {
        "metadata are numbers": lambda header, data: header[METADATA].update(more=3),
    },
    "must have one checksum of its header, got 2": {
        "two checksums": lambda header, data: header.update(x={"header_crc32": "00000000"}),
    },
    "keys must be distinct, got": {
        "duplicate tensor": text(
            '{"__metadata__"', '{"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"__metadata__"'
        ),
        "duplicate metadata": text('{"__metadata__":', '{"__metadata__":{},"__metadata__":'),
        "duplicate key of a tensor": text('"dtype":"F32"', '"dtype":"F32","dtype":"F32"'),
        "duplicate key of metadata": text('"fastadam":', '"fastadam":"{}","fastadam":'),
        "manifest with a duplicate": lambda header, data: header[METADATA].update(
            fastadam=header[METADATA]["fastadam"].replace('"state":', '"state":{},"state":')
        ),
    },
    "numbers must be finite": {
        "NaN": text('"shape":[3,4]', '"shape":[NaN,4]'),
        "infinity": text('"shape":[3,4]', '"shape":[1e999,4]'),
    },
    "integers must be below": {
        "huge integer": text('"shape":[3,4]', f'"shape":[{"9" * 5000},4]'),
    },
    "nested too deeply": {
        "nested": lambda header, data: '{"header_crc32":"00000000","x":' + "[" * 10_000 + "]" * 10_000 + "}",
        "nested and never closed": lambda header, data: '{"header_crc32":"00000000","x":' + '{"":' * 100_000,
        "manifest is nested": lambda header, data: header[METADATA].update(fastadam="[" * 10_000),
    },
    "header` must be a JSON object": {
        "metadata are a list": lambda header, data: '{"__metadata__":[{"header_crc32":"00000000"}]}',
        "a list": lambda header, data: '[{"header_crc32":"00000000"}]',
        "a million keys": (
            lambda header, data: '{"header_crc32":"00000000",' + ",".join(f'"{i}":[]' for i in range(300_000)) + "}"
        ),
    },
    "header` must be ASCII": {
        "not UTF-8": lambda header, data: b'{"header_crc32":"00000000","\xff":1}',
    },
    "fastadam` must be strict JSON": {
        "manifest is no JSON": lambda header, data: header[METADATA].update(fastadam="{"),
    },
    "fastadam` must be a JSON object": {
        "manifest is a list": lambda header, data: header[METADATA].update(fastadam="[]"),
        "a key more": setting("more", value=1),
    },
    "formats` must be those that this version of fastadam reads": {
        "another version": setting("formats", "file", value=2),
        "another version is true": setting("formats", "file", value=True),
        "an unknown format": setting("formats", "codes17", value=1),
    },
    "formats` must have the version of the file": {
        "no formats": setting("formats", value=[]),
    },
    "must have the form that fastadam writes": {
        "groups are none": setting("param_groups", value=None),
        "a group is a number": setting("param_groups", 0, value=1),
        "names are numbers": setting("param_groups", 0, "params", value=[1, 2]),
        "names are text": setting("param_groups", 0, "params", value="wb"),
        "state is a list": setting("state", value=[]),
        "numbers are a list": setting("state", "w", value=[]),
        "options are text": setting("options", value="adam"),
        "schedules are numbers": setting("schedules", value={"0": 1}),
        "the version is a number": setting("fastadam", value=1),
    },
}


@pytest.mark.parametrize(
    ("message", "change"),
    [pytest.param(message, change, id=name) for message, named in HEADERS.items() for name, change in named.items()],
)
def test_a_hostile_header_is_refused(message, change, good, loading):
    header, data = header_of(good)
    changed = change(header, data)
    loading(sealed(header if changed is None else changed, data), match=message)


SETTINGS = {
    "negative step": (setting("state", "w", "step", value=-1), ValueError, r"\['step'\]` must be >= 0, got -1"),
    "step is text": (setting("state", "w", "step", value="3"), TypeError, r"\['step'\]` must be an integer, got '3'"),
    "fractional step": (setting("state", "w", "step", value=2.5), TypeError, r"\['step'\]` must be an integer"),
    "no step": (setting("state", "w", value={}), ValueError, r"must have the keys 'param', 'step'|'step'"),
    "step of one alone": (setting("state", "w", "step", value=9), ValueError, "must have one number of steps"),
    "skipped is none": (setting("state", "w", "skipped", value=None), TypeError, r"\['skipped'\]` must be an integer"),
    "lr is text": (setting("param_groups", 0, "lr", value="x"), TypeError, "`lr` must be a real number, got 'x'"),
    "lr is negative": (setting("param_groups", 0, "lr", value=-1.0), ValueError, "`lr` must be >= 0, got -1"),
    "betas are one": (setting("param_groups", 0, "betas", value=[0.5]), TypeError, "`betas` must be a pair"),
    "betas are nested": (setting("param_groups", 0, "betas", value=[[0.5], 0.5]), TypeError, r"`betas\[0\]` must be"),
    "a name twice": (setting("param_groups", 0, "params", value=["w", "b", "w"]), ValueError, "in no group before"),
    "a name is missing": (setting("param_groups", 0, "params", value=["w"]), ValueError, r"none of \['b'\]"),
    "an unknown parameter": (setting("state", "stranger", value={"step": 3}), ValueError, r"got \['stranger'\]"),
    "another member": (setting("options", "member", value="lion"), ValueError, "member` must be 'adam'"),
    "member is a list": (setting("options", "member", value=[1]), ValueError, "member` must be 'adam'"),
    "another option": (setting("param_groups", 0, "seed", value=1), TypeError, "`seed` must be given to the optimizer"),
}


@pytest.mark.parametrize(("change", "error", "message"), SETTINGS.values(), ids=SETTINGS)
def test_a_setting_that_cannot_be_is_refused(change, error, message, good, loading):
    header, data = header_of(good)
    change(header, data)
    loading(sealed(header, data), error, message)


def test_a_header_that_claims_to_be_longer_than_the_file(good, loading):
    for length in (0, 1, len(good), 2**25 + 1, 2**63, 2**64 - 1):
        loading(length.to_bytes(8, "little") + good[8:], match="must begin with the length of its header")


# --- mutations


VALUES = [
    None,
    True,
    -1,
    0,
    1,
    2**62,
    2**63,
    10**30,
    1e308,
    float("nan"),
    "",
    "w",
    "F32",
    "../w",
    "\ud800",
    [],
    {},
    [[]],
]
TOKENS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b"1e999",
    b"NaN",
    b"-",
    b"\\u0000",
    b"\\",
    b"\x00",
    b"\xff",
    b"null",
]


def mutated(good, dice):
    """The bytes of a file, changed at random, with the right checksums of what has become of it."""
    header, data = header_of(good)
    if dice.random() < 0.5:
        for _ in range(dice.randint(1, 3)):
            _mutate_tree(header, dice)
        manifest_text = header.get(METADATA, {})
        if isinstance(manifest_text, dict) and dice.random() < 0.7 and isinstance(manifest_text.get("fastadam"), str):
            try:
                found = json.loads(manifest_text["fastadam"])
                _mutate_tree(found, dice)
                manifest_text["fastadam"] = json.dumps(found)
            except ValueError:
                pass
        return sealed(header, data)
    raw = bytearray(json.dumps(header, separators=(",", ":")).encode())
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(raw))
        kind = dice.randrange(4)
        if kind == 0:
            raw[place] = dice.randrange(256)
        elif kind == 1:
            raw[place:place] = dice.choice(TOKENS) * dice.choice([1, 1, 1, 3, 5000])
        elif kind == 2:
            del raw[place : place + dice.choice([1, 2, 20])]
        else:
            stop = dice.randrange(place, min(len(raw), place + 60))
            raw[place:place] = raw[place:stop]
    return sealed(bytes(raw), data)


def _mutate_tree(tree, dice):
    """Change one value somewhere in nested dicts and lists."""
    while tree:
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        key = dice.choice(list(keys))
        if isinstance(tree[key], (dict, list)) and tree[key] and dice.random() < 0.8:
            tree = tree[key]
            continue
        if dice.random() < 0.3:
            del tree[key]
        elif isinstance(tree, dict) and dice.random() < 0.3:
            tree[dice.choice(["w", "b", "", METADATA, "step", "params", "x" * 10_000])] = tree.pop(key)
        else:
            tree[key] = dice.choice(VALUES)
        return


@pytest.mark.parametrize("seed", range(4))
def test_no_mutation_crashes_hangs_or_writes(seed, good, tmp_path):
    """A mutation may also be harmless, and then the file loads."""
    dice, path = random.Random(seed), tmp_path / "run.safetensors"
    opt = small(5, ema_decay=0.5)
    before, refused = everything(opt), 0
    for _ in range(150):
        data = mutated(good, dice)
        path.write_bytes(data)
        began = time.process_time()
        try:
            opt.load(path, strict=bool(dice.randrange(2)), convert=bool(dice.randrange(2)))
        except (ValueError, TypeError):
            refused += 1
            assert everything(opt) == before
        else:
            opt = small(5, ema_decay=0.5)
        assert time.process_time() - began < 5.0
        assert [each.name for each in tmp_path.iterdir()] == ["run.safetensors"]
    assert refused > 100


def test_damage_is_found_in_every_format(tmp_path):
    path = tmp_path / "run.safetensors"
    opt = make(moment_dtype="float8", ema_decay=0.5)
    train(opt, range(2))
    opt.save(path)
    before, data = everything(opt), bytearray(path.read_bytes())
    data[-1] ^= 128
    path.write_bytes(bytes(data))
    message = exactly(f"`{path}` is damaged: '0.exp_avg_sq_exponent' must have the checksum that was saved")
    with pytest.raises(CheckpointError, match=message):
        opt.load(path)
    assert everything(opt) == before
