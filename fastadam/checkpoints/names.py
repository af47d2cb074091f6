"""The names of tensors in a checkpoint: no two parameters and no two arrays share one."""

import json
from collections.abc import Hashable
from urllib.parse import quote

from fastadam.kernels.texts.members import MEMBERS

# What a tensor of state ends with, after the name of its parameter.
_MOMENTS = {buffer.state for member in MEMBERS.values() for buffer in member.buffers.values()}
STATE_KEYS = frozenset({"ema", "remainder", *_MOMENTS, *(f"{key}_exponent" for key in _MOMENTS)})
PARAMETER = "param"


def encoded(name: Hashable, label: str = "path") -> str:
    """The name of a parameter as a string, another one for every name.

    An integer is its digits, a string is itself. Whatever could be taken for something else (the string "0", a string
    that ends with `.exp_avg`, a tuple) is `#` and its JSON, with every special character escaped as in a URL.
    """
    if type(name) is int:
        return str(name)
    if type(name) is str and not _is_ambiguous(name):
        return name
    return "#" + quote(json.dumps(_as_json(name, label)), safe="").replace(".", "%2E")


def tensor_name(name: str, key: str = PARAMETER) -> str:
    """The name of a tensor: that of the parameter, already encoded, and for its state a point and the key."""
    return name if key == PARAMETER else f"{name}.{key}"


def _is_ambiguous(name):
    return (
        not name
        or name.startswith("#")
        or name == "__metadata__"
        or name.lstrip("-").isdecimal()
        or name.rpartition(".")[2] in STATE_KEYS
        or not name.isprintable()
    )


def _as_json(name, label):
    if name is None or type(name) in (str, int, float, bool):
        return name
    if type(name) is tuple:
        return [_as_json(part, label) for part in name]
    raise TypeError(
        f"`{label}` takes parameters whose names are strings, numbers, None or tuples of these, got the name {name!r}"
    )
