"""Keras, if it is there and runs on torch; else an error that says what to do."""

import os
from typing import Any

from fastadam.hosts import LEAST, require

_NEEDED = f"fastadam.keras needs Keras {LEAST['keras']} or newer on torch"
_CHOOSE = (
    "set the environment variable KERAS_BACKEND=torch before Keras is imported, or stay with keras.optimizers, whose "
    "steps the other backends compile themselves"
)


def checked_keras() -> Any:
    """The module keras; raise ImportError unless it and torch are new enough, and it runs on torch."""
    require("torch", "fastadam.keras")
    try:
        keras = require("keras", "fastadam.keras")
    except ImportError as error:
        if error.name == "keras":
            raise
        chosen = os.environ.get("KERAS_BACKEND", "the backend of its config file")
        raise ImportError(f"{_NEEDED}, got Keras on {chosen}, which says {error}: {_CHOOSE}") from error
    backend = keras.backend.backend()
    if backend != "torch":
        raise ImportError(
            f"{_NEEDED}, got Keras on {backend}: a step writes variables where they lie in "
            f"memory, and only those of torch can be written; {_CHOOSE}"
        )
    return keras


keras = checked_keras()
