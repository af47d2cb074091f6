"""What storage formats do to training: the same problems in every format, over three seeds.

    python examples/storage_study.py           train, print the tables, show the curves in storage-study.png
    python examples/storage_study.py --docs    and save both in docs/, for docs/publish.py to write into docs/storage.md

Losses are those of held-out data. Every format starts from the same parameters as float32 and sees the same batches. It
takes about ten minutes on two cores.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import ml_dtypes
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from storage_models import Problem, characters_problem, digits_problem

import fastadam

DOCS = Path(__file__).parent.parent / "docs"
STEPS, EVERY, SEEDS = 1_500, 20, (0, 1, 2)


class Format(NamedTuple):
    """A way to store parameters, gradients and moments."""

    name: str
    dtype: Any
    options: dict[str, Any]


FLOAT32, BFLOAT16 = np.float32, ml_dtypes.bfloat16
FORMATS = [
    Format("float32", FLOAT32, {}),
    Format("bfloat16 m, v", FLOAT32, {"moment_dtype": "bfloat16"}),
    Format("bfloat16 m, v, to nearest", FLOAT32, {"moment_dtype": "bfloat16", "rounding": "nearest"}),
    Format("8-bit m, v", FLOAT32, {"moment_dtype": "float8"}),
    Format("bfloat16 p, g, m, v", BFLOAT16, {"moment_dtype": "bfloat16"}),
    Format("bfloat16 p, g, m, v, to nearest", BFLOAT16, {"moment_dtype": "bfloat16", "rounding": "nearest"}),
    Format("bfloat16 p, g, 8-bit m, v", BFLOAT16, {"moment_dtype": "float8"}),
    Format("bfloat16 p, g with masters, 8-bit m, v", BFLOAT16, {"moment_dtype": "float8", "master_weights": True}),
]


class Run(NamedTuple):
    """Losses of one training: `curve` along the way, on the batches, and `final` at the end, on held-out data."""

    curve: list[float]
    final: float


def train(problem: Problem, chosen: Format, seed: int) -> Run:
    """Train `problem` in a format, with the starting parameters and the batches of `seed`."""
    rng = np.random.default_rng(seed)
    params = {name: value.astype(chosen.dtype) for name, value in problem.initial(rng).items()}
    schedule = fastadam.schedules.WarmupCosine(problem.lr, 100, STEPS, final_lr=problem.lr / 100)
    optimizer = fastadam.Adam(params, schedule, seed=seed, **chosen.options)
    losses, curve = [], []
    for step in range(1, STEPS + 1):
        loss, gradients = problem.gradients(_widened(params), *problem.batch(rng))
        optimizer.step({name: gradient.astype(chosen.dtype, copy=False) for name, gradient in gradients.items()})
        losses.append(loss)
        if step % EVERY == 0:
            curve.append(float(np.mean(losses[-100:])))
    return Run(curve, problem.gradients(_widened(params), *problem.held_out)[0])


def _widened(params):
    return {name: np.asarray(value, np.float32) for name, value in params.items()}


def rows_of(runs: dict[str, list[Run]]) -> list[list[str]]:
    """Rows of format, losses, mean, and the distance of the mean from float32, in spreads of the seeds of float32."""
    plain = [run.final for run in runs["float32"]]
    spread = max(plain) - min(plain)
    rows = []
    for name, of_seeds in runs.items():
        finals = [run.final for run in of_seeds]
        mean = float(np.mean(finals))
        apart = (mean - float(np.mean(plain))) / spread
        verdict = "-" if name == "float32" else "within" if abs(apart) <= 1 else "better" if apart < 0 else "**worse**"
        rows.append([name, ", ".join(f"{final:.4f}" for final in finals), f"{mean:.4f}", f"{apart:+.2f}", verdict])
    return rows


COLUMNS = ["held-out loss of the seeds", "mean", "from float32, in spreads of its seeds", ""]


def draw(results: dict[str, dict[str, list[Run]]], path: Path) -> None:
    """Draw the mean curves of all formats, and below relative to float32; a band shows the range of its seeds."""
    figure, panels = plt.subplots(2, len(results), figsize=(14, 8), layout="constrained", sharex=True)
    for (above, below), (problem, runs) in zip(panels.T, results.items(), strict=True):
        plain = np.mean([run.curve for run in runs["float32"]], axis=0)
        for index, (name, of_seeds) in enumerate(runs.items()):
            curves = np.array([run.curve for run in of_seeds])
            steps = EVERY * np.arange(1, curves.shape[1] + 1)
            style = {"linestyle": "--" if "nearest" in name else "-", "color": f"C{index}", "linewidth": 1.4}
            for panel, shown in ((above, curves), (below, curves / plain)):
                panel.plot(steps, shown.mean(axis=0), label=name, **style)
                if name == "float32":
                    panel.fill_between(steps, shown.min(axis=0), shown.max(axis=0), color="C0", alpha=0.25)
        above.set(title=problem, ylabel="loss of the last 100 batches", yscale="log")
        below.set(xlabel="step", ylabel="in terms of float32", ylim=(0.85, 1.5))
        for panel in (above, below):
            panel.grid(alpha=0.3, which="both")
    panels[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def save(results: dict[str, dict[str, list[Run]]]) -> None:
    """Save the tables in docs/, and the losses behind them."""
    losses = {
        problem: {name: [run.final for run in of_seeds] for name, of_seeds in runs.items()}
        for problem, runs in results.items()
    }
    tables = {f"**{problem}**": rows_of(runs) for problem, runs in results.items()}
    saved = {"losses": losses, "columns": COLUMNS, "tables": tables, "notes": []}
    (DOCS / "storage-study.json").write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Train all, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="save tables and picture in docs/")
    to_docs = parser.parse_args().docs
    console, results = Console(width=150), {}
    for problem in (digits_problem(), characters_problem()):
        runs: dict[str, list[Run]] = {chosen.name: [] for chosen in FORMATS}
        pairs = [(chosen, seed) for chosen in FORMATS for seed in SEEDS]
        for chosen, seed in track(pairs, problem.name, console=console, transient=True):
            runs[chosen.name].append(train(problem, chosen, seed))
        results[problem.name] = runs
        table = Table("stored as", *COLUMNS, title=problem.name, title_justify="left")
        for row in rows_of(runs):
            table.add_row(*row)
        console.print(table)
    picture = DOCS / "storage-study.png" if to_docs else Path("storage-study.png")
    draw(results, picture)
    console.print(f"The curves are in {picture}.")
    if to_docs:
        save(results)


if __name__ == "__main__":
    main()
