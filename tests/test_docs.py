"""What the documentation says is run: docstring examples, and the Python of README and of each page of docs/."""

import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import typer

import fastadam
import fastadam.torch
from fastadam.commands import app
from fastadam.settings.options import Options

ROOT = Path(__file__).parent.parent
PAGES = {str(page.relative_to(ROOT)): page.read_text("utf-8") for page in (ROOT / "docs").rglob("*.md")}
AT_THE_ROOT = ("README.md", "CONTRIBUTING.md")
PAGES |= {page: (ROOT / page).read_text("utf-8") for page in AT_THE_ROOT}
# Python that is shown, and cells whose output is shown too.
BLOCK = re.compile(r"^```(?:python|\{code-cell\})\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
# Examples of hosts are run in tests/hosts, where the hosts are.
OF_HOSTS = {"fastadam.keras": "docs/keras.md", "fastadam.thinc": "docs/spacy.md"}


def modules(path, prefix):
    """The names of all modules that can be imported whatever hosts there are."""
    for _, name, is_package in pkgutil.iter_modules(path, prefix):
        if name in OF_HOSTS or re.search(r"\.(__main__|conftest|test_\w+)$", name):
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


@pytest.mark.parametrize(
    "page", [page for page, text in PAGES.items() if BLOCK.search(text) and page not in OF_HOSTS.values()]
)
def test_examples_of_a_page(page, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    namespace = {}
    for number, block in enumerate(BLOCK.findall(PAGES[page])):
        exec(compile(block, f"{page}, block {number}", "exec"), namespace)
    if "plt" in namespace:
        namespace["plt"].close("all")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    for target in LINK.findall(PAGES[page]):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_what_contributing_names_is_there():
    text = PAGES["CONTRIBUTING.md"]
    files = re.findall(r"`([\w./-]+/[\w./-]*|\w+\.(?:md|txt|cff))`", text)
    assert len(files) > 30
    for name in files:
        assert (ROOT / name).exists(), name
    targets = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"(?:^    |`)make ([a-z-]+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", targets, re.MULTILINE), f"make {target}"


def test_every_page_has_its_place_in_the_site():
    index = PAGES["docs/index.md"]
    listed = re.findall(
        r"^(\S+)$", "\n".join(re.findall(r"^```\{toctree\}\n(.*?)^```$", index, re.DOTALL | re.MULTILINE)), re.M
    )
    for page in PAGES.keys() - {*AT_THE_ROOT, "docs/index.md"}:
        assert any(fnmatch(page, f"docs/{entry}.md") for entry in listed), page


def test_readme_is_read_in_two_minutes():
    assert len(PAGES["README.md"].splitlines()) <= 120


def test_names_of_arguments_beside_those_of_other_libraries_exist():
    there = {*inspect.signature(fastadam.torch.AdamW).parameters, *inspect.signature(fastadam.Adam.step).parameters}
    for kind in (fastadam.Adam, fastadam.AdEMAMix):
        there |= {*inspect.signature(kind).parameters}
    there |= {field.name for field in dataclasses.fields(Options)} | {"shard"}
    rows = [line for line in PAGES["docs/coming-from.md"].splitlines() if line.startswith("| ")]
    ours = [name for row in rows for name in re.findall(r"\b(\w+)=", row.split(" | ")[1])]
    assert len(ours) > 40
    assert set(ours) <= there


def test_every_command_and_option_is_described():
    text = PAGES["docs/reference/command-line.md"]
    for command, found in typer.main.get_command(app).commands.items():
        assert f"## fastadam {command}" in text
        for option in found.params:
            if option.opts[0].startswith("--"):
                assert f"`{option.opts[0]}`" in text, (command, option.opts)


def test_every_environment_variable_is_described():
    sources = [path.read_text("utf-8") for part in ("fastadam", "kernels") for path in (ROOT / part).rglob("*.py")]
    named = {name for text in sources for name in re.findall(r"(?<![.\w])(?:FASTADAM|OMP|NUMBA)_[A-Z_]+\b", text)}
    assert named >= {"FASTADAM_PREFETCH", "OMP_NUM_THREADS"}
    for name in named:
        assert f"`{name}" in PAGES["docs/reference/environment.md"], name


def test_versions_agree():
    assert importlib.import_module("importlib.metadata").version("fastadam") == fastadam.__version__
    changelog, citation = ((ROOT / name).read_text("utf-8") for name in ("CHANGELOG.md", "CITATION.cff"))
    newest, date = re.search(r"^## (\S+) - (\S+)$", changelog, re.MULTILINE).groups()
    assert newest == fastadam.__version__
    assert f"\nversion: {newest}\n" in citation
    assert f'\ndate-released: "{date}"\n' in citation
