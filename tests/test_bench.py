"""The benchmarks run and are right; what they measure is for `make bench`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from catalogue import build
from contenders import CONTENDERS, MISSING
from interleave import interleave, timed
from sequence import SEQUENCE
from workloads import MLP

ROOT = Path(__file__).parent.parent


def test_pytest_benchmark_records_a_contender(tmp_path):
    record = tmp_path / "record.json"
    command = [sys.executable, "-m", "pytest", "bench", "--benchmark-only", "-k", "MLP and limit"]
    finished = subprocess.run([*command, f"--benchmark-json={record}"], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (entry,) = json.loads(record.read_text())["benchmarks"]
    assert entry["extra_info"]["parameters"] == 4_481
    assert entry["stats"]["median"] > 0


@pytest.mark.parametrize("name", [name for name in (*CONTENDERS, *SEQUENCE) if name not in MISSING])
def test_every_contender_gives_the_right_parameters(name):
    build(name, MLP)


def test_a_contender_that_is_wrong_is_not_timed(monkeypatch):
    monkeypatch.setitem(CONTENDERS, "wrong", lambda params, grads: CONTENDERS["limit"](params, grads))
    with pytest.raises(AssertionError, match="wrong"):
        build("wrong", MLP)


def test_contenders_take_turns():
    calls = []
    timings = interleave({name: timed(lambda name=name: calls.append(name)) for name in "ab"}, 3, turn_seconds=0)
    assert [len(timing.rounds) for timing in timings.values()] == [3, 3]
    assert "".join(calls) == "aabb" + "aabb" * 3


def test_the_report_explains_itself():
    command = [sys.executable, str(ROOT / "bench" / "report.py"), "--help"]
    assert "--readme" in subprocess.check_output(command, text=True)
