"""The recipes that the kernel tests run over, and the launches on which kernels are compared."""

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
from oracle import Home, assert_same_array, random_state, special_state

from fastadam.kernels import GRAD_SCALE, GRADIENT, SCALARS, TAKEN, Pass, reference, stored
from fastadam.kernels.blocks import cut
from fastadam.kernels.host_tables import HostTables
from fastadam.kernels.texts.formats import EXPONENT_GROUP, FORMATS, Formats
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
    "nadam": Recipe("nadam"),
    "adamax": Recipe("adamax"),
    "adamax_keras": Recipe("adamax", convention="keras"),
    "radam": Recipe("radam"),
    "radam_optax": Recipe("radam", convention="optax", eps_root=True),
    "lion": Recipe("lion", decay="decoupled"),
    "lion_l2": Recipe("lion", decay="coupled", small_betas=(2,)),
    "ademamix": Recipe("ademamix", decay="decoupled"),
    "ademamix_optax": Recipe("ademamix", convention="optax", eps_root=True, small_betas=(1, 2, 3)),
    "small_betas": Recipe(small_betas=(1, 2)),
    "clip_value": Recipe(clip_value=True),
    "clip_norm": Recipe(clip_norm=True),
    "ema": Recipe(ema=True),
    "bfloat16": Recipe(storage=Formats(copy="bfloat16")),
    "float16": Recipe(storage=Formats(copy="float16")),
    "zero_grad": Recipe(zero_grad=True),
    "everything": Recipe(
        convention="optax",
        amsgrad=True,
        decay="decoupled",
        eps_root=True,
        clip_value=True,
        ema=True,
        zero_grad=True,
        storage=Formats(copy="bfloat16"),
    ),
}
_CODES = {"m": "signed_fast", "v": "unsigned_slow"}
_DITHERED = {"m": "dithered_fast", "v": "dithered_slow"}
STORED_RECIPES = {
    "moments_bfloat16": Recipe(storage=Formats(m="bfloat16", v="bfloat16")),
    "moments_dithered": Recipe(storage=Formats(**_DITHERED)),
    "all_float16": Recipe(
        amsgrad=True, ema=True, storage=Formats(**dict.fromkeys(("p", "g", "m", "v", "v_max", "ema"), "float16"))
    ),
    "all_dithered": Recipe(storage=Formats(p="dithered", g="bfloat16", **_DITHERED)),
    "split": Recipe(storage=Formats(p="split", g="bfloat16")),
    "codes": Recipe(storage=Formats(**_CODES)),
    "dithered_codes": Recipe(zero_grad=True, storage=Formats(p="dithered", g="bfloat16", **_CODES)),
    "split_codes": Recipe(
        decay="coupled", storage=Formats(p="split", g="bfloat16", m="signed_fast", v="dithered_slow")
    ),
    "v_codes": Recipe(amsgrad=True, storage=Formats(m="dithered_fast", v="unsigned_slow", v_max="bfloat16")),
    "everything_codes": Recipe(
        decay="decoupled", clip_value=True, ema=True, zero_grad=True, storage=Formats(copy="bfloat16", **_CODES)
    ),
    "lion_dithered": Recipe("lion", storage=Formats(p="dithered", g="bfloat16", m="dithered_fast")),
    "lion_codes": Recipe("lion", storage=Formats(m="signed_fast")),
    "ademamix_dithered": Recipe(
        "ademamix", storage=Formats(p="dithered", g="bfloat16", m_slow="dithered_slowest", **_DITHERED)
    ),
    "ademamix_codes": Recipe("ademamix", storage=Formats(m_slow="signed_slowest", **_CODES)),
}
RECIPES |= STORED_RECIPES
MEMBERS = {name: update_of(recipe) for name, recipe in RECIPES.items()}
# The whole matrix of lengths, values and threads is run on these, a part of it on the others.
MAIN = ("adam", "adam_l2", "everything")
# What has another storage than the copy is run on float32.
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
    "clip_value": 0.7,
    "ema_decay": 0.99,
    "clip": 0.25,
    "momentum_decay": 4e-3,
    "beta3": 0.9998,
    "alpha": 5.0,
    "alpha_warmup": 40.0,
    "beta3_warmup": 50.0,
}


