"""The benchmarks at work, in processes of their own: Ctrl-C, costs, pytest-benchmark, a kernel that became slower."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numba
import pytest

import fastadam
from fastadam.bench import costs
from fastadam.bench.machine import facts, gpu
from fastadam.bench.record import read_record
from fastadam.bench.registry import CONTENDERS

# Processes that are timed or forked, or whose memory is measured: one at a time.
pytestmark = pytest.mark.xdist_group("processes")

ROOT = Path(__file__).parent.parent


def process(*arguments, directory, **environment):
    """The finished process of Python with these arguments."""
    # pytest-benchmark measures nothing in a worker of pytest-xdist, which this process may be.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = {**inherited, **{name: str(value) for name, value in environment.items()}}
    environment.pop("FORCE_COLOR", None)
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=300)


def undated(found):
    return {name: value for name, value in found.items() if name != "date"}


def bench(*arguments, **settings):
    return process("-m", "fastadam", "bench", *arguments, **settings)


def in_one_line(text):
    return " ".join(text.split())


def test_info_says_what_would_run_here(tmp_path):
    done = process("-m", "fastadam", "info", directory=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    rows = {name: value.strip() for name, value in rows.items()}
    here = facts()
    for name in ("processor", "vector width", "cores", "threads", "threading layer", "fastadam", "Python", "numba"):
        assert rows[name] == str(here[name]), name
    assert int(rows["threads"]) == numba.get_num_threads()
    assert rows["GPU"] == in_one_line(gpu())
    assert Path(rows["kernel cache"]).is_dir()
    for name in ("read", "copy", "scale"):
        number, unit = rows[f"memory bandwidth, {name}"].split()
        assert (float(number) > 0, unit) == (True, "GB/s")
    missing = {name for name, each in CONTENDERS.items() if each.device == "cpu" and each.missing()}
    assert all(name in done.stdout for name in missing)


def test_info_needs_no_extra(tmp_path):
    extras = ["typer", "rich", "psutil", "cpuinfo", "matplotlib", "ml_dtypes", "pytest", "sklearn"]
    code = f"import sys; sys.modules.update(dict.fromkeys({extras})); from fastadam.cli import main; main()"
    done = process("-c", code, "info", directory=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "kernel cache" in done.stdout
    assert "unknown without py-cpuinfo, compiled for as" in done.stdout


# The second case would go on for hours. It says when it has begun.
ENDLESS = """
import signal
from fastadam.bench import command
# What starts the tests in the background may have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
run_case = command.run_case
def run(workers, case, record, progress):
    def told():
        progress()
        if record.results:
            print("the second case is measured", flush=True)
    run_case(workers, case._replace(rounds=10**8 if record.results else 3), record, told)
