"""The loops over the elements of a block, generated for the buffers and the formats of an update.

Each names every buffer: tuples of arrays would not vectorise.
"""

from collections.abc import Callable
from types import FunctionType

import numpy as np
from numba import carray
from numba.extending import register_jitable

from fastadam.kernels import ADDRESSES, GRADIENT, SCALARS
from fastadam.kernels.cpu.casts import COMPILED, SOURCES, SPREADS, group_floats, signum
from fastadam.kernels.cpu.pointers import ACCESSES, view
from fastadam.kernels.cpu.prefetch import fetch_to_read, fetch_to_write
from fastadam.kernels.texts.casts import CHUNK, TURNED
from fastadam.kernels.texts.formats import EXPONENT_GROUP, Formats
from fastadam.kernels.texts.text import block, function
from fastadam.kernels.texts.update import Update

# What the generated functions call.
NAMES = {
    **COMPILED,
    **ACCESSES,
    **SPREADS,
    "int64": np.int64,
    "float64": np.float64,
    "carray": carray,
    "view": view,
    "group_floats": group_floats,
    "fetch_to_read": fetch_to_read,
    "fetch_to_write": fetch_to_write,
}
assert CHUNK == EXPONENT_GROUP


def number_like(formats: Formats, flat: str, dtype: np.dtype) -> str:
    """The expression of a number of the dtype of a flat array, where the arithmetic is in `dtype`."""
    stored = formats.dtype(flat)
    return f"{dtype.name if stored == 'native' else stored}(0)"


def loop_of(update: Update, dtype: np.dtype, ahead: int = 0) -> Callable:
    """`leaf(table_row, address_row, start, stop, first)`: step elements `start` to `stop`.

    `table_row` is the address of a row of scalars, `address_row` that of a row of addresses; the gradient begins with
    its element `first`. Memory is fetched so many elements `ahead`, unless that is 0.
    """
    if update.storage.blocked or update.storage.dithers or ahead:
        body = _chunked_body(update, dtype, ahead)
    else:
        body = _plain_body(update, dtype)
    return _leaf(
        update,
        f"def {update.name}(table_row, address_row, start, stop, first):",
        *_views(update, dtype),
        *_scalars(update, dtype, "0"),
        *body,
    )


def repeated_loop_of(update: Update, dtype: np.dtype) -> Callable:
    """`leaf(table_row, address_row, start, stop, count)`: the same by each of `count` rows of scalars, in order.

    The rows are as long as an update without random words and without a gradient has scalars.
    """
    return _leaf(
        update,
        f"def {update.name}(table_row, address_row, start, stop, count):",
        *_views(update, dtype),
        block(
            "for row in range(count):",
            *_scalars(update, dtype, f"{len(update.scalars)} * row"),
            *_plain_body(update, dtype),
        ),
    )


def _leaf(update, header, *lines):
    text = update.element
    element = FunctionType(text.__code__, {**text.__globals__, "signum": signum}, text.__name__)
    # The name of the element tells its text.
    callees, source = element.__name__ + SOURCES, block(header, *lines, "return 0")
    return function(source, callees=callees, element=register_jitable(element), **NAMES)


def _views(update, dtype):
    """The part of each flat array that is stepped, and the place of the parameter's random words."""
    storage = update.storage
    lines = [f"addresses = view(address_row, 0, {ADDRESSES}, int64(0))"]
    if "g" in update.buffers:
        lines += [f"g = view(addresses[{GRADIENT}], first, stop - start, {number_like(storage, 'g', dtype)})"]
    for column, name in enumerate(update.flats, GRADIENT + 1):
        begin, size = "start", "stop - start"
        if name.endswith("_exponent"):
            begin, size = f"start // {EXPONENT_GROUP}", f"(stop - start + {EXPONENT_GROUP - 1}) // {EXPONENT_GROUP}"
        lines += [f"{name} = view(addresses[{column}], {begin}, {size}, {number_like(storage, name, dtype)})"]
    if storage.dithers:
        lines += [f"random_place = addresses[{GRADIENT + 1 + len(update.flats)}]"]
    return lines


def _scalars(update, dtype, row):
    lines = [f"table = view(table_row, {row}, {SCALARS}, {dtype.name}(0))"]
    lines += [f"{name} = table[{index}]" for index, name in enumerate(update.columns)]
    if update.storage.dithers:
        lines += [f"{name} = uint32({name})" for name in ("turn", "toss")]
    return lines


def _plain_body(update, dtype):
    return [
        *(f"{flat}_at = {flat}.ctypes.data" for flat in _stepped(update)),
        block("for i in range(stop - start):", *_element(update, dtype)),
    ]


