"""Whose line a warning points at."""

import inspect


def levels_to_caller() -> int:
    """`stacklevel` with which a warning raised by the caller of this names the first line outside of the package."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "fastadam":
        frame, level = frame.f_back, level + 1
    return level
