"""The CUDA kernels of a step: bodies that load an element, run the statements of the text on it, and store it.

CuPy binds arrays by reference. The update works on locals, so that an element is read and written once.
"""

from functools import cache

from fastadam.kernels.cuda.source import FIND, declared, kernel_of, statements
from fastadam.kernels.texts import fold
from fastadam.kernels.texts.formats import BLOCK_FORMATS, EXPONENT_BLOCK

# Threads for each block of shared exponents: a warp, of which each thread has several elements.
WARP = 32

# A thread for each element, number `k` of the flat arrays.
_ELEMENT = """
T g = {gradient};
{word}
{loads}
{locals}
{statements}
{stores}
"""

# Of a warp for each block of shared exponents, which begins with element `first` and ends before `stop`: the elements
# of a thread.
_EACH = """
for (int j = 0; j < {elements}; ++j) {{
  ptrdiff_t k = first + i % {warp} + {warp} * j;
  if (k < stop) {{
    {work}
  }}
}}
"""

_ROWS = """
ptrdiff_t row = {columns} * pieces[piece + 2];
{gradient}* gradients = reinterpret_cast<{gradient}*>(addresses[pieces[piece + 3]]) + pieces[piece + 4] - pieces[piece];
{taken}
{scalars}
{places}
{body}
"""

_FOLD = """
double *hyper = &all_hyper[{hyper} * row], *carried = &all_carried[{carried} * row];
T* table = &all_table[{columns} * row];
{taken}
{loads}
{locals}
{statements}
{stores}
"""


