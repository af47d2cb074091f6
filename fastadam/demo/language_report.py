"""What the demo shows of its language model: a table, sentences, a picture and a sample of text."""

from pathlib import Path

from matplotlib import pyplot as plt
from rich import box
from rich.table import Table

from fastadam.demo.training import Run

_COLORS = {"textbook": "#e8b04a", "fastadam": "#1b1b1b", "torch, fused": "#c2564a", "fastadam.torch": "#4a90c2"}


def table(runs: list[Run]) -> Table:
    """The figures of each run."""
    task, target = runs[0].task, common_loss(runs)
    size = sum(p.size for p in runs[0].params.values())
    title = f"{task.title}: {size:,} parameters, {task.steps:,} steps"
    grid = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("\nOptimizer", no_wrap=True)
    for heading in (
        "Held-out\nloss",
        "Bytes\nguessed",
        "Median\nstep",
        "Share of\ntraining",
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
    """After how many seconds of gradients and steps `run` had noted so low a loss."""
    return next(seconds for seconds, noted in zip(run.seconds, run.losses, strict=True) if noted <= loss)


def gain(runs: list[Run]) -> str:
    """What fastadam gains, in sentences with the measured figures."""
    by_name = {run.name: run for run in runs}
    target = common_loss(runs)
    said = [_gain(by_name["textbook"], by_name["fastadam"], target)]
    if "torch, fused" in by_name:
        said.append(_gain(by_name["torch, fused"], by_name["fastadam.torch"], target))
    return " ".join(said)


def _gain(other, ours, target):
    return (
        f"{ours.name} reaches a loss of {target:.3f} in {time_to(ours, target):.1f} s, {other.name} in "
        f"{time_to(other, target):.1f} s: steps take {ours.optimizer_share:.0%} and {other.optimizer_share:.0%} of the "
        "training."
    )


def furthest_apart(runs: list[Run]) -> float:
    """The largest part by which two runs differ in a loss that they noted at the same time."""
    together = zip(*(run.losses for run in runs), strict=True)
    return max(max(losses) / min(losses) - 1 for losses in together)


def save_picture(runs: list[Run], path: Path) -> None:
    """Draw the loss over the steps and over the time, and what takes the time, into a PNG file."""
    figure, (steps, seconds, shares) = plt.subplots(1, 3, figsize=(15.6, 4.6), layout="constrained")
    every = runs[0].task.steps // runs[0].task.epochs
    for place, run in enumerate(runs):
        style = {"color": _COLORS[run.name], "label": run.name, "linewidth": 5 - 1.2 * place}
        steps.plot([every * epoch for epoch in range(1, len(run.losses) + 1)], run.losses, **style)
        seconds.plot(run.seconds, run.losses, **{**style, "linewidth": 2})
        count = len(run.step_seconds)
        gradients, in_steps = 1e3 * run.gradient_seconds / count, 1e3 * sum(run.step_seconds) / count
        shares.bar(run.name, gradients, color="#cccccc")
        bar = shares.bar(run.name, in_steps, bottom=gradients, color=_COLORS[run.name])
        shares.bar_label(bar, [f"{run.optimizer_share:.0%}"], padding=2)
    steps.set(title="The same loss after the same steps", xlabel="step", ylabel=runs[0].task.model.loss_name)
    seconds.set(title="Sooner", xlabel="seconds for gradients and steps")
    shares.set(title="Gradients (grey) and steps", ylabel="milliseconds an iteration")
    shares.margins(y=0.12)
    for place in (steps, seconds):
        place.grid(alpha=0.3)
    steps.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
