"""Keras, if it is there and runs on torch; else an error that says what to do."""

import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

OLDEST = {"keras": (3, 8), "torch": (2, 7)}
_INSTALL = "pip install 'fastadam[keras]'"
_CHOOSE = (
    "set the environment variable KERAS_BACKEND=torch before Keras is imported, or stay with keras.optimizers, whose "
    "steps the other backends compile themselves"
)


def checked_keras() -> Any:
    """The module keras; raise ImportError unless it and torch are new enough, and it runs on torch."""
    for package, oldest in OLDEST.items():
        _check_version(package, oldest)
    try:
        keras = import_module("keras")
    except ImportError as error:
        raise ImportError(f"fastadam.keras needs Keras on torch, got a Keras that says {error}: {_CHOOSE}") from error
    backend = keras.backend.backend()
    if backend != "torch":
        raise ImportError(
            f"fastadam.keras needs Keras on torch, got Keras on {backend}: a step writes variables where they lie in "
            f"memory, and only those of torch can be written; {_CHOOSE}"
        )
    return keras


def _check_version(package, oldest):
    needed = f"fastadam.keras needs {package} {'.'.join(map(str, oldest))} or newer"
    try:
        found = version(package) if find_spec(package) else None
    except PackageNotFoundError:
        return  # a build of one's own
    if found is None:
        raise ImportError(f"{needed}, got none: {_INSTALL}")
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < oldest:
        raise ImportError(f"{needed}, got {found}: {_INSTALL}")


keras = checked_keras()
