"""The recipes that the kernel tests run over, and the launches on which kernels are compared."""

import copy
from dataclasses import dataclass

import numpy as np
from oracle import random_state, special_state

from fastadam.kernels import cpu, reference, stored
from fastadam.kernels.texts import fold
from fastadam.kernels.texts.formats import BLOCK_FORMATS, EXPONENT_BLOCK, Storage
from fastadam.kernels.texts.update import Recipe, Update, update_of

RECIPES = {
    "adam": Recipe(),
    "adam_l2": Recipe(decay="coupled"),
    "adamw": Recipe(decay="decoupled"),
    "adamw_free": Recipe(decay="free"),
    "keras": Recipe(convention="keras"),
    "optax": Recipe(convention="optax", eps_root=True),
    "amsgrad": Recipe(amsgrad=True),
    "amsgrad_optax": Recipe(amsgrad=True, convention="optax"),
    "amsgrad_optax_eps_root": Recipe(amsgrad=True, convention="optax", eps_root=True),
    "nadam": Recipe(member="nadam"),
    "adamax": Recipe(member="adamax"),
    "adamax_keras": Recipe(member="adamax", convention="keras"),
    "radam": Recipe(member="radam"),
    "radam_optax": Recipe(member="radam", convention="optax", eps_root=True),
    "short": Recipe(short1=True, short2=True),
    "clip_value": Recipe(clip_value=True),
    "ema": Recipe(ema=True),
    "bfloat16": Recipe(storage=Storage(low="bfloat16")),
    "float16": Recipe(storage=Storage(low="float16")),
    "zero_grad": Recipe(zero_grad=True),
    "everything": Recipe("adam", "optax", True, "decoupled", True, True, True, True, storage=Storage(low="bfloat16")),
}
_CODES = {"m": "float8", "v": "float8"}
STORED_RECIPES = {
    "moments_bfloat16": Recipe(storage=Storage(m="bfloat16", v="bfloat16")),
    "moments_dithered": Recipe(storage=Storage(m="dithered", v="dithered")),
    "all_float16": Recipe(amsgrad=True, ema=True, storage=Storage(*["float16"] * 6)),
    "all_dithered": Recipe(storage=Storage(p="dithered", g="bfloat16", m="dithered", v="dithered")),
    "split": Recipe(storage=Storage(p="split", g="bfloat16")),
    "codes": Recipe(storage=Storage(**_CODES)),
    "dithered_codes": Recipe(zero_grad=True, storage=Storage(p="dithered", g="bfloat16", **_CODES)),
    "split_codes": Recipe(decay="coupled", storage=Storage(p="split", g="bfloat16", m="float8", v="dithered")),
    "v_codes": Recipe(amsgrad=True, storage=Storage(m="dithered", v="float8", v_max="bfloat16")),
    "everything_codes": Recipe(
        decay="decoupled",
        clip_value=True,
        ema=True,
        zero_grad=True,
        storage=Storage(low="bfloat16", **_CODES),
    ),
}
RECIPES |= STORED_RECIPES
MEMBERS = {name: update_of(recipe) for name, recipe in RECIPES.items()}
# The whole matrix of lengths, values and threads is run on these, a part of it on the others.
MAIN = ("adam", "adam_l2", "everything")
# What has another storage than the copy is run on float32, in tests of its own where launches are compared.
STORED = tuple(STORED_RECIPES)
BLOCKED = tuple(name for name in STORED if MEMBERS[name].storage.blocked)
OTHERS = tuple(name for name in MEMBERS if name not in MAIN + STORED)
# Every member with every dtype of its arithmetic.
NAMES_AND_DTYPES = [(name, np.float32) for name in MEMBERS]
NAMES_AND_DTYPES += [(name, np.float64) for name in MAIN + OTHERS]

HYPER = {
    "lr": 2e-3,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.05,
    "sign": 1.0,
    "eps_root": 1e-9,
    "momentum_decay": 4e-3,
    "clip_value": 0.7,
    "ema_decay": 0.99,
    "seed": 7654321.0,
}


