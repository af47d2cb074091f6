"""The recipes that the kernel tests run over, and the launches on which kernels are compared."""

import copy
from dataclasses import dataclass

import numpy as np
from oracle import random_state, special_state

from fastadam.kernels import cpu, fold, reference
from fastadam.kernels.storage import Storage
from fastadam.kernels.update import Recipe, Update, update_of

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
MEMBERS = {name: update_of(recipe) for name, recipe in RECIPES.items()}
# The whole matrix of lengths, values and threads is run on these, a part of it on the others.
MAIN = ("adam", "adam_l2", "everything")
OTHERS = tuple(name for name in MEMBERS if name not in MAIN)

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
    "seed": 0.0,
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
    """Every buffer of `update`, of a run under way."""
    p, g, m, v = random_state(size, dtype, seed)
    return _named(update, p, g, m, v)


def special_flats(update, dtype):
    """Every combination of ordinary, denormal, huge, zero and non-finite values."""
    return _named(update, *special_state(dtype))


def _named(update, p, g, m, v):
    buffers = {"p": p, "g": g, "m": m, "v": v, "v_max": np.roll(v, 5), "ema": np.roll(p, 3)}
    buffers["low"] = np.full(p.size, 7, np.uint16)
    return {name: buffers[name] for name in update.buffers}


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
        np.zeros((1, fold.COLUMNS), buffers["p"].dtype),
        grad_scale,
    )


def hyper_of(**changed):
    """A row of hyperparameters."""
    values = {**HYPER, **changed}
    return np.array([values[name] for name in fold.HYPER])


def rows_launch(update, dtype, sizes, seed=0):
    """A launch with a row for each of `sizes`, and one that is left out; narrow and wide gaps lie between the pieces,
    which come in any order and read their gradients from two arrays. One row has a second piece."""
    rng = np.random.default_rng(seed)
    count, order = len(sizes), rng.permutation(len(sizes))
    pieces, start, offsets = [], 3, [2, 5]
    for row, size in [*zip(order, sizes, strict=True), (order[-1], 7)]:
        parameter = int(rng.integers(2))
        pieces.append((start, start + size, int(row), parameter, offsets[parameter]))
        start += size + int(rng.choice([1, 5, 300]))
        offsets[parameter] += size + 1
    buffers = random_flats(update, dtype, start, seed)
    return Launch(
        update,
        {name: buffers[name] for name in update.flats},
        [rng.standard_normal(offset + 1).astype(dtype) for offset in offsets],
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
        nan, other = is_nan(array, update), expected[name]
        np.testing.assert_array_equal(nan, is_nan(other, update), err_msg=f"NaN in {name}")
        unsigned = np.dtype(f"u{array.itemsize}")
        np.testing.assert_array_equal(array[~nan].view(unsigned), other[~nan].view(unsigned), err_msg=name)


def is_nan(array, update):
    """Where `array` is NaN, which the copy of `update` is by its bits."""
    if array.dtype != np.uint16:
        return np.isnan(array)
    infinity = 0x7F80 if update.storage.low == "bfloat16" else 0x7C00
    return (array & 0x7FFF) > infinity
