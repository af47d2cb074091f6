"""transformers' Trainer: `optimizers=`, `optimizer_cls_and_kwargs=`, and a checkpoint that is taken up."""

import pytest
import torch
from training import OPTIONS, assert_equal, assert_trains_as_torch

import fastadam.torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

SIZES = {"vocab_size": 32, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
TOKENS = torch.randint(32, (40, 16), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": tokens, "labels": tokens} for tokens in TOKENS]


def tiny_gpt2():
    """Tied weights; double, because the gradients of the biases of its keys are rounding errors."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**SIZES, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0)).double()


def trainer(folder, model, **options):
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=12,
        save_steps=6,
        per_device_train_batch_size=4,
        lr_scheduler_type="cosine",
        use_cpu=True,
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
    )
    return Trainer(model, arguments, train_dataset=DATA, **options)


def test_optimizers(tmp_path):
    def trained(optimizer_class):
        model = tiny_gpt2()
        optimizer = optimizer_class(model.parameters(), **OPTIONS)
        trainer(tmp_path, model, optimizers=(optimizer, None)).train()
        return list(model.parameters())

    assert_trains_as_torch(trained)


def trained_by_class(optimizer_class, folder, **options):
    """The Trainer makes two groups itself: with weight decay and without."""
    model = tiny_gpt2()
    trainer(folder, model, optimizer_cls_and_kwargs=(optimizer_class, OPTIONS)).train(**options)
    return list(model.parameters())


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_optimizer_cls_and_kwargs(tmp_path, name):
    assert_trains_as_torch(lambda optimizer_class: trained_by_class(optimizer_class, tmp_path), name)


def test_a_checkpoint_is_taken_up(tmp_path):
    whole = trained_by_class(fastadam.torch.AdamW, tmp_path)
    resumed = trained_by_class(fastadam.torch.AdamW, tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert_equal(whole, resumed)
