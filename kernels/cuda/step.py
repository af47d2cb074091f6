"""The CUDA kernel of a step: the one body for every update, format and place.

A CUDA block steps one entry of the block table. A thread has four neighbouring elements at a time, so that a warp has
an exponent group, or a chunk, whose random words share a hash: where there are such words, lanes before the first
element of the entry have none. Where all flat arrays are aligned, a thread loads and stores its four in one access of
each. The text works on locals: every element is read and written once.
"""

from functools import cache

import cupy
import numpy as np

from fastadam.kernels import FIRST, GRADIENT
from fastadam.kernels.cuda.device_tables import ROW
from fastadam.kernels.cuda.source import (
    LAYOUT,
    THREADS,
    declarations,
    kernel_of,
    number_type,
    pointer,
    statements,
    step_name,
)
from fastadam.kernels.texts.casts import CHUNK, TURNED
from fastadam.kernels.texts.formats import EXPONENT_GROUP, FORMATS
from fastadam.kernels.texts.update import Update

assert CHUNK == EXPONENT_GROUP
# Elements that a CUDA block steps: without codes, with codes and fewer elements than MANY, with codes and more. On an
# H200, ps an element with 2,048 and with 4,096: float32 6.7 and 6.9, bfloat16 moments 4.8 and 4.9; 8-bit moments 4.7
# and 4.4 at 1e8 elements, 5.6 and 5.4 at 1e7, 7.2 and 9.8 at 1e6.
PLAIN, FEW_CODES, MANY_CODES, MANY = 2_048, 2_048, 4_096, 10_000_000

# Launched over no blocks at all, a kernel is only compiled.
_ENTRY = """
typedef {number} T;
const ptrdiff_t entry = 5 * (ptrdiff_t)blockIdx.x;
if (entry >= blocks.size()) return;
const ptrdiff_t begin = __ldg(&blocks[entry + {START}]);
const int skipped = {skipped};
const ptrdiff_t start = begin - skipped;
const int size = __ldg(&blocks[entry + {STOP}]) - start;
const ptrdiff_t parameter = __ldg(&blocks[entry + {PARAMETER}]);
const long long* row = &addresses[{ADDRESSES} * parameter];
const T* scalars = reinterpret_cast<const T*>(&rows[{ROW} * __ldg(&blocks[entry + {CLOCK}])]);
"""

_NOT_TAKEN = """
if (__ldg(&record[{TAKEN}]) == 0.0) {{
  #pragma unroll 1
  for (int k = skipped + threadIdx.x; k < size; k += {THREADS}) {{ {zeroed} }}
  return;
}}
"""


def elements_of(update: Update, total: int) -> int:
    """How many elements a CUDA block steps, in a launch that steps `total` of them."""
    if not update.storage.blocked:
        return PLAIN
    return MANY_CODES if total >= MANY else FEW_CODES


@cache
def step_kernel(update: Update, dtype: np.dtype, guarded: bool) -> cupy.ElementwiseKernel:
    """The step of the elements of each of `blocks`, which have the number of a row in the place of the clock.

    If `guarded`, where the step is not taken it only zeroes `g`.
    """
    skipped = f"begin % {CHUNK}" if _is_skipping(update) else "0"
    body = [_ENTRY.format(**LAYOUT, ROW=ROW, number=number_type(dtype), skipped=skipped), *_pointers(update)]
    if guarded:
        zeroed = "g" in update.written
        body += [_NOT_TAKEN.format(**LAYOUT, THREADS=THREADS, zeroed="g_at[k] = 0;" if zeroed else "")]
    body += [*_scalars(update), *_loop(update)]
    inputs = ["raw int64 addresses", "raw int64 gradients", "raw int64 blocks", "raw float64 rows"]
    inputs += ["raw float64 record"] if guarded else []
    return kernel_of(step_name(update, "step", guarded), inputs, [], "\n".join(body))


def _pointers(update):
    """Where the elements of the entry begin in each flat array."""
    lines = []
    for column, flat in enumerate(update.flats, GRADIENT + 1):
        offset = f"start / {EXPONENT_GROUP}" if _is_exponent(flat) else "start"
        lines += [pointer(_kind(update, flat), f"{flat}_at", f"__ldg(&row[{column}])", offset)]
    # The gradient comes last: Adam then takes 43 registers on sm_90, and 48 if it comes first.
    if "g" in update.buffers:
        first = f"__ldg(&blocks[entry + {FIRST}]) - skipped"
        lines += [pointer(_kind(update, "g"), "g_at", "__ldg(&gradients[parameter])", first)]
    aligned = " | ".join(f"misaligned({flat}_at)" for flat in _flats(update, update.buffers))
    return [*lines, f"const bool aligned = ({aligned}) == 0;"]


def _scalars(update):
    """The scalars of the clock, and the chunk of the first lane's random word."""
    lines = [
        f"const {'T' if name in update.scalars else 'uint32'} {name} = __ldg(&scalars[{index}]);"
        for index, name in enumerate(update.columns)
    ]
    if update.storage.dithers:
        place = f"__ldg(&row[{GRADIENT + 1 + len(update.flats)}])"
        lines += [f"const uint32 random_place = (uint32){place} + (uint32)(start / {CHUNK});"]
    return lines


