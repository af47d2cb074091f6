"""What the demo shows: a table and sentences for each task, and a picture."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from rich import box
from rich.table import Table

from fastadam.demo.training import FastRun, ReferenceRun, ResumedRun, Run, TextbookRun

# The curves lie on each other, so thick pale lines go below thin dark ones.
_STYLES: dict[str, dict[str, Any]] = {
    TextbookRun.name: {"color": "#e8b04a", "linewidth": 6.0},
    ReferenceRun.name: {"color": "#4a90c2", "linewidth": 3.0},
    FastRun.name: {"color": "#1b1b1b", "linewidth": 1.2, "linestyle": (0, (4, 2))},
}


class Comparison:
    """The finished runs of one task, and the figures that compare them."""

    def __init__(self, runs: list[Run]):
        by_name = {run.name: run for run in runs}
        self.task = runs[0].task
        self.textbook, self.fast = by_name[TextbookRun.name], by_name[FastRun.name]
        self.reference = by_name[ReferenceRun.name]
        self.runs = [self.textbook, self.reference, self.fast]
        self.from_reference = self.fast.furthest_from(self.reference)
        self.from_textbook = self.fast.furthest_from(self.textbook)
        resumed = by_name[ResumedRun.name]
        assert isinstance(resumed, ResumedRun)
        self.is_resumed = resumed.is_same_as(self.fast)

    def step_ratio(self, run: Run) -> float:
        """The median step of `run` in median steps of fastadam."""
        return run.median_step / self.fast.median_step


def table(comparison: Comparison) -> Table:
    """The figures of each run of one task."""
    task = comparison.task
    size = sum(p.size for p in comparison.fast.params.values())
    title = f"{task.title}: {size:,} parameters, {task.steps:,} steps"
    grid = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("\nOptimizer", no_wrap=True)
    for heading in (
        "Final\nloss",
        "Test\naccuracy",
        "All\nsteps",
        "Median\nstep",
        "Step\nratio",
        "Largest\ndifference",
    ):
        grid.add_column(heading, justify="right", no_wrap=True)
    differences = {ReferenceRun.name: comparison.from_reference, TextbookRun.name: comparison.from_textbook}
    for run in comparison.runs:
        grid.add_row(
            run.name,
            f"{run.losses[-1]:.6f}",
            "-" if run.accuracy is None else f"{run.accuracy:.1%}",
            f"{1e3 * sum(run.step_seconds):.1f} ms",
            f"{1e6 * run.median_step:.1f} us",
            f"{comparison.step_ratio(run):.2f}",
            f"{differences[run.name]:.2g}" if run.name in differences else "-",
        )
    return grid


def gain(comparison: Comparison) -> str:
    """What fastadam gains in one task, in sentences with the measured figures."""
    textbook, fast = comparison.textbook, comparison.fast
    return (
        f"{comparison.task.title}: a step of the textbook form takes {comparison.step_ratio(textbook):.1f} times as "
        "long as one of fastadam. Of the time for gradients and steps together, the optimizer takes "
        f"{textbook.optimizer_share:.0%} with the textbook form and {fast.optimizer_share:.0%} with fastadam."
    )


def save_picture(comparisons: list[Comparison], path: Path) -> None:
    """Draw the loss of every run of each task, and the time of their optimizer steps, into a PNG file."""
    figure, axes = plt.subplots(
        1, len(comparisons) + 1, figsize=(5.2 * (len(comparisons) + 1), 4.6), layout="constrained"
    )
    for comparison, place in zip(comparisons, axes, strict=False):
        _draw_losses(comparison, place)
    _draw_times(comparisons, axes[-1])
    lines, names = axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=len(names), frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_losses(comparison: Comparison, place: Axes):
    epochs = range(1, comparison.task.epochs + 1)
    for run in comparison.runs:
        place.plot(epochs, run.losses, label=run.name, **_STYLES[run.name])
    place.set(title=comparison.task.title, xlabel="epoch", ylabel=f"training loss ({comparison.task.model.loss_name})")
    # The losses of a regression end at the noise of the data, those of a classifier near zero.
    if comparison.task.test_x is None:
        place.set_xscale("log")
        place.xaxis.set_major_formatter("{x:g}")
    else:
        place.set_yscale("log")
    place.grid(alpha=0.3)


def _draw_times(comparisons: list[Comparison], place: Axes):
    width = 0.8 / len(_STYLES)
    for position, name in enumerate(_STYLES):
        runs = [run for comparison in comparisons for run in comparison.runs if run.name == name]
        places = [task + (position - 1) * width for task in range(len(comparisons))]
        bars = place.bar(
            places, [1e6 * run.median_step for run in runs], width, label=name, color=_STYLES[name]["color"]
        )
        place.bar_label(bars, fmt="%.1f", padding=2, fontsize=9)
    place.set_xticks(range(len(comparisons)), [comparison.task.title for comparison in comparisons])
    place.set(title="Optimizer time", ylabel="median step (microseconds)")
    place.margins(y=0.12)
    place.grid(axis="y", alpha=0.3)
    place.set_axisbelow(True)
