"""What the tests of checkpoints share: optimizers of every kind of storage, and all that they keep."""

import json
import re
from zlib import crc32

import numpy as np
from ml_dtypes import bfloat16
from oracle import bits, raw

import fastadam
from fastadam import schedules

SHAPES = {"w": (65, 70), "b": (), 0: (3, 1999), "0": (7,), "none": (0, 3), "w.exp_avg": (5,)}
STORAGES = {
    "float32": (np.float32, {}),
    "float64": (np.float64, {"amsgrad": True}),
    "amsgrad and average": (np.float32, {"amsgrad": True, "ema_decay": 0.9}),
    "bfloat16 moments": (np.float32, {"moment_dtype": "bfloat16"}),
    "float16 moments": (np.float32, {"moment_dtype": ("float16", "float32")}),
    "codes": (np.float32, {"moment_dtype": "float8"}),
    "float16": (np.float16, {}),
    "all bfloat16": (bfloat16, {"moment_dtype": "bfloat16"}),
    "masters and codes": (bfloat16, {"master_weights": True, "moment_dtype": ("float8", "bfloat16"), "ema_decay": 0.9}),
    "float16 copy": (np.float32, {"copy_dtype": "float16"}),
}
MEMBERS = ("Adam", "NAdam", "Adamax", "RAdam", "Lion", "AdEMAMix")


def arrays(seed=0, dtype=np.float32, shapes=SHAPES, order="C"):
    """Name -> random array."""
    rng = np.random.default_rng(seed)
    return {name: np.array(rng.standard_normal(shape), dtype, order=order) for name, shape in shapes.items()}


def gradients(opt, seed, without=()):
    """Name -> gradient of a seed, as `opt` takes it, None for the names `without`."""

    def drawn(name, view):
        rng = np.random.default_rng([seed, *repr(name).encode()])
        return np.asarray(rng.standard_normal(view.shape), view.dtype)

    return {name: None if name in without else drawn(name, view) for name, view in opt.params.items()}


def train(opt, steps, without=lambda step: ()):
    for step in steps:
        opt.step(gradients(opt, step, without(step)))


def everything(opt):
    """All that an optimizer keeps: the bytes of every array, the numbers of every parameter, and the groups."""
    state = opt.state_dict()
    numbers = {
        name: {key: value for key, value in entry.items() if not hasattr(value, "shape")}
        for name, entry in state["state"].items()
    }
    return {name: bits(raw(opt, name)) for name in opt.params}, numbers, state["param_groups"]


def kept(opt):
    """The same without the groups, and so however parameters are grouped."""
    return everything(opt)[:2]


def make(kind="AdamW", seed=0, dtype=np.float32, **options):
    return getattr(fastadam, kind)(arrays(seed, dtype), **{"lr": 0.01, **options})


def small(seed=0, **options):
    """A small optimizer under way."""
    opt = fastadam.Adam({"w": np.arange(12.0, dtype=np.float32).reshape(3, 4), "b": np.ones(3)}, lr=0.1, **options)
    train(opt, range(seed, seed + 3))
    return opt


HALVING = schedules.Exponential(0.1, decay_steps=3, decay_rate=0.5, staircase=True)


# --- files, changed


def header_of(data):
    """The parsed header of the bytes of a file, and the bytes after it."""
    stop = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:stop]), data[stop:]


def sealed(header, rest=b""):
    """The bytes of a file with this header, a dict or text, and with the right checksum of it."""
    text = header if isinstance(header, (bytes, str)) else json.dumps(header, separators=(",", ":"))
    text = text.encode() if isinstance(text, str) else text
    whole = len(text).to_bytes(8, "little") + text
    blank = re.sub(rb'"header_crc32":"[0-9a-f]{8}"', b'"header_crc32":"00000000"', whole)
    return re.sub(rb'"header_crc32":"[0-9a-f]{8}"', b'"header_crc32":"%08x"' % crc32(blank), whole) + rest


def checksums_of(tensors, data):
    """The checksums that fit the tensors of a header."""
    return {name: f"{crc32(data[slice(*entry['data_offsets'])]):08x}" for name, entry in tensors.items()}