@dataclass
class Launch:
    """The arguments of a launch; `flats` by name, and without the gradients."""

    update: Update
    flats: dict[str, np.ndarray]
    gradients: list[np.ndarray]
    pieces: list[tuple[int, int, int, int, int]]
    rows: np.ndarray
    hyper: np.ndarray
    carried: np.ndarray
    table: np.ndarray
    grad_scale: float = 0.5

    def arrays(self):
        """Name -> every array that a launch may write."""
        gradients = {f"gradient {index}": gradient for index, gradient in enumerate(self.gradients)}
        return {**self.flats, **gradients, "hyper": self.hyper, "carried": self.carried, "table": self.table}


def random_flats(update, dtype, size, seed=0):
    """Every flat array of `update`, and its gradients, of a run under way."""
    values = _values(*random_state(size, dtype, seed))
    return _joined(encode(update.storage, name, values[name]) for name in update.buffers)


def special_flats(update, dtype):
    """Every combination of ordinary, denormal, huge, zero and non-finite values; any codes, where there are codes."""
    p, g, m, v = special_state(dtype)
    # One NaN is enough for a block of shared exponents: those of p and g come together.
    order = np.lexsort([np.abs(p), np.abs(g)]) if update.storage.blocked else slice(None)
    values = _values(p[order], g[order], m[order], v[order])
    halves = _values(*(half[order] for half in special_state(np.float16)))
    return _joined(_special(update.storage, name, values[name], halves[name]) for name in update.buffers)


