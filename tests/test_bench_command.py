"""The command line of the benchmarks: what is refused, shown, saved and compared."""

import importlib
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
from bench_records import run
from typer.testing import CliRunner

from fastadam.bench import command, info, machine
from fastadam.bench.layouts import KINDS
from fastadam.bench.record import read_record
from fastadam.bench.registry import CONTENDERS
from fastadam.bench.tables import COLUMNS
from fastadam.bench.workloads import WORKLOADS
from fastadam.commands import app
from fastadam.kernels.cpu import jit as compilation


def fastadam(*arguments):
    """Exit status, output and errors of a command, each in one line."""
    runner = CliRunner(env={"FORCE_COLOR": None, "TTY_COMPATIBLE": None})
    done = runner.invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, " ".join(done.stdout.split()), " ".join(done.stderr.split())


def refused(*arguments):
    """What is said of a command that does nothing."""
    status, output, errors = fastadam("bench", *arguments)
    assert (status, output) == (2, "")
    return errors


@pytest.fixture
def nothing_runs(monkeypatch):
    """A test in which nothing may be measured."""
    for module, name in ((info, "bandwidth"), (command, "Workers"), (command, "costs")):
        monkeypatch.setattr(module, name, lambda *_, name=name: pytest.fail(f"{name} was called"))


@pytest.fixture
def saved(tmp_path):
    """A function that saves a record, and gives the path."""

    def save(record, name="saved.json"):
        path = tmp_path / name
        path.write_text(record.to_json(), encoding="utf-8")
        return path

    return save


pytestmark = pytest.mark.usefixtures("nothing_runs")


@pytest.mark.parametrize(
    ("option", "known"),
    [("--contender", CONTENDERS), ("--workload", WORKLOADS), ("--kind", KINDS), ("--baseline", CONTENDERS)],
)
def test_an_unknown_name_is_refused_with_those_that_are_known(option, known):
    errors = refused(option, "fastbdam")
    assert f"fastadam: `{option}` must be one of these, or how they begin, got 'fastbdam'" in errors
    assert all(" ".join(name.split()) in errors for name in known)


@pytest.mark.parametrize("arguments", [("--rounds", "0"), ("--threshold", "1.1"), ("--other",)])
def test_other_values_of_options_are_refused(arguments):
    assert "Usage" in refused(*arguments)


def test_a_baseline_that_several_begin_with_is_refused():
    errors = refused("--baseline", "numpy")
    assert "`--baseline` must be one contender" in errors
    assert "NumPy, textbook; NumPy, in place" in errors


def test_nothing_left_to_run_is_refused():
    assert "nothing is left to run" in refused("--contender", "numpy", "--workload", "MLP", "--kind", "full")


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    for place in (file, file / "below"):
        assert f"fastadam: `--save` must be a directory that can be written to, got {place}" in refused("--save", place)
    assert (file.read_text(), [*tmp_path.iterdir()]) == ("kept", [file])


@pytest.mark.parametrize("option", ["--compare", "--load"])
@pytest.mark.parametrize("content", [None, "broken {", '{"schema": 1, "machine": {}}'])
def test_a_broken_record_is_refused_before_anything_is_measured(tmp_path, option, content):
    path = tmp_path / "broken.json"
    if content is not None:
        path.write_text(content)
    errors = refused(option, path, "--save", tmp_path / "results")
    assert errors.startswith(f"fastadam: `{option}`: {path} must be a record of a benchmark run")
    assert not (tmp_path / "results").exists()


def test_a_saved_run_is_shown(saved):
    path = saved(run())
    status, output, errors = fastadam("bench", "--load", path)
    assert (status, errors) == (0, "")
    rows = ("NumPy, textbook 40.0 us", "fastadam, step(grads) 5.0 us", "limit, float32 2.0 us")
    for text in ("flat 10,000, plain step", " ".join(COLUMNS), *rows, "First call", "torch"):
        assert text in output
    assert "fastadam 4.0 us 3.9 to 4.1 0.400 70.0 0.50 10.00" in output
    for text in ("Processor <of> & for tests, 256 bits, 3 of 4 threads (omp)", "copy 25.0 GB/s", "optax not installed"):
        assert text in output
    *_, output, _ = fastadam("bench", "--load", path, "--baseline", "TORCH, l")
    assert "fastadam 4.0 us 3.9 to 4.1 0.400 70.0 0.50 -" in output


