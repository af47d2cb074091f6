"""The loops over the elements of a block of the CPU kernel, generated for the buffers and the storage of an update.

Each names every buffer: tuples of arrays would not vectorise.
"""

from typing import Any

from numba import carray, types
from numba.extending import intrinsic, register_jitable

from fastadam.kernels.cpu.casts import COMPILED, SOURCES, block_floats
from fastadam.kernels.texts.formats import BLOCK_FORMATS, EXPONENT_BLOCK
from fastadam.kernels.texts.text import block, function


@intrinsic
def _pointer(_, address, start, like):
    """The pointer to number `start` of those like `like` that begin at `address`."""

    def generate(context, builder, signature, arguments):
        first = builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))
        return builder.gep(first, [arguments[1]])

    return types.CPointer(like)(address, start, like), generate


@register_jitable
def view(address, start, size, like):
    """The array of `size` numbers like `like` that starts `start` numbers after `address`.

    It has no reference count, over which the threads would fight: 80 ns a block.
    """
    return carray(_pointer(address, start, like), size)


def number_like(storage, buffer):
    """The expression of a number of the dtype of the arithmetic, which has the table, or of that of a buffer."""
    dtype = storage.dtype(buffer)
    return "table[0]" if dtype == "native" else f"{dtype}(0)"


def loop_of(update) -> Any:
    """`loop(table, address, offset, flats, start, stop)`: elements `start` to `stop` of the flat arrays.

    `table` is a row of scalars, and the gradient starts `offset` elements after `address`.
    """
    storage = update.storage
    body = _block_body if storage.blocked else _plain_body
    scalars = [f"{name} = table[{index}]" for index, name in enumerate(update.columns)]
    integers = [f"{name} = uint32({name})" for name in ("seed", "turn", "toss") if storage.dithers]
    source = block(
        "def loop(table, address, offset, flats, start, stop):",
        *([f"g = view(address, offset, stop - start, {number_like(storage, 'g')})"] * ("g" in update.buffers)),
        *(_part(storage, index, name) for index, name in enumerate(update.flats)),
        *scalars,
        *integers,
        *body(update),
    )
    names = {**COMPILED, "element": register_jitable(update.element), "view": view, "block_floats": block_floats}
    names |= {"carray": carray}
    return function(source, callees=update.sources + SOURCES, **names)


def _part(storage, index, name):
    start, size = "start", "stop - start"
    if name.endswith("_exponent"):
        start, size = f"start // {EXPONENT_BLOCK}", f"(stop - start + {EXPONENT_BLOCK - 1}) // {EXPONENT_BLOCK}"
    return f"{name} = view(flats[{index}].ctypes.data, {start}, {size}, {number_like(storage, name)})"


def _plain_body(update):
    storage = update.storage
    lines = [*_word(storage), _element_call(update, "{}[i]"), *_stores(update, "{}[i]")]
    return [*_first_place(storage, "start"), block("for i in range(stop - start):", *lines)]


def _block_body(update):
    """A loop over the elements of each block of shared exponents, which encodes with the exponents of the last step.

    Where an exponent has changed, which is seldom, the codes are made once more, from values that are in the cache.
    """
    storage = update.storage
    arrays = ["g", *(name for name in update.flats if not name.endswith("_exponent"))]
    parts = [f"{name}_part = view({name}.ctypes.data, first, count, {number_like(storage, name)})" for name in arrays]
    kept = [
        line
        for name in storage.blocked
        for line in (f"new_{name}[i] = {name}_", f"{name}_largest = max({name}_largest, {_size(name)})")
    ]
    return [
        *(f"new_{name} = carray(block_floats(), {EXPONENT_BLOCK})" for name in storage.blocked),
        block(
            f"for index in range((stop - start + {EXPONENT_BLOCK - 1}) // {EXPONENT_BLOCK}):",
            f"first = {EXPONENT_BLOCK} * index",
            f"count = min({EXPONENT_BLOCK}, stop - start - first)",
            *parts,
            *_first_place(storage, "start + first"),
            *(f"{name}_first = first_code({name}_exponent[index])" for name in storage.blocked),
            *(f"{name}_largest = uint32(0)" for name in storage.blocked),
            block(
                "for i in range(count):",
                *_word(storage),
                _element_call(update, "{}_part[i]"),
                *_stores(update, "{}_part[i]"),
                *kept,
            ),
            *(line for name in storage.blocked for line in _encoded_again(storage, name)),
        ),
    ]


def _encoded_again(storage, name):
    octaves = BLOCK_FORMATS[name].octaves
    codes = [f"{flat}_part[i] = {code}" for flat, code in storage.stores(name, f"new_{name}[i]")]
    return [
        f"exponent = shared_exponent({name}_largest, uint32({octaves}))",
        block(
            f"if exponent != {name}_exponent[index]:",
            f"{name}_exponent[index] = exponent",
            f"{name}_first = first_code(exponent)",
            *_first_place(storage, "start + first"),
            block("for i in range(count):", *_word(storage), *codes),
        ),
    ]


def _size(name):
    return BLOCK_FORMATS[name].size.format(value=f"{name}_")


def _first_place(storage, index):
    return [f"place = first_place(uint32({index}), seed)"] if storage.dithers else []


def _word(storage):
    # A counter of 32 bits takes a vector of half the size of what the index of the loop takes.
    return ["word = random_word(place)", "place = uint32(place + uint32(1))"] if storage.dithers else []


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
