"""The tables of docs/gpu.md, of a GPU day that went well, badly, or dry."""

import json

import gpu_tables
import publish
import pytest
from gpu_tables import blocks, bytes_of, share

from fastadam.bench.gpu import day

MACHINE = {"date": "2026-01-02", "card": "Some GPU", "compute capability": "9.0", "torch": "2.11.0"}


def rows(lines):
    """The cells of a table, without its head."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:] if line.startswith("|")]


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("copy", 8),
        ("torch, fused", 28),
        ("torch, fused, bfloat16", 14),
        ("fastadam, float32", 28),
        ("fastadam, bfloat16 p, g, 8-bit m, v", 10),
        ("fastadam, float32, clipped and skipping", 32),
        ("fastadam, 8-bit m, v, clipped", 20),
        ("fastadam, bfloat16 m, v, step(grads)", 20),
        ("fastadam, float32, flat=True", 28),
    ],
)
def test_bytes_that_a_step_moves(name, moved):
    assert bytes_of(name) == moved


def test_a_step_at_the_bandwidth_of_a_copy_has_a_share_of_one():
    assert share({"copy": 2.0, "fastadam, float32": 7.0}, "fastadam, float32") == 1.0
    assert share({}, "fastadam, float32") != share({}, "fastadam, float32")


def test_nothing_but_the_machine():
    found = blocks({"machine": MACHINE})
    assert found["machine"] == ["2026-01-02: Some GPU, compute capability 9.0; torch 2.11.0."]
    assert {row[1] for row in rows(found["checks"])} == {"not measured"}
    assert {row[-1] for row in rows(found["promises"])} == {"not measured"}


def test_what_went_wrong_is_shown():
    error = {"error": "Traceback"}
    found = blocks(
        {
            "machine": MACHINE,
            "tests": {"gpu": {"passed": 3, "tests": 5, "skipped": 1}},
            "sanitizer": {"memcheck": {"not run": "compute-sanitizer is not installed"}},
            "flat": {"1,000": {"copy": 1.0}, "100,000,000": error},
            "host": {"148": error, "adam_step": 3.0},
            "graphs": {
                "plain": {"equal": False, "steps": [5]},
                "clipped": error,
                "raise": {"says": "must not: because"},
            },
            "memory": {"plain": 512, "clipped": error},
            "smallest": {"float32": {"equal": False, "unequal": {"m": 3}}},
            "kernels": {"float32": {"registers": 43, "local bytes": 0, "occupancy": 0.6875}, "8-bit m, v": error},
            "ncu": {"formats": {"not run": "ncu is not installed"}},
        }
    )
    results = dict(rows(found["checks"]))
    assert results["tests that need a GPU"] == "3 of 5 passed, 1 skipped"
    assert results["some of them under compute-sanitizer, memcheck"] == "compute-sanitizer is not installed"
    assert results["captured by `torch.cuda.graph`: plain"] == "NOT EQUAL"
    assert results["captured by `torch.cuda.graph`: clipped"] == "an error"
    assert results["captured by `torch.cuda.graph`: raise"] == "refused: “must not”"
    assert results["device memory that 6 steps allocate: plain"] == "512 bytes"
    assert results["device memory that 6 steps allocate: clipped"] == "an error"
    assert results["numbers at and below the smallest normal one, float32"] == "NOT EQUAL"
    assert results["kernel of the step, float32"] == "registers 43, local bytes 0, occupancy 0.6875"
    assert results["kernel of the step, 8-bit m, v"] == "an error"
    assert results["an element by ncu, all"] == "ncu is not installed"
    assert rows(found["flat"]) == [["copy", "8", "1.00", "-", "-"]]
    assert rows(found["host"]) == []


def test_a_dry_day_becomes_tables(tmp_path):
    for part in ("machine", "graphs", "streams", "memory"):
        day.run_part(part, tmp_path, dry=True)
    found = blocks(json.loads((tmp_path / "gpu.json").read_text()))
    results = dict(rows(found["checks"]))
    assert results["captured by `torch.cuda.graph`: clipped"] == "equal"
    assert results["20 steps on a side stream of torch"] == "equal"


@pytest.mark.parametrize("name", ["gpu", "gpu-h100"])
def test_what_the_device_was_promised_was_kept_on_the_saved_days(name):
    saved = json.loads((publish.DOCS / f"{name}.json").read_text(encoding="utf-8"))
    of_device = [each for each in gpu_tables.PROMISES if "host" not in each.text]
    assert {promise.row(saved)[-1] for promise in of_device} == {"kept"}
    assert saved["tests"]["gpu"]["passed"] == saved["tests"]["gpu"]["tests"]
