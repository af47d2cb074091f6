"""What the documentation says is run: docstring examples and the README's Python."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import fastadam

ROOT = Path(__file__).parent.parent
# Those of Keras are run in tests/hosts, in a process in which Keras runs on torch.
PAGES = [
    page
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    if "```python" in page.read_text("utf-8") and page.name != "keras.md"
]


def modules(path, prefix):
    """The names of all modules that can be imported whatever backend Keras has."""
    for _, name, is_package in pkgutil.iter_modules(path, prefix):
        if name == "fastadam.keras" or re.search(r"\.(__main__|conftest|test_\w+)$", name):
            continue
        yield name
        if is_package:
            yield from modules(importlib.import_module(name).__path__, f"{name}.")


MODULES = list(modules(fastadam.__path__, "fastadam."))


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", fastadam.__all__)
def test_every_public_name_has_an_example_that_is_run(name):
    assert ">>>" in getattr(fastadam, name).__doc__


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of_a_page(page):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), namespace)


def test_versions_agree():
    assert importlib.import_module("importlib.metadata").version("fastadam") == fastadam.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {fastadam.__version__}" in changelog