@dataclass
class Launch:
    """One pass, on arrays that lie anywhere.

    Attributes:
        parameters: The flat arrays of each parameter by name, and its gradient "g", which may be longer or missing.
        pieces: (parameter, clock, start, stop, first) of each piece.
        clocks: Rows of the scalars to fold.
        places: The place of each parameter's random words.
        shift: Elements from a multiple of 64 bytes to the beginning of the first array; the others have one more each,
            unless it is 0.
            Of 0, all arrays begin at such a multiple, as CUDA's accesses of 16 bytes need it.
    """

    update: Update
    dtype: np.dtype
    parameters: list[dict[str, np.ndarray]]
    pieces: list[tuple[int, int, int, int, int]]
    clocks: np.ndarray
    tables: HostTables
    places: list[int] = field(default_factory=lambda: [7654321])
    shift: int = 0

    @property
    def flats(self) -> dict[str, np.ndarray]:
        """The arrays of the one parameter, or of the first."""
        return self.parameters[0]

    @property
    def passes(self) -> list[Pass]:
        pieces = np.array(self.pieces, np.int64).reshape(-1, 5)
        return [Pass(self.update, self.dtype, self.clocks, cut(pieces))]

    @property
    def table(self) -> np.ndarray:
        """The scalars, a row for each clock."""
        return self.tables.table.view(self.dtype)[:, :SCALARS]

    def arrays(self) -> dict[tuple[int, str], np.ndarray]:
        """Every array that a launch may write, by the number of its parameter and its name; -1 for tables."""
        arrays = {
            (index, name): array for index, arrays in enumerate(self.parameters) for name, array in arrays.items()
        }
        for name in ("hyper", "carried", "table", "record"):
            arrays[-1, name] = getattr(self.tables, name)
        return arrays

    def run(self, launcher: Callable, *, guarded: bool = False) -> None:
        """Run it, in place, on copies of the arrays that lie between canaries."""
        homes = []
        for index, arrays in enumerate(self.parameters):
            names = ("g", *self.update.flats)
            shifts = {name: self.shift + n if self.shift else 0 for n, name in enumerate(names)}
            mine = {name: Home(arrays[name], shifts[name]) for name in names if name in arrays}
            places = [mine[name].address if name in mine else 0 for name in names]
            self.tables.addresses[index, GRADIENT : GRADIENT + len(places) + 1] = [*places, self.places[index]]
            homes += mine.values()
        self.tables.send()
        launcher(self.passes, self.tables, guarded=guarded)()
        for home in homes:
            home.leave()
        self.tables.addresses[...] = 0


def random_flats(update, dtype, size, seed=0):
    """Every flat array of `update`, and its gradients, of a run under way."""
    values = _values(*random_state(size, dtype, seed))
    return _joined(encode(update.storage, name, values[name]) for name in update.buffers)


def special_flats(update, dtype):
    """Every combination of ordinary, denormal, huge, zero and non-finite values; any codes, where there are codes."""
    p, g, m, v = special_state(dtype)
    # One NaN is enough for an exponent group: those of p and g come together.
    order = np.lexsort([np.abs(p), np.abs(g)]) if update.storage.blocked else slice(None)
    values = _values(p[order], g[order], m[order], v[order])
    halves = _values(*(half[order] for half in special_state(np.float16)))
    return _joined(_special(update.storage, name, values[name], halves[name]) for name in update.buffers)


