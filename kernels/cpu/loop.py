"""The loops over the elements of a block, generated for the buffers and the formats of an update.

Each names every buffer: tuples of arrays would not vectorise.
"""

from collections.abc import Callable
from types import FunctionType

import numpy as np
from numba import carray
from numba.extending import register_jitable

from fastadam.kernels import ADDRESSES, GRADIENT, SCALARS
from fastadam.kernels.cpu.casts import COMPILED, SOURCES, group_floats, signum
from fastadam.kernels.cpu.pointers import view
from fastadam.kernels.texts.formats import EXPONENT_GROUP, Formats
from fastadam.kernels.texts.text import block, function
from fastadam.kernels.texts.update import Update

# What the generated functions call.
NAMES = {
    **COMPILED,
    "int64": np.int64,
    "float64": np.float64,
    "carray": carray,
    "view": view,
    "group_floats": group_floats,
}


def number_like(formats: Formats, flat: str, dtype: np.dtype) -> str:
    """The expression of a number of the dtype of a flat array, where the arithmetic is in `dtype`."""
    stored = formats.dtype(flat)
    return f"{dtype.name if stored == 'native' else stored}(0)"


def itemsize_of(formats: Formats, flat: str, dtype: np.dtype) -> int:
    """The bytes of an element of a flat array, where the arithmetic is in `dtype`."""
    stored = formats.dtype(flat)
    return dtype.itemsize if stored == "native" else np.dtype(stored).itemsize


def loop_of(update: Update, dtype: np.dtype) -> Callable:
    """`leaf(table_row, address_row, start, stop, first)`: step elements `start` to `stop`.

    `table_row` is the address of a row of scalars, `address_row` that of a row of addresses; the gradient begins with
    its element `first`.
    """
    body = _group_body if update.storage.blocked else _plain_body
    return _leaf(
        update,
        f"def {update.name}(table_row, address_row, start, stop, first):",
        *_views(update, dtype),
        *_scalars(update, dtype, "0"),
        *body(update, dtype),
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
    """The part of each flat array that is stepped, and the place of the first element's random word."""
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
        lines += [f"first_place = uint32(addresses[{GRADIENT + 1 + len(update.flats)}] + start)"]
    return lines


def _scalars(update, dtype, row):
    lines = [f"table = view(table_row, {row}, {SCALARS}, {dtype.name}(0))"]
    lines += [f"{name} = table[{index}]" for index, name in enumerate(update.columns)]
    if update.storage.dithers:
        lines += [f"{name} = uint32({name})" for name in ("turn", "toss")]
    return lines


def _plain_body(update, dtype):
    lines = [*_word(update), _element_call(update, "{}[i]"), *_stores(update, "{}[i]")]
    return [*_place(update, "first_place"), block("for i in range(stop - start):", *lines)]


def _group_body(update, dtype):
    """A loop over the elements of each exponent group, which encodes with the exponents of the last step.

    Where an exponent has changed, which is seldom, the codes are made once more, from values that are in the cache.
    """
    storage = update.storage
    arrays = [name for name in ("g", *update.flats) if not name.endswith("_exponent")]
    likes = {name: number_like(storage, name, dtype) for name in arrays}
    kept = [
        line
        for name in storage.blocked
        for line in (f"new_{name}[i] = {name}_", f"{name}_largest = max({name}_largest, {_size(storage, name)})")
    ]
    return [
        *(f"new_{name} = carray(group_floats(), {EXPONENT_GROUP})" for name in storage.blocked),
        block(
            f"for group in range((stop - start + {EXPONENT_GROUP - 1}) // {EXPONENT_GROUP}):",
            f"begin = {EXPONENT_GROUP} * group",
            f"count = min({EXPONENT_GROUP}, stop - start - begin)",
            *(f"{name}_part = view({name}.ctypes.data, begin, count, {like})" for name, like in likes.items()),
            *_place(update, "first_place + uint32(begin)"),
            *(f"{name}_first = first_code({name}_exponent[group])" for name in storage.blocked),
            *(f"{name}_largest = uint32(0)" for name in storage.blocked),
            block(
                "for i in range(count):",
                *_word(update),
                _element_call(update, "{}_part[i]"),
                *_stores(update, "{}_part[i]"),
                *kept,
            ),
            *(line for name in storage.blocked for line in _encoded_again(update, name)),
        ),
    ]


def _encoded_again(update, name):
    storage = update.storage
    codes = [f"{flat}_part[i] = {code}" for flat, code in storage.stores(name, f"new_{name}[i]")]
    return [
        f"exponent = shared_exponent({name}_largest, uint32({storage.codes(name).octaves}))",
        block(
            f"if exponent != {name}_exponent[group]:",
            f"{name}_exponent[group] = exponent",
            f"{name}_first = first_code(exponent)",
            *_place(update, "first_place + uint32(begin)"),
            block("for i in range(count):", *_word(update), *codes),
        ),
    ]


def _size(storage, name):
    return storage.codes(name).size.format(value=f"{name}_")


def _place(update, place):
    return [f"place = uint32({place})"] if update.storage.dithers else []


def _word(update):
    # A counter of 32 bits takes a vector of half the size of what the index of the loop takes.
    return ["word = random_word(place)", "place = uint32(place + uint32(1))"] if update.storage.dithers else []


def _element_call(update, place):
    values = [update.storage.load(name, place) for name in update.buffers]
    results = ", ".join(f"{name}_" for name in update.written)
    return f"{results} = element({', '.join((*values, *update.scalars))})"


def _stores(update, place):
    return [
        f"{place.format(flat)} = {stored}"
        for name in update.written
        for flat, stored in update.storage.stores(name, f"{name}_")
    ]
