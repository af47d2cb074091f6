"""darts: `optimizer_cls` and `optimizer_kwargs`; a saved model, which is loaded if the class is declared safe."""

import numpy as np
import pytest
import torch
from training import OPTIONS, assert_trains_as_torch, steps_counted

import fastadam.torch

pytest.importorskip("darts")
pytest.importorskip("pytorch_lightning")

from darts import TimeSeries
from darts.models import NBEATSModel
from darts.utils.serialization import add_safe_globals

SERIES = TimeSeries.from_values(np.sin(np.arange(60) / 3))
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def fitted(optimizer_class, folder):
    return NBEATSModel(
        input_chunk_length=8,
        output_chunk_length=2,
        num_stacks=2,
        num_blocks=1,
        layer_widths=16,
        n_epochs=3,
        batch_size=16,
        optimizer_cls=optimizer_class,
        optimizer_kwargs=OPTIONS,
        lr_scheduler_cls=torch.optim.lr_scheduler.StepLR,
        lr_scheduler_kwargs={"step_size": 1, "gamma": 0.5},
        random_state=0,
        work_dir=str(folder),
        pl_trainer_kwargs=QUIET,
    ).fit(SERIES)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_darts(name, tmp_path):
    def trained(optimizer_class):
        model = fitted(optimizer_class, tmp_path)
        return [torch.tensor(model.predict(4).values()), *model.model.parameters()]

    assert_trains_as_torch(trained, name)


def test_a_saved_model(tmp_path):
    model = fitted(fastadam.torch.AdamW, tmp_path)
    model.save(str(tmp_path / "model.pt"))
    add_safe_globals([fastadam.torch.AdamW])
    loaded = NBEATSModel.load(str(tmp_path / "model.pt"), pl_trainer_kwargs=QUIET)
    np.testing.assert_array_equal(loaded.predict(4).values(), model.predict(4).values())
    with steps_counted(fastadam.torch.AdamW) as steps:
        loaded.fit(SERIES, epochs=1)
    assert steps