def _chunked_body(update, dtype, ahead):
    """A loop over the elements of each chunk of the parameter, which may be an exponent group as well.

    A group is encoded with the exponent of the last step. Where that has changed, which is seldom, the codes are made
    once more, from values that are in the cache.
    """
    storage, flats = update.storage, _stepped(update)
    kept = [
        line
        for name in storage.blocked
        for line in (f"new_{name}[i] = {name}_", f"{name}_largest = max({name}_largest, {_size(storage, name)})")
    ]
    return [
        *(f"new_{name} = carray(group_floats(), {EXPONENT_GROUP})" for name in storage.blocked),
        block(
            f"for chunk in range(start // {CHUNK}, (stop + {CHUNK - 1}) // {CHUNK}):",
            f"begin = max({CHUNK} * chunk, start) - start",
            f"count = min({CHUNK} * chunk + {CHUNK}, stop) - start - begin",
            *(f"{flat}_at = {flat}.ctypes.data + {storage.itemsize(flat, dtype)} * begin" for flat in flats),
            *(_fetch(update, dtype, flat, ahead) for flat in flats if ahead),
            *_first_word(storage),
            *(f"{name}_first = first_code({name}_exponent[{_group()}])" for name in storage.blocked),
            *(f"{name}_largest = uint32(0)" for name in storage.blocked),
            block(
                "for i in range(count):",
                *_words(storage),
                *_element(update, dtype),
                *kept,
            ),
            *(line for name in storage.blocked for line in _encoded_again(update, dtype, name)),
        ),
    ]


def _stepped(update):
    """Names of the flat arrays that have something for each element."""
    own = ("g",) if "g" in update.buffers else ()
    return [*own, *(flat for flat in update.flats if not flat.endswith("_exponent"))]


def _column(update, flat):
    return GRADIENT if flat == "g" else GRADIENT + 1 + update.flats.index(flat)


def _read(update, dtype, flat):
    return f"read_{_column(update, flat)}({flat}_at, i, {number_like(update.storage, flat, dtype)})"


def _written(update, dtype, flat, value):
    return f"write_{_column(update, flat)}({flat}_at, i, {number_like(update.storage, flat, dtype)}, {value})"


def _fetch(update, dtype, flat, ahead):
    """The fetch of a chunk of a flat array, `ahead` elements on."""
    itemsize, kept = update.storage.itemsize(flat, dtype), flat == "g" and "g" not in update.written
    fetch = "fetch_to_read" if kept else "fetch_to_write"
    return f"{fetch}({flat}_at + {ahead * itemsize}, {CHUNK * itemsize})"


def _encoded_again(update, dtype, name):
    storage = update.storage
    codes = [_written(update, dtype, flat, code) for flat, code in storage.stores(name, f"new_{name}[i]")]
    return [
        f"exponent = shared_exponent({name}_largest, uint32({storage.codes(name).octaves}))",
        block(
            f"if exponent != {name}_exponent[{_group()}]:",
            f"{name}_exponent[{_group()}] = exponent",
            f"{name}_first = first_code(exponent)",
            block("for i in range(count):", *_words(storage), *codes),
        ),
    ]


def _group():
    """The number of the chunk among those that are stepped: exponent groups begin with them."""
    return f"chunk - start // {EXPONENT_GROUP}"


def _size(storage, name):
    return storage.codes(name).size.format(value=f"{name}_")


def _first_word(storage):
    """What the random words of a chunk share, and where its first ones are in their sequence."""
    if not storage.dithers:
        return []
    turned = {name: (f"uint32(chunk_word * {multiple})", turn) for name, (multiple, turn) in TURNED.items()}
    return [
        "chunk_word = hashed(uint32(random_place + chunk))",
        *(f"chunk_{name} = uint32({' + '.join(turned[name])})" for name in storage.words),
        f"place = int64(first_spread(chunk_word)) + (start + begin - {CHUNK} * chunk)",
    ]


def _words(storage):
    return [f"{name} = uint32(chunk_{name} + spread_{TURNED[name][0]}(place, i))" for name in storage.words]


def _element(update, dtype):
    """Element `i` of what begins at the addresses `{flat}_at`."""
    values = ", ".join((*(update.storage.load(name, "{}_i") for name in update.buffers), *update.scalars))
    results = ", ".join(f"{name}_" for name in update.written)
    return [
        *(f"{flat}_i = {_read(update, dtype, flat)}" for flat in _stepped(update)),
        f"{results} = element({values})",
        *(
            _written(update, dtype, flat, stored)
            for name in update.written
            for flat, stored in update.storage.stores(name, f"{name}_")
        ),
    ]
