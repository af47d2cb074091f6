"""The bench of the text classifier runs, and compares weights before it reports."""

import pytest

pytest.importorskip("thinc")
pytest.importorskip("psutil")

from fastadam.bench import thinc_classifier as bench


def test_a_tiny_run(monkeypatch):
    monkeypatch.setattr(bench, "SIZES", {300: 8})
    seconds = bench.measured(rounds=1, steps=3)
    assert seconds.keys() == {"300 x 8"}
    table = list(bench.rows(seconds))
    assert [row[1] for row in table] == ["thinc", "fastadam.thinc"]
    assert all(len(row) == len(bench.COLUMNS) for row in table)
