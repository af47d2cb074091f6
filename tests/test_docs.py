"""What the documentation says is run: docstring examples and the README's Python."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import fastadam

ROOT = Path(__file__).parent.parent
PAGES = [page for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) if "```python" in page.read_text("utf-8")]
MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(fastadam.__path__, "fastadam.")
    # tests/hosts, where Thinc is installed, runs the example of fastadam.thinc.
    if not re.search(r"\.(__main__|conftest|test_\w+)$|^fastadam\.thinc", name)
]


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
