"""One parameter in a state dictionary: which keys its entry has, and how an entry is checked before it is loaded."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fastadam.kernels.texts.casts import WORDS
from fastadam.kernels.texts.member import Member
from fastadam.memory.arrays import as_array, as_bits, saved_dtype_name
from fastadam.memory.conversion import check_codes, converted, saved_layout
from fastadam.memory.parameters import Parameter
from fastadam.settings.checks import integer, real
from fastadam.settings.options import Options

# In the place of an entry: of a parameter that begins afresh.
NEVER_STEPPED: Any = object()
PARAMETER = "param"
_NUMBERS = ("step", "skipped", "words", "words_seed", "seed", "layout")


class Loading(NamedTuple):
    """How a state is loaded.

    Attributes:
        label: What error messages call the state.
        convert: Whether values in other formats are rounded to those that are here.
        strict: Whether there must be all that is needed; else what is missing begins afresh.
        params: Whether entries have the parameters themselves.
        ready: Called when all has been checked, before anything is written.
    """

    label: str = "state_dict"
    convert: bool = False
    strict: bool = True
    params: bool = False
    ready: Callable[[], None] = lambda: None


class Saved(NamedTuple):
    """The state of one parameter, after all checks.

    Attributes:
        carried: The numbers that its clock carries from step to step.
        asked: How many steps have been asked of its group; None for one that begins afresh.
        seed: Seed of the stochastic rounding; None if nothing is rounded stochastically.
        arrays: Flat array -> the values for it, 16-bit floats as their bits: in the shape of the parameter, exponents
            1-D, or 0.
        conversions: Buffer that comes in another format -> makes its `arrays`, as it has done once.
        taken: The keys of its entry that were taken.
        afresh: The keys of what begins afresh.
        left_out: The keys of its entry that were not taken.
    """

    carried: tuple[float, ...]
    asked: int | None
    seed: int | None
    arrays: dict[str, Any]
    conversions: dict[str, Callable[[], dict[str, Any]]]
    taken: tuple[str, ...]
    afresh: tuple[str, ...]
    left_out: tuple[str, ...]


def saved_buffers(options: Options, settings: Mapping[str, Any]) -> dict[str, str]:
    """State key -> buffer, for the moments and the average in the state of a parameter."""
    optional = {"v_max": settings.get("amsgrad", False)}
    kept = options.family_member.buffers
    names = {buffer.state: name for name, buffer in kept.items() if optional.get(name, True)}
    return {**names, "ema": "ema"} if options.ema_decay is not None else names


def saved_arrays(parameter: Parameter, options: Options, settings: Mapping[str, Any]) -> dict[str, str]:
    """State key -> flat array, for every array in the state of a parameter."""
    formats, names = parameter.formats, {}
    for key, buffer in saved_buffers(options, settings).items():
        code, *exponent = formats.flats(buffer)
        names[key] = code
        names.update({f"{key}_exponent": flat for flat in exponent})
    if "remainder" in formats.flats("p"):
        names["remainder"] = "remainder"
    return names


def checked_entry(
    entry: Any, parameter: Parameter, options: Options, settings: Mapping[str, Any], how: Loading
) -> Saved:
    """Check `entry` and return the state of the parameter. `settings` are those of the group after loading.

    Raises:
        TypeError, ValueError: the entry does not fit the parameter. Nothing has been written or allocated then.
    """
    label, member = f"{how.label}['state'][{parameter.name!r}]", options.family_member
    buffers, flats = saved_buffers(options, settings), saved_arrays(parameter, options, settings)
    if entry is NEVER_STEPPED:
        return _afresh(options, flats, ())
    if not isinstance(entry, Mapping):
        raise TypeError(f"`{label}` must be a dict, got {entry!r}")
    if not how.strict and not _can_go_on(entry, buffers, parameter, member):
        return _afresh(options, flats, tuple(key for key in entry if key not in _NUMBERS))
    if how.params:
        buffers, flats = {PARAMETER: "p", **buffers}, {PARAMETER: "p", **flats}
    missing = () if how.strict else tuple(key for key in _optional(buffers, flats) if key not in entry)
    buffers = {key: buffer for key, buffer in buffers.items() if key not in missing}
    if not how.convert:
        _check_no_other_format(entry, label, flats)
    needed = ["step", *(buffers if how.convert else (flat for flat in flats if flat not in missing))]
    if not set(needed) <= entry.keys():
        raise ValueError(f"`{label}` must have the keys {', '.join(map(repr, needed))}, got {list(entry)}")
    carried, asked = _counts(entry, label, member)
    arrays = {flats[key]: 0 for key in missing if key != PARAMETER}
    conversions = _conversions(entry, label, parameter, buffers, member) if how.convert else {}
    if how.convert and "remainder" in flats and "remainder" not in entry and "p" not in conversions:
        arrays["remainder"] = 0
    done = {*arrays, *(flat for buffer in conversions for flat in parameter.formats.flats(buffer))}
    for key, flat in flats.items():
        if flat not in done and key not in missing:
            arrays[flat] = _as_stored(entry, key, label, parameter, flat)
    known = {*_NUMBERS, *flats, *(number.state for number in member.carried.values())}
    taken, left_out = (tuple(key for key in entry if (key in flats) == kept) for kept in (True, False))
    left_out = tuple(key for key in left_out if key not in known)
    seed = _seed(entry, label, parameter, how.convert)
    return Saved(carried, asked, seed, arrays, conversions, taken, missing, left_out)


def _afresh(options, flats, left_out):
    """The state of a parameter that has taken no step; the parameter itself stays as it is."""
    return Saved(options.first_carried, None, None, dict.fromkeys(flats.values(), 0), {}, (), tuple(flats), left_out)


def _can_go_on(entry, buffers, parameter, member):
    """Whether `entry` has the count of steps and the moments of a parameter of this shape."""
    optional = _optional(buffers, ())
    needed = {"step", *(number.state for number in member.carried.values()), *(buffers.keys() - set(optional))}
    shapes = [getattr(entry[key], "shape", parameter.shape) for key in (PARAMETER, *buffers) if key in entry]
    return needed <= entry.keys() and all(tuple(shape) == parameter.shape for shape in shapes)


def _optional(buffers, flats):
    """The keys of what can begin afresh while the moments go on."""
    return [key for key, buffer in buffers.items() if buffer in ("v_max", "ema", "p")] + ["remainder"] * (
        "remainder" in flats
    )


def _conversions(entry, label, parameter, buffers, member):
    """Buffer -> what converts it, for all that `entry` has in another format; each is tried."""
    found = {}
    for key, buffer in buffers.items():
        if not _is_stored_alike(entry, key, label, parameter, buffer):
            # Its result is made again when it is written, so that no two parameters are in memory twice.
            found[buffer] = partial(converted, entry, key, label, parameter, buffer, member)
            found[buffer]()
    return found


def _check_no_other_format(entry, label, expected):
    """Raise if `entry` has exponents or a remainder that this optimizer does not store: they would be lost."""
    others = [key for key in entry if (key == "remainder" or key.endswith("_exponent")) and key not in expected]
    if others:
        raise TypeError(
            f"`{label}` must be stored as in this optimizer, got {', '.join(map(repr, others))} too: nothing is "
            "dropped or cast without `convert=True`"
        )


def _is_stored_alike(entry, key, label, parameter, buffer):
    """Whether a buffer in `entry` has the format that it has in this optimizer."""
    stored = as_array(entry[key], f"{label}['{key}']")
    has_codes, codes = f"{key}_exponent" in entry, buffer in parameter.formats.blocked
    alike = saved_dtype_name(stored) == _name(_dtype(parameter, buffer), parameter) and has_codes == codes
    return alike and (not codes or saved_layout(entry, label, parameter.shape) == parameter.layout)


def _as_stored(entry, key, label, parameter, flat):
    """The bits of `entry[key]`, which must be stored as this optimizer stores it."""
    dtype, value = _dtype(parameter, flat), as_array(entry[key], f"{label}['{key}']")
    name = saved_dtype_name(value)
    if value.dtype != dtype and not (value.dtype.isnative and name == _name(dtype, parameter)):
        raise TypeError(
            f"`{label}['{key}']` must be {dtype} as in this optimizer, got "
            f"{name if name == 'bfloat16' else value.dtype}: nothing is cast without `convert=True`"
        )
    if key.endswith("_exponent"):
        codes = key.removesuffix("_exponent")
        check_codes(as_array(entry[codes], f"{label}['{codes}']"), value, codes, label)
        if saved_layout(entry, label, parameter.shape) != parameter.layout:
            raise ValueError(
                f"`{label}['layout']` must be that of the parameter in this optimizer, "
                f"{list(parameter.layout.axes)}: codes of another order are taken with `convert=True`"
            )
    elif value.shape != parameter.shape:
        raise ValueError(f"`{label}['{key}']` must have shape {parameter.shape} like its parameter, got {value.shape}")
    return as_bits(value)


def _dtype(parameter, flat):
    """The dtype of a flat array of the parameter, which may be the user's own."""
    return parameter.flat("p").dtype if flat == "p" else parameter.buffers.dtype(flat)