def test_a_saved_run_is_saved_in_every_form(saved, tmp_path):
    record = run()
    record.results += [replace(each, workload="MLP, 6 tensors") for each in record.results]
    folder = tmp_path / "some" / "where"
    status, output, _ = fastadam("bench", "--load", saved(record), "--save", folder)
    names = ["benchmark.json", "benchmark.md", "benchmark.html", "models.png"]
    assert status == 0
    assert output.endswith(f"{', '.join(names)}.")
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert read_record(folder / "benchmark.json") == record
    page, png = (folder / "benchmark.html").read_text(encoding="utf-8"), (folder / "models.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert page.count("data:image/png;base64,") == 1


def test_the_exit_status_tells_of_a_step_that_is_slower(saved):
    before, after = saved(run(), "before.json"), saved(run(ours=1.3, machine=2.0), "after.json")
    status, output, _ = fastadam("bench", "--load", after, "--compare", before)
    assert status == 1
    assert "flat 10,000 plain fastadam 0.50 0.38 0.77 SLOWER" in output
    assert "2 of 2 have lost more than 15% of their share of the limit" in output
    for arguments in (("--compare", after), ("--compare", before, "--threshold", "0.3")):
        status, output, _ = fastadam("bench", "--load", after, *arguments)
        assert (status, "SLOWER" in output) == (0, False)
        assert "0 of 2 have lost" in output
    assert fastadam("bench", "--load", before, "--compare", after)[0] == 0


def test_runs_without_anything_in_common_are_not_compared(saved):
    other = run()
    other.results = [replace(each, kind="full") for each in other.results]
    status, _, errors = fastadam("bench", "--load", saved(run(), "now.json"), "--compare", saved(other))
    assert status == 2
    assert "`--compare` must be a run with results of fastadam that this one has too" in errors


def test_what_was_measured_before_an_error_is_kept(monkeypatch, tmp_path):
    def broken(workers, case, record, progress):
        record.results += run().results
        raise RuntimeError("something else")

    monkeypatch.setattr(command, "Workers", nullcontext)
    monkeypatch.setattr(command, "run_case", broken)
    status, output, _ = fastadam("bench", "--save", tmp_path)
    assert status not in (0, command.INTERRUPTED)
    assert "RuntimeError: something else" in output
    assert "flat 10,000, plain step" in output
    assert read_record(tmp_path / "benchmark.json").results == run().results


@pytest.mark.parametrize("where", ["failed", "skipped"])
def test_the_exit_status_tells_of_what_is_not_there(monkeypatch, where):
    def without(workers, case, record, progress):
        getattr(record, where).append(f"{case.title}: fastadam: something")

    monkeypatch.setattr(command, "Workers", nullcontext)
    monkeypatch.setattr(command, "run_case", without)
    status, output, _ = fastadam("bench", "--workload", "flat 100")
    assert status not in (0, command.INTERRUPTED)
    assert f"{where.capitalize()}: flat 100, plain: fastadam: something." in output


def test_what_was_measured_is_saved_after_each_case(monkeypatch, tmp_path):
    saved = []

    def running(workers, case, record, progress):
        if (tmp_path / "benchmark.json").exists():
            saved.append(read_record(tmp_path / "benchmark.json").results)
        record.results += run().results

    monkeypatch.setattr(command, "Workers", nullcontext)
    monkeypatch.setattr(command, "run_case", running)
    assert fastadam("bench", "--workload", "MLP", "--save", tmp_path)[0] == 0
    assert saved == [run().results]


def test_info_says_what_is_not_there(monkeypatch):
    needs = ("numpy", "no_such_package")
    monkeypatch.setitem(CONTENDERS, "numexpr", CONTENDERS["numexpr"]._replace(needs=needs))
    monkeypatch.setattr(info, "bandwidth", lambda **_: {"read": 12.34})
    monkeypatch.setattr(compilation, "jit", lambda *_: SimpleNamespace(_cache=SimpleNamespace()))
    status, output, _ = fastadam("info")
    assert status == 0
    for text in ("numexpr: no_such_package not installed", "nowhere: every process compiles", "12.3 GB/s"):
        assert text in output


def test_info_says_what_would_be_launched_on_the_devices_that_there_are(monkeypatch):
    pytest.importorskip("cupy")
    importlib.import_module("fastadam.kernels.cuda")
    properties = [{"name": name.encode(), "major": 9, "minor": 0} for name in ("NVIDIA H200", "NVIDIA H100")]
    runtime = SimpleNamespace(
        getDeviceCount=lambda: 2, getDeviceProperties=properties.__getitem__, runtimeGetVersion=lambda: 13020
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    monkeypatch.setattr(machine, "no_cuda", lambda: None)
    found = machine.gpu()
    assert found.startswith(
        "NVIDIA H200 (compute capability 9.0), NVIDIA H100 (compute capability 9.0); CUDA runtime 13"
    )
    assert "a step is one launch of 128 threads" in found
    assert "128 threads for each 2,048 elements" in found
    assert "with a limit of a norm, `nonfinite` or a `grad_scale` on the device, and in a CUDA graph, one more" in found
    monkeypatch.setattr(machine, "no_cuda", lambda: "CuPy does not work")
    assert machine.gpu() == "none: CuPy does not work"