command.run_case = run
from fastadam.cli import main
main()
"""


# As from a terminal: the workers get the signal too.
@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals to other processes")
def test_ctrl_c_keeps_what_was_measured(tmp_path):
    command = [sys.executable, "-c", ENDLESS, "bench", "--workload", "MLP", "--contender", "fastadam", "--save", "here"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True, **pipes) as running:
        try:
            line = running.stdout.readline()
            assert line == "the second case is measured\n", running.stderr.read()
            os.killpg(running.pid, signal.SIGINT)
            output, errors = running.communicate(timeout=60)
        finally:
            running.kill()
    assert (running.returncode, errors) == (130, "")
    assert "MLP, 6 tensors (4,481 parameters), full step" in output
    results = read_record(tmp_path / "here" / "benchmark.json").results
    assert [(each.kind, each.contender, len(each.seconds)) for each in results[:2]] == [
        ("plain", "fastadam", 3),
        ("plain", "limit, float32", 3),
    ]
    assert results[2].kind == "full"
    assert len(results[2].seconds) >= 1
    assert (tmp_path / "here" / "benchmark.html").exists()


def test_pytest_benchmark_records_what_belongs_to_a_time(tmp_path):
    path = tmp_path / "record.json"
    options = ["--benchmark-min-rounds=3", "--benchmark-max-time=0.01", "-p", "no:cacheprovider"]
    done = process("-m", "pytest", "bench", f"--benchmark-json={path}", *options, "-k", "MLP", directory=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    entries = {entry["params"]["name"]: entry for entry in json.loads(path.read_text())["benchmarks"]}
    assert {"NumPy, textbook", "fastadam"} <= entries.keys() <= {"NumPy, textbook", "fastadam", "torch, fused"}
    for entry in entries.values():
        assert 0 < entry["stats"]["median"] < 1
        assert entry["stats"]["rounds"] >= 3
        assert entry["group"] == "MLP, 6 tensors"
        extra = entry["extra_info"]
        assert (extra["parameters"], extra["bytes"]) == (4_481, 28 * 4_481)
        assert extra.items() >= undated(facts()).items()
        assert extra["fastadam"] == fastadam.__version__


def test_costs_are_measured_in_processes_of_the_library_alone(monkeypatch):
    monkeypatch.setattr(costs, "LIBRARIES", {name: costs.LIBRARIES[name] for name in (costs.NUMBA, costs.TEXTBOOK)})
    measured = {}
    costs.costs(measured, rounds=1)
    assert measured[costs.IMPORT].keys() == {costs.NUMBA, costs.TEXTBOOK}
    for what, found in measured.items():
        assert costs.TEXTBOOK in found
        if what == costs.MEMORY:
            # Temporaries of 20,000,000 float32, and no more than those of the step.
            assert 80e6 < found[costs.TEXTBOOK] < 800e6
        else:
            assert all(0 < seconds < 60 for seconds in found.values())


def test_a_process_of_one_library_has_no_numba_of_others():
    program = "import sys; from fastadam.bench.costs import _contender; _contender('torch, fused'); print(*sys.modules)"
    done = process("-c", program, directory=ROOT)
    assert "fastadam.bench.contenders.torch_adam" in done.stdout.split()
    assert not {"numba", "jax", "keras"} & {*done.stdout.split()}


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A function that runs a command on a copy of the package, which comes before the installed one."""
    folder = tmp_path_factory.mktemp("copy")
    for name, place in {"fastadam": "fastadam", "kernels": "fastadam/kernels", "bench": "fastadam/bench"}.items():
        # Both may be linked into the package.
        without = shutil.ignore_patterns("__pycache__", *(["kernels", "bench"] if name == place else []))
        shutil.copytree(ROOT / name, folder / place, ignore=without)

    def run(*arguments):
        paths = {"PYTHONPATH": folder, "NUMBA_CACHE_DIR": folder / "cache"}
        return process(*arguments, directory=folder, **paths)

    return folder, run


def test_a_run_is_shown_and_saved_and_a_kernel_that_became_slower_is_found(copied):
    folder, run = copied
    origins = (
        "import fastadam.bench, fastadam.kernels as k; print(fastadam.__file__, fastadam.bench.__file__, k.__file__)"
    )
    places = run("-c", origins).stdout.split()
    assert len(places) == 3
    assert all(Path(place).is_relative_to(folder) for place in places)

    case = ["--workload", "flat 10,000", "--contender", "fastadam", "--kind", "plain", "--rounds", 15]
    command = ["-m", "fastadam", "bench", *case, "--threshold", 0.5]
    first = run(*command, "--save", "before")
    assert first.returncode == 0, first.stderr
    assert "flat 10,000, plain step" in first.stdout
    record = read_record(folder / "before" / "benchmark.json")
    assert [each.contender for each in record.results] == ["fastadam", "limit, float32"]
    assert {len(each.seconds) for each in record.results} == {15}
    assert all(0 < seconds < 1 for each in record.results for seconds in each.seconds)
    assert all(record.share_of_limit(each) > 0 for each in record.results)
    assert undated(record.machine) == undated(facts())

    update = folder / "fastadam" / "kernels" / "texts" / "shared.py"
    text, root = update.read_text(encoding="utf-8"), "    root = sqrt(v)\n"
    assert text.count(root) == 1
    # The root of a square is what it was.
    update.write_text(text.replace(root, root + 40 * "    root = sqrt(root * root)\n"), encoding="utf-8")
    slower = run(*command, "--compare", folder / "before" / "benchmark.json")
    assert slower.returncode == 1, slower.stdout + slower.stderr
    assert "SLOWER" in slower.stdout
    assert "1 of 1 have lost more than 50%" in slower.stdout
