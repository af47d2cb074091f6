"""The measurement of docs/torch.md, run small, and its table."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")
from fastadam.bench import reinforcement, torch_steps

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("title", ["MLP", "small GPT", "150 tensors", "an optimizer for 1,000"])
def test_steps_are_timed_beside_those_of_torch(title):
    cases = torch_steps.measured([title], rounds=1)
    assert cases
    for seconds in cases.values():
        assert seconds.keys() == {torch_steps.FUSED, torch_steps.OURS}
        assert all(each > 0 for each in seconds.values())


def test_another_result_is_not_timed(monkeypatch):
    monkeypatch.setitem(
        torch_steps.MAKERS, torch_steps.OURS, lambda params: torch_steps.torch.optim.SGD(params, lr=1.0)
    )
    with pytest.raises(AssertionError, match="not close"):
        torch_steps.measured(["MLP"], rounds=1)


def test_other_libraries_that_are_missing_are_not_timed(monkeypatch, capsys):
    for name in ("torchao", "torchao.optim", "bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(torch_steps, "GPT2", SimpleNamespace(shapes={"w": (64, 256)}))
    (seconds,) = torch_steps.measured(["8-bit"], rounds=1).values()
    assert seconds.keys() == {torch_steps.FUSED, "fastadam.torch, bfloat16, 8-bit moments"}
    assert "torchao, AdamW8bit does not run here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "bench", "cases"), [("torch", torch_steps, "CASES"), ("reinforcement", reinforcement, "AGENTS")]
)
def test_the_page_says_what_was_measured(name, bench, cases):
    page = (DOCS / "torch.md").read_text("utf-8")
    for processor in ("intel", "amd"):
        record = json.loads((DOCS / f"{name}-{processor}.json").read_text("utf-8"))
        assert record["seconds"].keys() == getattr(bench, cases).keys()
        assert record["machine"]["processor"] in page
        for row in bench.rows(record["seconds"]):
            assert f"| {' | '.join(row)} |" in page
