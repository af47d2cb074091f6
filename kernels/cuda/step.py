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
WARP = 32
# Elements of a CUDA block in one round of its loop.
ROUND = 4 * THREADS
# Elements that a CUDA block steps: without codes, with codes and fewer elements than MANY, with codes and more. On an
# H200, ps an element with 2,048 and with 4,096: float32 6.7 and 6.9, bfloat16 moments 4.8 and 4.9; 8-bit moments 4.7
# and 4.4 at 1e8 elements, 5.6 and 5.4 at 1e7, 7.2 and 9.8 at 1e6.
PLAIN, FEW_CODES, MANY_CODES, MANY = 2_048, 2_048, 4_096, 10_000_000
# A lane has what the lanes of its warp share in one round; the first may begin inside of a chunk.
assert max(PLAIN, MANY_CODES) + CHUNK <= WARP * ROUND

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
    # How many places from `skipped` on have four elements that can be accessed at once: one comparison tells.
    whole_places = f"({aligned}) == 0 && size >= skipped + 4 ? size - skipped - 3 : 0"
    return [*lines, f"const uint32 whole_places = {whole_places};"]


def _scalars(update):
    """The scalars of the clock; and each lane has what the random words of its warp share, in one round of the loop."""
    lines = [
        f"const {'T' if name in update.scalars else 'uint32'} {name} = __ldg(&scalars[{index}]);"
        for index, name in enumerate(update.columns)
    ]
    if update.storage.dithers:
        place = f"__ldg(&row[{GRADIENT + 1 + len(update.flats)}])"
        lane = f"threadIdx.x / {WARP} + {ROUND // CHUNK}u * (threadIdx.x % {WARP})"
        lines += [
            f"const uint32 lane_chunk = hashed((uint32){place} + (uint32)(start / {CHUNK}) + {lane});",
            "const uint32 lane_spread = first_spread(lane_chunk);",
        ]
    return lines


def _loop(update):
    """Four elements of the thread after four."""
    storage = update.storage
    # Where lanes of a warp share something all come round together: `first` is where their chunk begins.
    together = storage.blocked or storage.dithers
    first, place = ("4 * threadIdx.x", "first")
    if together:
        first, place = f"threadIdx.x / {WARP} * {CHUNK}", f"first + 4 * (threadIdx.x % {WARP})"
    flats = _flats(update, update.buffers)
    read = _flats(update, [name for name in update.buffers if name != "copy"])
    written = _flats(update, update.written)
    return [
        "#pragma unroll 1",
        f"for (int first = {first}; first < size; first += {ROUND}) {{",
        f"const int place = {place};",
        "const int count = size - place;",
        "const bool whole = (uint32)(place - skipped) < whole_places;",
        *(f"Four<{_kind(update, flat)}> {flat}_four;" for flat in flats),
        _both("load", read, update),
        *(_chunk(update) if _is_rounded_at_once(update) else []),
        *_exponent_loads(update),
        "#pragma unroll",
        "for (int j = 0; j < 4; ++j) {",
        *_element(update),
        "}",
        *(_encode(update) if storage.blocked else []),
        *(f"{flat}_four.pin();" for flat in written),
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
    if _is_rounded_at_once(update):
        lines += _words(update)
    for name in update.buffers:
        lines += ["T copy;" if name == "copy" else f"T {name} = {storage.load(name, '{}_four.get(j)')};"]
    lines += [declarations("T", [name for name in update.text.locals if name not in update.buffers])]
    lines += [statements(update.text)]
    for name in update.written:
        if name == "g":
            lines += ["g_four.put(j, 0);"]
        elif name in storage.blocked:
            lines += [f"new_{name}[j] = {name};"]
        else:
            lines += [f"{flat}_four.put(j, {code});" for flat, code in storage.stores(name, name)]
    return lines


def _exponent_loads(update):
    """What the exponents of the warp's group add to its codes, and what the elements bring for the new ones."""
    lines = []
    for name in update.storage.blocked:
        lines += [f"uint32 {name}_first = first_code({name}_exponent_at[(uint32)first / {EXPONENT_GROUP}]);"]
        lines += [f"T new_{name}[4];"]
    return lines


def _largest(update):
    """The largest of the thread's elements. Behind the end of the entry there are none."""
    storage, lines = update.storage, []
    for name in storage.blocked:
        sizes = [storage.codes(name).size.format(value=f"new_{name}[{j}]") for j in range(4)]
        lines += [f"uint32 {name}_largest = maximum(maximum({sizes[0]}, {sizes[1]}), maximum({sizes[2]}, {sizes[3]}));"]
    lines += ["if (count < 4) {"]
    for name in storage.blocked:
        size = storage.codes(name).size.format(value=f"new_{name}[j]")
        lines += [f"{name}_largest = 0;", "#pragma unroll", "for (int j = 0; j < 3; ++j)"]
        lines += [f"if (j < count) {name}_largest = maximum({name}_largest, {size});"]
    return [*lines, "}"]


def _encode(update):
    """The new exponents of the warp's group, and with them the codes of the four elements."""
    storage, lines = update.storage, _largest(update)
    for name in storage.blocked:
        octaves = storage.codes(name).octaves
        lines += [
            f"const uint8 {name}_exponent = shared_exponent(warp_maximum({name}_largest), (uint32){octaves});",
            f"{name}_first = first_code({name}_exponent);",
            f"if (threadIdx.x % {WARP} == 0) {name}_exponent_at[(uint32)first / {EXPONENT_GROUP}] = {name}_exponent;",
        ]
    codes = [code for name in storage.blocked for code in storage.stores(name, f"new_{name}[j]")]
    lines += [
        *([] if _is_rounded_at_once(update) else _chunk(update)),
        "#pragma unroll",
        "for (int j = 0; j < 4; ++j) {",
        *_words(update),
    ]
    return [*lines, *(f"{flat}_four.put(j, {code});" for flat, code in codes), "}"]


def _chunk(update):
    """The hash that the random words of the warp share, and what the words of the four begin with."""
    words = update.storage.words
    if not words:
        return []
    return [
        f"const uint32 chunk_word = of_lane(lane_chunk, (uint32)first / {ROUND});",
        f"const uint32 spread_place = 4u * (threadIdx.x % {WARP}) + of_lane(lane_spread, (uint32)first / {ROUND});",
        "const uint32 first_quadratic = quadratic(spread_place), slope = 60u * spread_place + 1u;",
        *(f"const uint32 first_{name} = chunk_word * {TURNED[name][0]}u + {TURNED[name][1]};" for name in words),
    ]


def _words(update):
    """The random words of element `j` of the four: `spread` of its place, and what the four share."""
    words = update.storage.words
    if not words:
        return []
    turned = [f"const uint32 {name} = spread_of_j * {TURNED[name][0]}u + first_{name};" for name in words]
    return ["const uint32 spread_of_j = spread_at(first_quadratic + j * slope + 30u * j * j);", *turned]


def _is_rounded_at_once(update):
    """Whether something is rounded stochastically before codes are."""
    storage = update.storage
    return any(FORMATS[storage[name]].word for name in update.written if name not in storage.blocked)


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
