"""What the demo shows of its language model: a table, sentences, a picture and samples of text."""

from collections.abc import Iterator
from math import inf
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from fastadam.demo.language import ByteModel
from fastadam.demo.training import Run

PROMPT = b"The statement is executed by "
CAPTION = "Steps of fastadam take one thread."
_COLORS = {"textbook": "#e8b04a", "fastadam": "#1b1b1b", "torch, fused": "#c2564a", "fastadam.torch": "#4a90c2"}


def table(runs: list[Run]) -> Table:
    """The figures of each run."""
    task, target = runs[0].task, common_loss(runs)
    size = sum(p.size for p in runs[0].params.values())
    title = f"{task.title}: {size:,} parameters, {task.steps:,} steps"
    grid = Table(title=title, caption=CAPTION, box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("\nOptimizer", no_wrap=True)
    for heading in (
        "Held-out\nloss",
        "Bytes\nguessed",
        "Median\nstep",
        "Step's\nshare",
        f"Time to\nloss {target:.3f}",
    ):
        grid.add_column(heading, justify="right", no_wrap=True)
    for run in runs:
        grid.add_row(
            run.name,
            f"{run.losses[-1]:.4f}",
            f"{run.accuracy:.1%}",
            f"{1e3 * run.median_step:.2f} ms",
            f"{run.optimizer_share:.1%}",
            f"{time_to(run, target):.1f} s",
        )
    return grid


def common_loss(runs: list[Run]) -> float:
    """The lowest loss that every run has reached."""
    return max(min(run.losses) for run in runs)


def time_to(run: Run, loss: float) -> float:
    """The seconds of gradients and steps after which `run` had so low a loss; infinity if it never had."""
    return next((seconds for seconds, noted in zip(run.seconds, run.losses, strict=True) if noted <= loss), inf)


def furthest_apart(runs: list[Run]) -> float:
    """The largest part by which two runs differ in a loss that they noted after the same step; NaN if one is NaN."""
    losses = np.array([run.losses for run in runs])
    return float((losses.max(axis=0) / losses.min(axis=0) - 1).max())


def gain(runs: list[Run]) -> Iterator[str]:
    """Sentences with the measured figures: fastadam beside the textbook form, and beside torch where it is there.

    They name no winner: on a busy machine the gradients, which are most of a training, may decide who is first.
    """
    by_name, target = {run.name: run for run in runs}, common_loss(runs)
    for ours, theirs in (("fastadam", "textbook"), ("fastadam.torch", "torch, fused")):
        if ours in by_name:
            yield _gain(by_name[ours], by_name[theirs], target)


def _gain(ours, theirs, target):
    return (
        f"{ours.name} takes {ours.optimizer_share:.1%} of its training for steps, and reaches a loss of {target:.3f} "
        f"in {time_to(ours, target):.1f} s; {theirs.name} takes {theirs.optimizer_share:.1%}, and reaches it in "
        f"{time_to(theirs, target):.1f} s. Gradients, the same work for both, took {ours.gradient_seconds:.1f} s and "
        f"{theirs.gradient_seconds:.1f} s in all."
    )


def samples(runs: list[Run], seed: int, length: int = 240) -> Iterator[str]:
    """What the model of each run writes after PROMPT, with a mark for what a terminal cannot print."""
    for run in runs:
        model = run.task.model
        assert isinstance(model, ByteModel)
        text = model.sample(run.params, PROMPT, length, seed)
        shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
        yield f"{run.name} writes: {PROMPT.decode()}{shown}"


def save_picture(runs: list[Run], path: Path) -> None:
    """Draw the loss over the steps and over the time, and what takes the time, into a PNG file."""
    figure = Figure(figsize=(15.6, 4.6), layout="constrained")
    steps, seconds, shares = figure.subplots(1, 3)
    _draw_losses(runs, steps, seconds)
    _draw_shares(runs, shares)
    figure.savefig(path, dpi=130)


def _draw_losses(runs: list[Run], steps: Axes, seconds: Axes):
    task = runs[0].task
    noted = np.linspace(0, task.steps, task.epochs + 1)[1:]
    for place, run in enumerate(runs):
        color, width = _COLORS[run.name], 6 / (place + 1)  # the curves lie on each other: thick ones go below
        steps.plot(noted, run.losses, color=color, label=run.name, linewidth=width)
        seconds.plot(run.seconds, run.losses, color=color, label=run.name, marker=".")
    steps.set(title="After so many steps", xlabel="step", ylabel=task.model.loss_name)
    seconds.set(title="After so much time", xlabel="seconds for gradients and steps")
    for axes in (steps, seconds):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)


def _draw_shares(runs: list[Run], shares: Axes):
    for run in runs:
        gradients, step = (
            1e3 * total / len(run.step_seconds) for total in (run.gradient_seconds, sum(run.step_seconds))
        )
        shares.bar(run.name, gradients, color="#cccccc")
        bar = shares.bar(run.name, step, bottom=gradients, color=_COLORS[run.name])
        shares.bar_label(bar, [f"{run.optimizer_share:.1%}"], padding=2)
    shares.set(title="Gradients (grey) and steps", ylabel="milliseconds, mean")
    shares.margins(y=0.12)
