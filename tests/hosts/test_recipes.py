"""The recipes of examples/ that need a host which trains fastadam.torch."""

import pytest
import torch
from training import steps_counted

import fastadam.torch


def test_lightning_module(tmp_path, capsys):
    pytest.importorskip("pytorch_lightning")
    recipe = pytest.importorskip("lightning_module")
    with steps_counted(fastadam.torch.AdamW) as steps:
        module, held_out = recipe.fitted(tmp_path)
    assert len(steps) == recipe.EPOCHS * 22
    averages = module.averages()
    assert averages.keys() == dict(module.named_parameters()).keys()
    assert not any(torch.equal(averages[name], p) for name, p in module.named_parameters())
    assert min(recipe.accuracy(module, params, held_out) for params in ({}, averages)) > 0.93
    recipe.main()
    assert "% right by the weights, 9" in capsys.readouterr().out


def test_transformers_trainer(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    recipe = pytest.importorskip("transformers_trainer")
    with steps_counted(fastadam.torch.AdamW) as steps:
        model, trainer = recipe.fitted(tmp_path)
    assert len(steps) == recipe.STEPS
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.01, 0.0}
    assert recipe.written(model, "x") == "xyzabcdefghijklm"