def encode(storage, buffer, values):
    """The flat arrays of a buffer with these values; those of a copy are filled with anything."""
    sizes = dict.fromkeys(storage.flats(buffer), values.size)
    sizes |= {flat: -(-values.size // EXPONENT_GROUP) for flat in sizes if is_exponent(flat)}
    if storage[buffer] == "native":
        return {buffer: values}
    flats = {flat: np.full(size, 7, storage.dtype(flat)) for flat, size in sizes.items()}
    if buffer != "copy":
        stored.store(storage, buffer, values, flats)
    return flats


def is_exponent(flat):
    return flat.endswith("_exponent")


def _values(p, g, m, v):
    others = {"v_max": np.roll(v, 5), "ema": np.roll(p, 3), "copy": p, "m_slow": np.roll(m, 7)}
    return {"p": p, "g": g, "m": m, "v": v, **others}


def _joined(parts):
    return {flat: array for part in parts for flat, array in part.items()}


def _special(storage, buffer, values, halves):
    if buffer in storage.blocked:
        return _special_codes(storage, buffer, values.size)
    if buffer != "copy" and storage[buffer] == "float16":
        return {buffer: halves.view(np.uint16)}
    if buffer != "copy" and FORMATS[storage[buffer]].nearest == "bfloat16":
        # Cut off, so that the largest stays finite; the smallest becomes the smallest bfloat16.
        upper = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        return {buffer: upper | ((upper & 0x7FFF == 0) & (values != 0))}
    return encode(storage, buffer, values)


def _special_codes(storage, buffer, size):
    """Any codes and, beside a few others, the exponents of the smallest, of the largest and of no finite values."""
    rng, most = np.random.default_rng(size), 254 - storage.codes(buffer).octaves
    codes = rng.integers(0, 256, size).astype(np.uint8) * (rng.random(size) < 0.9)
    exponents = rng.choice([0, 1, 40, 100, 110, 125, most, 255], -(-size // EXPONENT_GROUP))
    return {buffer: codes, f"{buffer}_exponent": exponents.astype(np.uint8)}


def launch_of(update, buffers, step=3, grad_scale=0.5, place=7654321, **hyper):
    """A launch of one parameter, one piece and one clock, which is step number `step`."""
    dtype, size = update.storage.arithmetic(buffers["p"]), buffers["p"].size
    tables = tables_of(update, 1, [step - 1.0], grad_scale, **hyper)
    return Launch(update, dtype, [dict(buffers)], [(0, 0, 0, size, 0)], np.zeros(1, np.int64), tables, [place])


def tables_of(update, parameters, steps, grad_scale=0.5, **hyper):
    """Tables with a clock for each of `steps`, the numbers of those taken."""
    tables = HostTables.zeros(parameters, len(steps))
    tables.hyper[:, : len(update.hyper)] = hyper_of(update, **hyper)
    tables.carried[:, 0] = steps
    tables.carried[:, 1 : len(update.carried)] = 0.5
    tables.record[[GRAD_SCALE, TAKEN]] = grad_scale, 1.0
    return tables


def hyper_of(update, **changed):
    """A row of hyperparameters."""
    values = {**HYPER, **changed}
    return np.array([values[name] for name in update.hyper])


def clocks_launch(update, dtype, sizes, seed=0):
    """A launch with a clock for each of `sizes`, and one that is left out.

    The pieces are of three parameters, which they leave narrow and wide gaps in, and come in any order; gradients begin
    elsewhere. One clock has a second piece. Where exponents are shared, pieces begin with a group.
    """
    rng = np.random.default_rng(seed)
    count, order = len(sizes), rng.permutation(len(sizes))
    place = EXPONENT_GROUP if update.storage.blocked else 1
    pieces, starts, firsts = [], [3 * place, 0, place], [2, 5, 0]
    for clock, size in [*zip(order, sizes, strict=True), (order[-1], 7)]:
        parameter = int(rng.integers(3))
        start = starts[parameter]
        pieces.append((parameter, int(clock), start, start + size, firsts[parameter]))
        starts[parameter] += size + int(rng.choice([1, 5, 300]))
        starts[parameter] += -starts[parameter] % place
        firsts[parameter] += size + 1
    parameters = [random_flats(update, dtype, size, seed + index) for index, size in enumerate(starts)]
    for arrays, first in zip(parameters, firsts, strict=True):
        arrays["g"] = encode(update.storage, "g", rng.standard_normal(first + 1).astype(dtype))["g"]
    tables = tables_of(update, 3, np.arange(count + 1.0) * 3)
    lr, beta2 = update.hyper.index("lr"), update.hyper.index("beta2")
    tables.hyper[:, lr] = 1e-3 * np.arange(1, count + 2)
    tables.hyper[:, beta2] = 0.99 + np.arange(count + 1) / 1e4
    if len(update.carried) > 1:
        tables.carried[:, 1] = np.linspace(0.9, 0.1, count + 1)
    pieces = [pieces[index] for index in rng.permutation(len(pieces))]
    return Launch(update, np.dtype(dtype), parameters, pieces, order.astype(np.int64), tables, [3, 2**32 - 40, 10**9])


def by_reference(launch):
    """Run `launch` on the reference, in place; a step that is not taken only zeroes gradients."""
    launch.run(reference.launcher, guarded=True)


def by_cpu(parallel):
    """The function that runs a launch on one thread or on all, in place."""
    from fastadam.kernels import cpu
    from fastadam.kernels.cpu import threads

    def run(launch):
        before, threads.PARALLEL_FROM = threads.PARALLEL_FROM, 0 if parallel else 2**62
        try:
            launch.run(cpu.launcher)
        finally:
            threads.PARALLEL_FROM = before

    return run


def by_cuda_host(guarded):
    """The function that runs a launch on the CUDA source, compiled by a host compiler, in place."""
    import cuda_host

    def run(launch):
        launch.run(cuda_host.launcher, guarded=guarded)

    run.keeps_subnormals = True
    return run


def has_cuda_host():
    """Whether the CUDA source can be compiled for the host."""
    try:
        import cuda_host
    except ImportError:
        return False
    return cuda_host.HAS_COMPILER


def check(launch, run, err_msg=""):
    """`run` on `launch` does to the last bit what the reference does on a copy."""
    expected = copy.deepcopy(launch)
    # CUDA flushes subnormals of float32 alone.
    keeps = launch.dtype == np.float64 and getattr(run, "keeps_subnormals", False)
    with mock.patch.object(reference, "flushed", contextlib.nullcontext) if keeps else contextlib.nullcontext():
        by_reference(expected)
    run(launch)
    assert_same(launch, expected, err_msg)


def assert_same(actual, expected, err_msg=""):
    """Every array of `actual` is equal to the last bit, zeros by sign too; NaN where NaN."""
    mine, others, update = actual.arrays(), expected.arrays(), actual.update
    assert mine.keys() == others.keys()
    for key, array in mine.items():
        numbers = is_number(mine, key, update), is_number(others, key, update)
        assert_same_array(array, others[key], f"{key} {err_msg}", numbers)


def is_number(arrays, key, update):
    """Where one of `arrays` is not NaN, by its bits if it is stored, or has no code of a group that is not finite."""
    array, (parameter, name), storage = arrays[key], key, update.storage
    if parameter == -1 and name == "table":
        return np.full(array.shape, True)
    if array.dtype.kind == "f":
        return ~np.isnan(array)
    if name in storage.blocked:
        return np.repeat(arrays[parameter, f"{name}_exponent"] != 255, EXPONENT_GROUP)[: array.size]
    if is_exponent(name) or name == "remainder":
        return np.full(array.shape, True)
    infinity = 0x7C00 if storage[name] == "float16" else 0x7F80
    return (array & 0x7FFF) <= infinity
