"""How the demo trains its language model: the optimizers in turns of many batches."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastadam.demo.models import Task
from fastadam.demo.training import CPU, FastRun, Run, TextbookRun, batches_of_epoch
from fastadam.hosts import require


def language_contenders(task: Task, seed: int) -> list[Run]:
    """The textbook's Adam and fastadam in NumPy; with torch also torch's fused AdamW and ours, on the same model."""
    runs: list[Run] = [TextbookRun(task, CPU, seed), FastRun(task, CPU, seed)]
    if why_no_torch() is not None:
        return runs
    from fastadam.demo.torch_run import torch_runs

    return runs + torch_runs(task, seed)


def why_no_torch() -> str | None:
    """Why `fastadam.torch` cannot be used here; None if it can."""
    try:
        require("torch", "fastadam.torch")
    except ImportError as error:
        return str(error)
    return None


def train_in_turns(runs: list[Run], seed: int, advance: Callable[[Run], Any]) -> None:
    """Train `runs` of one task, each for an epoch at a time; `advance(run)` is called after every step."""
    task, rng = runs[0].task, np.random.default_rng(seed)
    for _ in range(task.epochs):
        batches = batches_of_epoch(task, rng)
        for run in runs:
            for rows in batches:
                run.train_on(rows)
                advance(run)
            run.note_loss()


def warm_up_language(task: Task, seed: int) -> None:
    """Take a step with every optimizer and discard it: kernels are loaded and threads are started after that."""
    for run in language_contenders(task, seed):
        run.train_on(np.arange(task.rows))
