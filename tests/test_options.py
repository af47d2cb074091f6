"""The keyword arguments that all classes share: declared once for the checks, once for editors and type checkers."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_type_hints

import numpy as np
import pytest

import fastadam
from fastadam.kernels.texts.members import MEMBERS
from fastadam.settings.options import OPTION_NAMES, OptionKeywords, Options

CLASSES = [getattr(fastadam, name) for name in ("Adam", "AdamW", "NAdam", "Adamax", "RAdam", "Lion", "AdEMAMix")]


def test_keywords_are_the_options_and_how_parameters_are_held():
    options = {name: hint for name, hint in get_type_hints(Options).items() if name != "member"}
    held = {
        "flat": bool,
        "shard": Any,
        "bucket_bytes": int | None,
        "memory": Callable[[str, int, np.dtype], Any] | None,
    }
    assert get_type_hints(OptionKeywords) == {**held, **options}
    assert options.keys() == OPTION_NAMES == {field.name for field in fields(Options)} - {"member"}
    assert not OptionKeywords.__required_keys__


@pytest.mark.parametrize("kind", CLASSES)
def test_defaults_are_those_of_the_member(kind):
    parameters = inspect.signature(kind.__init__).parameters
    member = MEMBERS["adam" if kind is fastadam.AdamW else kind.__name__.lower()]
    assert (parameters["lr"].default, parameters["betas"].default) == (member.lr, member.betas)
    defaults = {name: parameters[name].default for name in member.hyper}
    assert all(default in (None, member.hyper[name].default) for name, default in defaults.items())
    assert ("eps" in parameters) == member.has_eps


@pytest.mark.parametrize("name", OptionKeywords.__annotations__)
def test_keywords_are_described(name):
    assert f"\n    {name}: " in inspect.getdoc(fastadam.Adam)
