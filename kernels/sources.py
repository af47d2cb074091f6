"""The sources of the kernels, of which they are compiled: also where only their bytecode is installed.

A wheel has them twice, as its modules and in the module `packed_sources`, which `setup.py` writes. That one stays where
*.py files are removed, and goes along into a frozen program.
"""

import inspect
from collections.abc import Callable
from pathlib import Path


def source_of(function: Callable) -> str:
    """The text of `function`, beginning with its `def`."""
    try:
        return inspect.getsource(function)
    except OSError:
        lines = _packed()[function.__module__].splitlines(keepends=True)
        return "".join(inspect.getblock(lines[function.__code__.co_firstlineno - 1 :]))


def all_sources() -> bytes:
    """The texts of all modules, one after the other."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return b"".join(path.read_bytes() for path in files) or "".join(_packed().values()).encode()


def _packed():
    try:
        from fastadam.packed_sources import SOURCES  # type: ignore[import-not-found]
    except ImportError as error:
        raise ImportError(
            "the sources of fastadam's kernels are not installed: build a wheel, `pip install .`, before sources are "
            "removed or a program is frozen"
        ) from error
    return SOURCES
