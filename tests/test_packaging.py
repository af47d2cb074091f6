"""The wheel, its metadata, what is left of it without sources, and the types of the package as a user has it."""

import compileall
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import fastadam
from fastadam import kernels
from fastadam.kernels.cpu import jit

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A wheel built from a copy of the sources."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("fastadam", "kernels", "bench"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    output = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=True)
    return zipfile.ZipFile(source / output.stdout.split()[-1])


@pytest.fixture(scope="module")
def wheel(archive):
    """The names of its files."""
    return archive.namelist()


def test_every_file_of_the_wheel_lies_under_fastadam(wheel):
    folders = {name.split("/")[0] for name in wheel}
    assert folders == {"fastadam", f"fastadam-{fastadam.__version__}.dist-info"}


def test_the_wheel_holds_every_module_and_the_type_marker(wheel):
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "fastadam").rglob("*.py")}
    for folder in ("kernels", "bench"):
        modules |= {f"fastadam/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*.py")}
    assert modules | {"fastadam/py.typed"} <= set(wheel)


def test_extras():
    extras = set(importlib.metadata.metadata("fastadam").get_all("Provides-Extra"))
    for_users = {"torch", "keras", "thinc", "checkpoint", "cuda12", "cuda13", "bench", "demo", "all"}
    assert for_users <= extras
    assert for_users <= set(re.findall(r"`(\w+)`", (ROOT / "README.md").read_text("utf-8")))
    (everything,) = [line for line in importlib.metadata.requires("fastadam") if re.search("extra == .all.$", line)]
    of_the_machine, of_this_repository = {"cuda12", "cuda13", "mpi"}, {"contenders", "test", "docs"}
    named = set(re.findall(r"\w+", everything.partition("[")[2].partition("]")[0]))
    assert named == extras - {"all"} - of_the_machine - of_this_repository


def test_kernels_is_no_top_level_module():
    assert kernels.__name__ == "fastadam.kernels"
    assert subprocess.run([sys.executable, "-c", "import kernels"], cwd="/", capture_output=True).returncode != 0


STEP = """
import numpy as np, fastadam
p = {"w": np.linspace(-1, 1, 5000, dtype=np.float32)}
opt = fastadam.AdamW(p, lr=0.1)
for _ in range(3):
    opt.step({"w": p["w"] - 2})
"""
# No module may be asked for its source, and the machine code must be that of these sources.
WITHOUT_SOURCES = f"""
{STEP}
import sys
from fastadam.kernels.cpu import jit
from fastadam.kernels.cuda.c_functions import c_function
from fastadam.kernels.texts.casts import CASTS
own = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "fastadam"]
assert all(file.endswith(".pyc") for file in own), own
assert all(map(c_function, CASTS))
print(fastadam.__file__, jit._DIGEST.hexdigest(), p["w"].tobytes().hex())
"""
INFO = "import sys; sys.argv = ['fastadam', 'info']; from fastadam.cli import main; main()"


def run_from(place, code, cache):
    environment = {**os.environ, "PYTHONPATH": str(place), "NUMBA_CACHE_DIR": str(cache)}
    return subprocess.run([sys.executable, "-c", code], cwd=cache, env=environment, capture_output=True, text=True)


def test_without_sources(archive, tmp_path):
    here = {"np": np, "fastadam": fastadam}
    exec(STEP, here)
    folder, frozen = tmp_path / "site", tmp_path / "frozen.zip"
    archive.extractall(folder)
    assert compileall.compile_dir(folder, legacy=True, quiet=1)
    for path in folder.rglob("*.py"):
        path.unlink()
    # Programs that are frozen have their modules in an archive.
    shutil.make_archive(frozen.with_suffix(""), "zip", folder)
    for place in (folder, frozen):
        cache = tmp_path / f"cache of {place.name}"
        cache.mkdir()
        done = run_from(place, WITHOUT_SOURCES, cache)
        assert done.returncode == 0, done.stderr
        trained = here["p"]["w"].tobytes().hex()
        assert done.stdout.split() == [str(place / "fastadam" / "__init__.pyc"), jit._DIGEST.hexdigest(), trained]
        assert list(cache.rglob("*.nbi"))
    assert "kernel cache" in run_from(folder, INFO, tmp_path).stdout
    (folder / "fastadam" / "packed_sources.pyc").unlink()
    message = "ImportError: the sources of fastadam's kernels are not installed: build a wheel"
    assert message in run_from(folder, STEP, tmp_path).stderr


def test_the_sources_of_a_clone_say_why_they_cannot_be_imported():
    # Without `site`, no editable installation leads to the kernels; NumPy and Numba are found all the same.
    environment = {**os.environ, "PYTHONPATH": str(Path(np.__file__).parent.parent)}
    command = [sys.executable, "-S", "-c", "import fastadam"]
    failed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "ModuleNotFoundError: No module named 'fastadam.kernels'" in failed.stderr
    (said,) = [line for line in failed.stderr.splitlines() if line.startswith("ImportError: ")]
    assert "another directory" in said
    assert "pip install -e ." in said


# What type checkers make of calls: a mistake that is not found is an unused comment, which is an error too.
USE = """
import fastadam
import numpy as np

arrays = {"w": np.ones(3)}
opt = fastadam.AdamW(arrays, lr=0.1, flat=True, moment_dtype=("float8", None), exclude_from_weight_decay=bool)
fastadam.Lion(arrays, betas=(0.9, 0.99), max_grad_norm=1.0)
fastadam.AdEMAMix(arrays, betas=(0.9, 0.99, 0.999), seed=1)
fastadam.Adam(arrays, max_grad_nrom=1.0)  # type: ignore[call-arg]
fastadam.NAdam(arrays, amsgrad=True)  # type: ignore[call-arg]
fastadam.RAdam(arrays, seed="one")  # type: ignore[arg-type]
opt.step([np.ones(3)], grad_scale=0.5)
opt.step(grad_scal=0.5)  # type: ignore[call-arg]
norm: float | None = opt.grad_norm
"""


def test_types(tmp_path):
    # As installed: kernels and bench inside fastadam.
    shutil.copytree(ROOT / "fastadam", tmp_path / "fastadam")
    for folder in ("kernels", "bench"):
        shutil.copytree(ROOT / folder, tmp_path / "fastadam" / folder)
    (tmp_path / "fastadam" / "use.py").write_text(USE)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