def threads_of(storage, sizes):
    """How many threads work on each of pieces of these sizes."""
    return -(-sizes // EXPONENT_BLOCK) * WARP if storage.blocked else sizes


@cache
def step_rows(update, guarded):
    """The pass over all rows: scalars from the table, gradients by address, and no store if the step is not taken."""
    scalars = [_scalar(update, name, f"table[row + {index}]") for index, name in enumerate(update.columns)]
    taken = "bool taken = record[1] != 0.0;" if guarded else ""
    if update.storage.blocked:
        places = f"ptrdiff_t first = pieces[piece] + inside / {WARP} * {EXPONENT_BLOCK}, stop = pieces[piece + 1];"
    else:
        places = "ptrdiff_t k = pieces[piece] + inside;"
    body = _ROWS.format(
        columns=fold.COLUMNS,
        gradient=_kind(update, "g"),
        scalars=" ".join(scalars),
        places=places,
        taken=taken,
        body=_body(update, guarded),
    )
    raw = ["raw int64 addresses", "raw int64 pieces", "int64 count", "raw T table"]
    inputs = [*raw, *(["raw float64 record"] if guarded else [])]
    return kernel_of(f"fastadam_{update.name}_rows", inputs, flat_parameters(update), FIND.format(width=6) + body)


@cache
def step_flat(update):
    """The pass over flat arrays with one gradient: scalars by value."""
    kinds = {name: _kind(update, name) for name in ("g", *update.flats)}
    # Where no array is of the dtype of the arithmetic, that is float32.
    number, lines = ("T", []) if "T" in kinds.values() else ("float32", ["typedef float T;"])
    lines += [_scalar(update, name, f"{name}_value") for name in update.columns]
    if update.storage.blocked:
        lines += [f"ptrdiff_t first = i / {WARP} * {EXPONENT_BLOCK}, stop = elements;"]
    else:
        lines += ["ptrdiff_t k = i;"]
    inputs = ["int64 elements", *(f"{number} {name}_value" for name in update.columns)]
    gradient, outputs = f"raw {kinds['g']} gradients", flat_parameters(update)
    if "g" in update.written:
        outputs = [gradient, *outputs]
    else:
        inputs = [*inputs, gradient]
    return kernel_of(f"fastadam_{update.name}", inputs, outputs, "\n".join([*lines, _body(update, guarded=False)]))


@cache
def fold_rows(update, guarded):
    """The fold of each of `rows`: the scalars of its row of the table, and what is carried on."""
    text = update.fold
    needed = {*text.arguments, *update.columns}
    loaded = [f"double {name} = hyper[{index}];" for index, name in enumerate(fold.HYPER) if name in needed]
    loaded += [f"double {name} = carried[{index}];" for index, name in enumerate(fold.CARRIED) if name in needed]
    loaded += ["double grad_scale = record[0];" if guarded else "double grad_scale = scale;"]
    stored = [f"carried[{index}] = {name};" for index, name in enumerate(fold.CARRIED) if name in text.assigned]
    stored += [f"table[{index}] = {name};" for index, name in enumerate(update.columns)]
    body = _FOLD.format(
        hyper=len(fold.HYPER),
        carried=len(fold.CARRIED),
        columns=fold.COLUMNS,
        taken="if (record[1] == 0.0) continue;" if guarded else "",
        loads=" ".join(loaded),
        locals=declared("double", text.locals),
        statements=statements(text),
        stores=" ".join(stored),
    )
    inputs = ["int64 row", "raw float64 record" if guarded else "float64 scale"]
    outputs = ["raw float64 all_hyper", "raw float64 all_carried", "raw T all_table"]
    return kernel_of(f"fastadam_{update.name}_fold", inputs, outputs, body)


def loads(update):
    """The values of element `k` of all buffers but the gradients, as locals."""
    values = [(name, update.storage.load(name, "{}_flat[k]")) for name in update.buffers if name != "g"]
    return " ".join(f"T {name} = {value};" for name, value in values)


def stores(update):
    """What is written of element `k`, but for gradients and codes of shared exponents."""
    written = [name for name in update.written if name != "g" and name not in update.storage.blocked]
    return " ".join(f"{flat}_flat[k] = {code};" for name in written for flat, code in update.storage.stores(name, name))


def flat_parameters(update):
    """CuPy's descriptions of the flat arrays."""
    return [f"raw {_kind(update, name)} {name}_flat" for name in update.flats]


def _body(update, guarded):
    """The work of a thread; if `guarded`, without any store but of zeros as gradients unless the step is taken."""
    # Not g: where the step is not taken, the table has the scalars of an earlier one.
    zeroed = "gradients[k] = 0;" if "g" in update.written else ""
    guard = "if (taken) {{ {} }}" if guarded else "{}"
    if not update.storage.blocked:
        return f"{_element(update, guard.format(stores(update)))} {zeroed}"
    of_block = guard.format(_block(update))
    return of_block + (_EACH.format(elements=EXPONENT_BLOCK // WARP, warp=WARP, work=zeroed) if zeroed else "")


def _element(update, stored):
    return _ELEMENT.format(
        gradient=update.storage.load("g", "gradients[k]"),
        word=_word(update),
        loads=loads(update),
        locals=declared("T", [name for name in update.text.locals if name != "g"]),
        statements=statements(update.text),
        stores=stored,
    )


def _block(update):
    storage, elements = update.storage, EXPONENT_BLOCK // WARP
    lines, kept, codes = [], [], [_word(update)]
    for name in storage.blocked:
        exponent = f"{name}_exponent_flat[first / {EXPONENT_BLOCK}]"
        lines += [
            f"uint32 {name}_first = first_code({exponent}), {name}_largest = 0;",
            f"T new_{name}[{elements}];",
        ]
        size = BLOCK_FORMATS[name].size.format(value=name)
        kept += [f"new_{name}[j] = {name}; {name}_largest = maximum({name}_largest, {size});"]
        codes += [f"{flat}_flat[k] = {code};" for flat, code in storage.stores(name, f"new_{name}[j]")]
    work = "\n".join([_element(update, stores(update)), *kept])
    lines += [_EACH.format(elements=elements, warp=WARP, work=work)]
    for name in storage.blocked:
        octaves = BLOCK_FORMATS[name].octaves
        lines += [
            f"uint8 {name}_exponent = shared_exponent(warp_maximum({name}_largest), (uint32){octaves});",
            f"{name}_first = first_code({name}_exponent);",
            f"if (i % {WARP} == 0) {name}_exponent_flat[first / {EXPONENT_BLOCK}] = {name}_exponent;",
        ]
    lines += [_EACH.format(elements=elements, warp=WARP, work="\n".join(codes))]
    return "\n".join(lines)


def _word(update):
    return "uint32 word = random_word(first_place((uint32)k, seed));" if update.storage.dithers else ""


def _scalar(update, name, value):
    return f"T {name} = {value};" if name in update.scalars else f"uint32 {name} = {value};"


def _kind(update, flat):
    dtype = update.storage.dtype(flat)
    return "T" if dtype == "native" else dtype
