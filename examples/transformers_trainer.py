"""Hugging Face's Trainer with fastadam: a small GPT-2 that learns the alphabet.

    python examples/transformers_trainer.py    train it, let it write (needs transformers and accelerate)

`optimizer_cls_and_kwargs` hands over the class: the Trainer makes the groups itself, without weight decay for biases
and norms, and drives schedule, clipping and checkpoints as with torch's AdamW. Nothing is downloaded.
"""

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

import fastadam.torch

LETTERS = "abcdefghijklmnopqrstuvwxyz"
LENGTH, STEPS = 16, 40
SIZES = {"vocab_size": len(LETTERS), "n_positions": LENGTH, "n_embd": 32, "n_layer": 1, "n_head": 2}


def tokens_from(letter, length=LENGTH):
    """The alphabet from a letter on, as numbers; a follows z."""
    return (LETTERS.index(letter) + torch.arange(length)) % len(LETTERS)


def data():
    return [{"input_ids": tokens_from(letter), "labels": tokens_from(letter)} for letter in LETTERS]


def fitted(folder, steps=STEPS):
    """A model that was trained, and its Trainer."""
    set_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**SIZES, bos_token_id=None, eos_token_id=None))
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=13,
        learning_rate=1e-2,
        weight_decay=0.01,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        max_grad_norm=1.0,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    optimizer = fastadam.torch.AdamW, {"lr": arguments.learning_rate}
    trainer = Trainer(model, arguments, train_dataset=data(), optimizer_cls_and_kwargs=optimizer)
    trainer.train()
    return model.eval(), trainer


def written(model, start, given=3):
    """What the model writes after the first letters from `start` on."""
    prompt = tokens_from(start, given)[None]
    tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_length=LENGTH, do_sample=False)
    return "".join(LETTERS[token] for token in tokens[0])


def main():
    with tempfile.TemporaryDirectory() as folder:
        model, trainer = fitted(folder)
    print(f"trained by {type(trainer.optimizer.optimizer)}")
    for letter in "apx":
        text = written(model, letter)
        print(f"after {text[:3]} it writes {text[3:]}")


if __name__ == "__main__":
    main()
