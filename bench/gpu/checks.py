"""Tests on the GPU, and what the machine is."""

import datetime
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from fastadam.bench.gpu.results import Results
from fastadam.bench.gpu.rig import Rig

PACKAGES = ("numpy", "numba", "torch", "cupy-cuda12x", "cupy-cuda13x", "pytest")
# Kernels of every kind, for the sanitizer, which makes them many times as slow.
SANITIZED = (
    "(elements_equal and (adam-float32 or dithered_codes or everything_codes)) "
    "or (norm_equals and float32) or missed_steps or (not_taken and everything)"
)


def machine(rig: Rig, results: Results) -> None:
    """Date, card, driver and versions."""
    import fastadam

    results.put("date", str(datetime.date.today()))
    results.put("fastadam", fastadam.__version__)
    results.put("Python", platform.python_version())
    for name in PACKAGES:
        try:
            results.put(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    if rig.dry:
        results.put("card", "none: a dry run")
        return
    properties = rig.xp.cuda.runtime.getDeviceProperties(0)
    results.put("card", properties["name"].decode())
    results.put("compute capability", f"{properties['major']}.{properties['minor']}")
    results.put("CUDA driver", _version(rig.xp.cuda.runtime.driverGetVersion()))
    results.put("CUDA runtime", _version(rig.xp.cuda.runtime.runtimeGetVersion()))


def _version(number):
    return f"{number // 1_000}.{number % 1_000 // 10}"


def tests(rig: Rig, results: Results) -> None:
    """The tests that need a GPU."""
    files = sorted(str(path) for path in Path("tests").glob("test_gpu*.py") if "mark.gpu" in path.read_text("utf-8"))
    spread = importlib.util.find_spec("xdist") is not None and not rig.dry
    # They compile for most of the time, on 16 cores.
    arguments = [*files, *(["-n", "14"] if spread else [])]
    results.attempt("gpu", _pytest, [sys.executable], arguments, results.folder / "tests.xml")


def sanitizer(rig: Rig, results: Results) -> None:
    """A few of them under compute-sanitizer, where it is installed."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        results.put("memcheck", {"not run": "compute-sanitizer is not installed"})
        return
    command = [tool, "--tool", "memcheck", "--padding", "64", "--error-exitcode", "99", sys.executable]
    arguments = ["tests/test_gpu.py", "-x", "-k", SANITIZED]
    results.attempt("memcheck", _pytest, command, arguments, results.folder / "sanitizer.xml")


def _pytest(command: list[str], arguments: list[str], report: Path) -> dict[str, Any]:
    """Run pytest in a process of its own: how many tests there were of each outcome, and the first failures."""
    options = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
    began = time.monotonic()
    # Idle threads of OpenMP spin for a while, and slow the other processes down.
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    whole = [*command, *options, "--tb=short", f"--junit-xml={report}", *arguments]
    done = subprocess.run(whole, env=environment)
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    report.unlink()
    counted = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = [
        f"{case.attrib['name']}: {problem.attrib.get('message', '')[:300]}"
        for case in suite.iter("testcase")
        for problem in (*case.iter("failure"), *case.iter("error"))
    ]
    passed = counted["tests"] - counted["failures"] - counted["errors"] - counted["skipped"]
    return {"passed": passed, **counted, "failed": failed[:20], "status": done.returncode, "seconds": since(began)}


def since(began: float) -> float:
    """Seconds, in tenths."""
    return round(time.monotonic() - began, 1)
