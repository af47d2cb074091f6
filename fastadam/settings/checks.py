"""Checks of arguments other than arrays. Each returns a plain Python value, or raises and names the argument."""

import math
import operator
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import numpy as np

# What other libraries call settings.
ALIASES = {
    "learning_rate": "lr",
    "lr_scale": "lr",
    "lr_mult": "lr",
    "wd": "weight_decay",
    "l2": "weight_decay",
    "decay": "weight_decay",
    "momentum": "betas",
    "b1": "betas",
    "b2": "betas",
    "beta1": "betas",
    "beta2": "betas",
    "beta_1": "betas",
    "beta_2": "betas",
    "epsilon": "eps",
    "ascent": "maximize",
    "clipnorm": "max_grad_norm_per_param",
    "grad_clip": "max_grad_norm_per_param",
    "global_clipnorm": "max_grad_norm",
    "clip_norm": "max_grad_norm",
    "max_norm": "max_grad_norm",
    "clipvalue": "clip_value",
}


def real(value: Any, label: str) -> float:
    """`value` as a float; raise unless it is one finite real number."""
    no_number = isinstance(value, (str, bytes)) or np.iscomplexobj(value)
    row = isinstance(value, np.ndarray) and value.ndim > 0  # NumPy before 2.4 makes a float of a row of one
    if no_number or row or not hasattr(value, "__float__"):
        raise TypeError(f"`{label}` must be a real number, got {value!r}")
    try:
        number = float(value)
    except OverflowError as error:
        raise ValueError(f"`{label}` must be finite, got a number that is too large for a float") from error
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{label}` must be a real number, got {value!r}") from error
    if not math.isfinite(number):
        raise ValueError(f"`{label}` must be finite, got {number}")
    return number


def integer(value: Any, label: str, *, least: int) -> int:
    """`value` as an int; raise unless it is an integer >= `least`."""
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"`{label}` must be an integer, got {value!r}") from error
    if number < least:
        raise ValueError(f"`{label}` must be >= {least}, got {number}")
    return number


def nonnegative(value: Any, label: str) -> float:
    """`value` as a float; raise unless it is a finite real number >= 0."""
    if type(value) is float and 0.0 <= value < math.inf:
        return value
    number = real(value, label)
    if number < 0.0:
        raise ValueError(f"`{label}` must be >= 0, got {number}")
    return number


def fraction(value: Any, label: str) -> float:
    """`value` as a float; raise unless it is in [0, 1)."""
    number = nonnegative(value, label)
    if number >= 1.0:
        raise ValueError(f"`{label}` must be in [0, 1), got {number}")
    return number


def flag(value: Any, label: str) -> bool:
    """`value` as a bool; raise for anything that only counts as true or false."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{label}` must be True or False, got {value!r}")
    return bool(value)


def one_of(value: Any, label: str, choices: tuple[str, ...]) -> str:
    """`value`; raise unless it is one of `choices`."""
    if not isinstance(value, str):
        raise TypeError(f"`{label}` must be one of {', '.join(map(repr, choices))}, got {value!r}")
    if value not in choices:
        raise ValueError(f"`{label}` must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def positive(value: Any, label: str) -> float:
    """`value` as a float; raise unless it is a finite real number > 0."""
    number = real(value, label)
    if number <= 0.0:
        raise ValueError(f"`{label}` must be > 0, got {number}")
    return number


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of the `known` names that `name` resembles, in small letters or capitals; None if there is none."""
    lowered = {each.lower(): each for each in known}
    found = get_close_matches(name.lower(), lowered, 1, 0.75)
    return lowered[found[0]] if found else None


def unexpected(function: str, name: str, known: Iterable[str], meant: str | None = None) -> TypeError:
    """The error for a keyword argument that a function lacks.

    It suggests `meant`, or what the argument of that name in another library is called here, or the nearest of the
    `known` names.
    """
    known = set(known)
    alias = ALIASES.get(name.lower())
    found = meant or (alias if alias in known else nearest(name, known))
    question = f". Did you mean {found!r}?" if found else ""
    return TypeError(f"{function}() got an unexpected keyword argument {name!r}{question}")