def _name(dtype, parameter):
    """The name that `dtype_name` gives this dtype on the parameter's device."""
    on_host = isinstance(parameter.flat("p"), np.ndarray)
    return "bfloat16" if dtype == np.uint16 and not on_host else dtype.name


def _counts(entry: Mapping[str, Any], label: str, member: Member) -> tuple[tuple[float, ...], int]:
    """The numbers that the clock of a parameter carries, and how many steps were asked of its group."""
    step = integer(entry["step"], f"{label}['step']", least=0)
    skipped = integer(entry.get("skipped", 0), f"{label}['skipped']", least=0)
    carried = [float(step)]
    for number in member.carried.values():
        if number.state not in entry:
            raise ValueError(f"`{label}` must have the key {number.state!r} for this optimizer, got {list(entry)}")
        carried.append(real(np.asarray(entry[number.state])[()], f"{label}['{number.state}']"))
    return tuple(carried), step + skipped


def _seed(entry, label, parameter, convert):
    """The seed of the parameter's stochastic rounding; None if there is no seed to take over."""
    if not parameter.formats.dithers or (convert and entry.get("words") != WORDS):
        return None
    if entry.get("words") != WORDS:
        found = f"has {entry['words']!r}" if "words" in entry else "was not rounded stochastically"
        if "seed" in entry:
            found = "was made by fastadam 0.1, whose random numbers depended on how parameters were packed"
        raise ValueError(
            f"`{label}['words']` must be {WORDS!r}, by which this optimizer rounds stochastically, but this state "
            f"{found}: `load_state_dict(..., convert=True)` takes it and goes on with other random numbers"
        )
    return integer(entry.get("words_seed"), f"{label}['words_seed']", least=0)