def _loop(update):
    """Four elements of the thread after four."""
    each, storage = 4 * THREADS, update.storage
    # Where lanes of a warp share something all come round together: `first` is where their chunk begins.
    together = storage.blocked or storage.dithers
    first, place = ("4 * threadIdx.x", "first")
    if together:
        first, place = f"threadIdx.x / 32 * {CHUNK}", "first + 4 * (threadIdx.x % 32)"
    flats = _flats(update, update.buffers)
    read = _flats(update, [name for name in update.buffers if name != "copy"])
    written = _flats(update, update.written)
    return [
        "#pragma unroll 1",
        f"for (int first = {first}; first < size; first += {each}) {{",
        f"const int place = {place};",
        "const int count = size - place;",
        f"const bool whole = aligned && count >= 4{' && place >= skipped' if _is_skipping(update) else ''};",
        *(f"Four<{_kind(update, flat)}> {flat}_four;" for flat in flats),
        _both("load", read, update),
        *([] if storage.blocked else _chunk(update)),
        *_exponent_loads(update),
        "#pragma unroll",
        "for (int j = 0; j < 4; ++j) {",
        *_element(update),
        "}",
        *(_encode(update) if storage.blocked else []),
        _both("store", written, update),
        "}",
    ]


def _both(access, flats, update):
    """The accesses of four elements, as a whole where that is possible and else one by one."""
    least = ", skipped - place" if _is_skipping(update) else ""
    whole = " ".join(f"{access}_four({flat}_four, {flat}_at + place);" for flat in flats)
    single = " ".join(f"{access}_some({flat}_four, {flat}_at + place, count{least});" for flat in flats)
    return f"if (whole) {{ {whole} }} else {{ {single} }}"


def _element(update):
    """The text on element `j` of the four."""
    storage, lines = update.storage, []
    if any(FORMATS[storage[name]].word for name in update.written if name not in storage.blocked):
        lines += [*(_chunk(update) if storage.blocked else []), *_words(update)]
    for name in update.buffers:
        lines += ["T copy;" if name == "copy" else f"T {name} = {storage.load(name, '{}_four.of[j]')};"]
    lines += [declarations("T", [name for name in update.text.locals if name not in update.buffers])]
    lines += [statements(update.text)]
    for name in update.written:
        if name == "g":
            lines += ["g_four.of[j] = 0;"]
        elif name in storage.blocked:
            size = storage.codes(name).size.format(value=name)
            lines += [f"new_{name}[j] = {name};"]
            # Lanes behind the end of the entry have no element.
            lines += [f"if (j < count) {name}_largest = maximum({name}_largest, {size});"]
        else:
            lines += [f"{flat}_four.of[j] = {code};" for flat, code in storage.stores(name, name)]
    return lines


def _exponent_loads(update):
    """What the exponents of the warp's group add to its codes, and what the elements bring for the new ones."""
    lines = []
    for name in update.storage.blocked:
        lines += [f"uint32 {name}_first = first_code({name}_exponent_at[first / {EXPONENT_GROUP}]);"]
        lines += [f"uint32 {name}_largest = 0; T new_{name}[4];"]
    return lines


def _encode(update):
    """The new exponents of the warp's group, and with them the codes of the four elements."""
    storage, lines = update.storage, []
    for name in storage.blocked:
        octaves = storage.codes(name).octaves
        lines += [
            f"const uint8 {name}_exponent = shared_exponent(warp_maximum({name}_largest), (uint32){octaves});",
            f"{name}_first = first_code({name}_exponent);",
            f"if (threadIdx.x % 32 == 0) {name}_exponent_at[first / {EXPONENT_GROUP}] = {name}_exponent;",
        ]
    codes = [code for name in storage.blocked for code in storage.stores(name, f"new_{name}[j]")]
    lines += [*_chunk(update), "#pragma unroll", "for (int j = 0; j < 4; ++j) {", *_words(update)]
    return [*lines, *(f"{flat}_four.of[j] = {code};" for flat, code in codes), "}"]


def _chunk(update):
    """The hash that the random words of the warp share."""
    if not update.storage.dithers:
        return []
    return [
        f"const uint32 chunk_word = hashed(random_place + (uint32)first / {CHUNK}u);",
        "const uint32 index_spread = 4u * (threadIdx.x % 32) + first_spread(chunk_word);",
    ]


def _words(update):
    """The random words of element `j` of the four."""
    words = update.storage.words
    if not words:
        return []
    turned = [f"const uint32 {name} = word * {TURNED[name][0]}u + {TURNED[name][1]};" for name in words]
    return ["const uint32 word = chunk_word + spread(index_spread + (uint32)j);", *turned]


def _is_skipping(update):
    """Whether entries may begin inside of a chunk: with exponents none does."""
    return update.storage.dithers and not update.storage.blocked


def _flats(update, buffers):
    """Names of the flat arrays of these buffers that have something for each element."""
    return [flat for name in buffers for flat in update.storage.flats(name) if not _is_exponent(flat)]


def _is_exponent(flat):
    return flat.endswith("_exponent")


def _kind(update, flat):
    """The C type of what is in a flat array."""
    dtype = update.storage.dtype(flat)
    return "T" if dtype == "native" else dtype
