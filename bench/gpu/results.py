"""The file of a GPU day: JSON, whole after every figure, so that a day that is cut off keeps what it has."""

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Results:
    """A part of the file: name -> what was found."""

    def __init__(self, path: Path, part: str):
        self._path, self._part = path, part

    @property
    def folder(self) -> Path:
        """Where the file is."""
        return self._path.parent

    def put(self, name: str, value: Any) -> None:
        """Write a figure, or a dict of them."""
        everything = read(self._path)
        everything.setdefault(self._part, {})[name] = value
        beside = self._path.with_suffix(".new")
        beside.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, self._path)
        print(f"{self._part}: {name}: {json.dumps(value)}", flush=True)

    def attempt(self, name: str, function: Callable, *arguments: Any) -> None:
        """Write what `function` gives, or the error that it raises, with which the day goes on."""
        try:
            value = function(*arguments)
        except Exception:
            traceback.print_exc()
            value = {"error": traceback.format_exc(limit=-3)[-1_500:]}
        self.put(name, value)


def read(path: Path) -> dict[str, Any]:
    """What is in the file, {} before there is one."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