def encode(storage, buffer, values):
    """The flat arrays of a buffer with these values; those of a copy are filled with anything."""
    sizes = dict.fromkeys(storage.flats(buffer), values.size)
    sizes |= {flat: -(-values.size // EXPONENT_BLOCK) for flat in sizes if is_exponent(flat)}
    if getattr(storage, buffer) == "native":
        return {buffer: values}
    flats = {flat: np.full(size, 7, storage.dtype(flat)) for flat, size in sizes.items()}
    if buffer != "low":
        stored.store(storage, buffer, values, flats)
    return flats


def is_exponent(flat):
    return flat.endswith("_exponent")


def _values(p, g, m, v):
    return {"p": p, "g": g, "m": m, "v": v, "v_max": np.roll(v, 5), "ema": np.roll(p, 3), "low": p}


def _joined(parts):
    return {flat: array for part in parts for flat, array in part.items()}


def _special(storage, buffer, values, halves):
    if buffer in storage.blocked:
        return _special_codes(buffer, values.size)
    if buffer != "low" and getattr(storage, buffer) == "float16":
        return {buffer: halves.view(np.uint16)}
    if buffer != "low" and getattr(storage, buffer) in ("bfloat16", "dithered"):
        # Cut off, so that the largest stays finite; the smallest becomes the smallest bfloat16.
        upper = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        return {buffer: upper | ((upper & 0x7FFF == 0) & (values != 0))}
    return encode(storage, buffer, values)


def _special_codes(buffer, size):
    """Any codes and, beside a few others, the exponents of the smallest, of the largest and of no finite values."""
    rng, most = np.random.default_rng(size), 254 - BLOCK_FORMATS[buffer].octaves
    codes = rng.integers(0, 256, size).astype(np.uint8) * (rng.random(size) < 0.9)
    exponents = rng.choice([0, 1, 40, 100, 110, 125, most, 255], -(-size // EXPONENT_BLOCK))
    return {buffer: codes, f"{buffer}_exponent": exponents.astype(np.uint8)}


def launch_of(update, buffers, step=3, grad_scale=0.5, **hyper):
    """A launch with one row and one piece, which is step number `step`."""
    flats = {name: buffers[name] for name in update.flats}
    return Launch(
        update,
        flats,
        [buffers["g"]],
        [(0, buffers["p"].size, 0, 0, 0)],
        np.array([0]),
        hyper_of(**hyper).reshape(1, -1),
        np.array([[step - 1.0, 0.5]]),
        np.zeros((1, fold.COLUMNS), update.storage.arithmetic(buffers["p"])),
        grad_scale,
    )


def hyper_of(**changed):
    """A row of hyperparameters."""
    values = {**HYPER, **changed}
    return np.array([values[name] for name in fold.HYPER])


def rows_launch(update, dtype, sizes, seed=0):
    """A launch with a row for each of `sizes`, and one that is left out; narrow and wide gaps lie between the pieces,
    which come in any order and read their gradients from two arrays. One row has a second piece. Where exponents are
    shared, pieces begin with a block of them."""
    rng = np.random.default_rng(seed)
    count, order = len(sizes), rng.permutation(len(sizes))
    place = EXPONENT_BLOCK if update.storage.blocked else 1
    pieces, start, offsets = [], 3 * place, [2, 5]
    for row, size in [*zip(order, sizes, strict=True), (order[-1], 7)]:
        parameter = int(rng.integers(2))
        pieces.append((start, start + size, int(row), parameter, offsets[parameter]))
        start += size + int(rng.choice([1, 5, 300]))
        start += -start % place
        offsets[parameter] += size + 1
    buffers = random_flats(update, dtype, start, seed)
    gradients = [rng.standard_normal(offset + 1).astype(dtype) for offset in offsets]
    return Launch(
        update,
        {name: buffers[name] for name in update.flats},
        [encode(update.storage, "g", gradient)["g"] for gradient in gradients],
        [pieces[index] for index in rng.permutation(len(pieces))],
        order,
        np.stack([hyper_of(lr=1e-3 * (row + 1), beta2=0.99 + row / 1e4) for row in range(count + 1)]),
        np.column_stack([np.arange(count + 1.0) * 3, np.linspace(0.9, 0.1, count + 1)]),
        np.zeros((count + 1, fold.COLUMNS), dtype),
    )


def by_reference(launch):
    """Run `launch` on the reference, in place."""
    run = reference.launcher(launch.update, launch.table.dtype, 0)
    run(list(launch.flats.values()), launch.gradients, launch.pieces, *_rest(launch))


def by_cpu(parallel):
    """The function that runs a launch on one of the twins, in place."""

    def run(launch):
        kernel = cpu.compiled(launch.update, launch.table.dtype, parallel=parallel)
        addresses = np.array([cpu.address(gradient) for gradient in launch.gradients])
        kernel(tuple(launch.flats.values()), addresses, cpu.blocks_of(launch.pieces), *_rest(launch))

    return run


def _rest(launch):
    return launch.rows, launch.hyper, launch.carried, launch.table, launch.grad_scale


def check(launch, run):
    """`run` on `launch` does to the last bit what the reference does on a copy."""
    expected = copy.deepcopy(launch)
    by_reference(expected)
    run(launch)
    assert_same(launch.arrays(), expected.arrays(), launch.update)


def assert_same(actual, expected, update):
    """Every array of `actual` is equal to the last bit, zeros by sign too; NaN where NaN."""
    assert actual.keys() == expected.keys()
    for name, array in actual.items():
        other, number = expected[name], is_number(actual, name, update)
        np.testing.assert_array_equal(number, is_number(expected, name, update), err_msg=f"NaN in {name}")
        unsigned = np.dtype(f"u{array.itemsize}")
        np.testing.assert_array_equal(array[number].view(unsigned), other[number].view(unsigned), err_msg=name)


def is_number(arrays, name, update):
    """Where one of `arrays` is not NaN, by its bits if it is stored, or has no code of a block that is not finite."""
    array, storage = arrays[name], update.storage
    if array.dtype.kind == "f":
        return ~np.isnan(array)
    if name in storage.blocked:
        return np.repeat(arrays[f"{name}_exponent"] != 255, EXPONENT_BLOCK)[: array.size]
    if is_exponent(name) or name == "remainder":
        return np.full(array.shape, True)
    buffer = "g" if name.startswith("gradient ") else name
    infinity = 0x7C00 if getattr(storage, buffer) == "float16" else 0x7F80
    return (array & 0x7FFF) <= infinity
