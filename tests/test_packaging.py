"""The wheel, its metadata, and the types of the package as a user has it."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fastadam
from fastadam import kernels

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names of the files in a wheel built from a copy of the sources."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("fastadam", "kernels", "bench"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    output = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(source / output.stdout.split()[-1]) as archive:
        return archive.namelist()


def test_every_file_of_the_wheel_lies_under_fastadam(wheel):
    folders = {name.split("/")[0] for name in wheel}
    assert folders == {"fastadam", f"fastadam-{fastadam.__version__}.dist-info"}


def test_the_wheel_holds_every_module_and_the_type_marker(wheel):
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "fastadam").rglob("*.py")}
    for folder in ("kernels", "bench"):
        modules |= {f"fastadam/{path.relative_to(ROOT)}" for path in (ROOT / folder).rglob("*.py")}
    assert modules | {"fastadam/py.typed"} <= set(wheel)


def test_kernels_is_no_top_level_module():
    assert kernels.__name__ == "fastadam.kernels"
    assert subprocess.run([sys.executable, "-c", "import kernels"], cwd="/", capture_output=True).returncode != 0


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
