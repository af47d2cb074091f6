"""The libraries that adapters plug into: each is there and new enough, or an error says what to install."""

import re
from importlib import import_module
from typing import Any

# As in the extras of pyproject.toml.
LEAST = {"torch": "2.7", "keras": "3.8", "thinc": "8.3"}
BELOW = {"thinc": "9"}  # later ones have schedules that are no generators


def require(host: str, adapter: str) -> Any:
    """The module `host`; raise ImportError unless it is installed, in a version that `adapter` works with."""
    needed, wanted = f"{adapter} needs {host} {LEAST[host]} or newer", f"{host}>={LEAST[host]}"
    if host in BELOW:
        needed, wanted = f"{needed}, and older than {BELOW[host]}", f"{wanted},<{BELOW[host]}"
    try:
        module = import_module(host)
    except ModuleNotFoundError as error:
        if error.name != host:
            raise
        extra = adapter.removeprefix("fastadam.")
        message = f"{needed}, which is not installed: pip install 'fastadam[{extra}]'"
        raise ImportError(message, name=host) from error
    found = getattr(module, "__version__", "one without a version")
    if not _numbers(LEAST[host]) <= _numbers(found) or (host in BELOW and _numbers(found) >= _numbers(BELOW[host])):
        raise ImportError(f"{needed}, got {found}: pip install '{wanted}'", name=host)
    return module


def _numbers(version):
    return tuple(map(int, re.findall(r"\d+", version)[:2]))
