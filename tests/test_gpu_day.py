"""The GPU day, dry: each of its parts on NumPy arrays, so that no minute of a GPU is lost to a typing error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastadam.bench.gpu import day, smallest
from fastadam.bench.gpu.results import Results, read
from fastadam.bench.gpu.rig import FORMATS

pytest.importorskip("torch")
ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a part here, and gives what it has found."""
    monkeypatch.chdir(ROOT)

    def run_part(part):
        day.run_part(part, tmp_path, dry=True)
        return read(tmp_path / "gpu.json")[part]

    return run_part


def assert_no_errors(found):
    assert found
    assert [name for name, value in found.items() if isinstance(value, dict) and "error" in value] == []


@pytest.mark.parametrize("part", [part for part in day.PARTS if part != "tests"])
def test_every_part_runs(part, run):
    assert_no_errors(run(part))


def test_the_tests_of_a_gpu_are_counted(run):
    found = run("tests")["gpu"]
    # Here none is run.
    assert {name: found[name] for name in ("passed", "failures", "errors", "failed", "status")} == {
        "passed": 0,
        "failures": 0,
        "errors": 0,
        "failed": [],
        "status": 5,
    }


def test_captured_steps_and_streams_are_compared(run):
    for part in ("graphs", "adapter", "streams"):
        assert all(value.get("equal", True) for value in run(part).values())


def test_the_smallest_numbers_are_compared(run, monkeypatch):
    assert all(value == {**value, "equal": True} for value in run("smallest").values())
    # The moments do come to where numbers are flushed to zero.
    trained = smallest._trained(np, "float32")
    for name in ("m", "v"):
        sizes = np.abs(trained[name].view("f4"))
        assert ((sizes > 0) & (sizes < 2.0**-125)).sum() > 20
        assert (sizes == 0).sum() > 20
    made = iter(range(10))
    monkeypatch.setattr(smallest, "_trained", lambda xp, stored: {"p": np.arange(2) + next(made)})
    assert run("smallest")["float32"]["equal"] is False


NCU = """#!/bin/sh
while [ "$1" != "{python}" ]; do shift; done
"$@" || exit 1
cat << END
==PROF== Disconnected from process 7
"ID","Kernel Name","dram__bytes_read.sum","dram__bytes_write.sum","smsp__inst_executed.sum"
"","","byte","byte","inst"
{rows}
END
"""


def test_what_ncu_counts_becomes_numbers_of_an_element(run, tmp_path, monkeypatch):
    tool, step = tmp_path / "ncu", '"7","fastadam_adam_step","80,000","60,000","6,875"'
    nothing = step.replace("6,875", "1")
    tool.write_text(NCU.format(python=sys.executable, rows="\n".join([nothing, nothing, step] * len(FORMATS))))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    expected = {"kernel": "fastadam_adam_step", "bytes read": 16.0, "bytes written": 12.0, "instructions": 44.0}
    assert run("ncu")["formats"] == dict.fromkeys(FORMATS, expected)
    tool.write_text("#!/bin/sh\necho ERR_NVGPUCTRPERM\nexit 1\n")
    assert run("ncu")["formats"] == {"not run": "ERR_NVGPUCTRPERM\n"}


def test_without_ncu_it_is_said(run, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert run("ncu")["formats"] == {"not run": "ncu, of Nsight Compute, is not installed"}


def test_what_fails_is_found_and_the_next_goes_on(tmp_path):
    results = Results(tmp_path / "gpu.json", "some")
    results.attempt("bad", lambda: 1 / 0)
    results.attempt("good", lambda: 1)
    found = read(tmp_path / "gpu.json")["some"]
    assert "ZeroDivisionError" in found["bad"]["error"]
    assert found["good"] == 1


def day_of(*arguments):
    """The command from a checkout in which nothing is installed."""
    command = [sys.executable, "bench/gpu/day.py", "--dry", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_command_needs_no_installation_and_keeps_how_its_parts_ended(tmp_path):
    done = day_of("--save", tmp_path, "--limit", 100, "--only", "tests", "--only", "memory")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert set(found) == {"tests", "memory", "parts"}
    assert {part: each["ended"] for part, each in found["parts"].items()} == {"tests": "done", "memory": "done"}
    # Collected, all of them, though only what the day needs has been copied.
    assert (found["tests"]["gpu"]["errors"], found["tests"]["gpu"]["status"]) == (0, 5)


def test_a_part_without_time_is_not_begun(tmp_path):
    done = day_of("--save", tmp_path, "--limit", 1, "--only", "machine")
    assert done.returncode == 1
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"]["machine"]["ended"] == "not begun: no time was left"


@pytest.mark.parametrize(
    ("code", "ended"),
    [("import time; time.sleep(60)", "cut off after 1 s"), ("raise SystemExit(3)", "exit status 3"), ("", "done")],
)
def test_how_a_part_ends(code, ended, tmp_path):
    assert day._ended([sys.executable, "-c", code], tmp_path, {}, 1.0 if "sleep" in code else 30.0) == ended
