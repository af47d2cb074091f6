"""The benchmark report: every figure that the project promises, from one run with all contenders in turns.

    python bench/report.py            print the report
    python bench/report.py --readme   also write its tables into README.md

The exit status is 1 if a promise is not kept.
"""

import argparse
import datetime
from pathlib import Path

import startup
from contenders import CONTENDERS, MISSING
from promises import Promise, promises
from results import COLUMNS, RUNS, Results, machine
from rich.console import Console
from rich.progress import track
from rich.table import Table

README = Path(__file__).parent.parent / "README.md"
# The workloads that the README shows, and the contender that it compares the others with.
SHOWN = ("MLP, 6 tensors", "flat 10,000,000", "flat 50,000,000")
OURS = "fastadam, step()"


def main() -> int:
    """Measure, print, and say whether every promise is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", action="store_true", help="also write the tables into README.md")
    write_readme = parser.parse_args().readme
    console, results = Console(width=140), Results()
    names = [name for name in startup.FIRST_STEP if name not in MISSING]
    seconds = startup.measure(names, rounds=7)
    for run in track(RUNS, "workloads", console=console, transient=True):
        results.run(*run)
    kept = promises(results, seconds)
    console.print(_table("A step", COLUMNS, results.rows()))
    first_steps = [[name, f"{value:.2f}"] for name, value in seconds.items()]
    console.print(_table("From import to the end of the first step", ["process", "seconds"], first_steps))
    console.print(_table("Promises", ["figure", "measured", "promised", ""], [_row(promise) for promise in kept]))
    console.print(machine(), *(f"Not installed: {package} ({name})." for name, package in MISSING.items()))
    if write_readme:
        _write_readme(results, kept)
    return int(any(promise.verdict == "BROKEN" for promise in kept))


def _row(promise: Promise) -> list[str]:
    return [promise.text, f"{promise.measured:.2f}", f"{promise.relation} {promise.bound:g}", promise.verdict]


def _table(title, columns, rows):
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < 2 and len(columns) > 2 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _write_readme(results: Results, kept: list[Promise]) -> None:
    text = README.read_text(encoding="utf-8")
    source = f"Medians of one run, all contenders in turns, {datetime.date.today()}: {machine()}."
    blocks = {
        "benchmark": [*_markdown(["float32, time of a step", *SHOWN], _summary(results)), "", source],
        "promises": _markdown(["figure", "measured", "promised", ""], map(_row, kept)),
    }
    for name, lines in blocks.items():
        start, end = f"<!-- {name}: written by `make bench-readme` -->", f"<!-- end of {name} -->"
        before, rest = text.split(start)
        text = "\n".join([before + start, "", *lines, "", end + rest.split(end)[1]])
    README.write_text(text, encoding="utf-8")


def _summary(results):
    """A row for each contender: the time of a step of each workload shown, and its ratio to that of fastadam."""
    for name in CONTENDERS:
        timings = [results.timings[workload].get(name) for workload in SHOWN]
        ours = [results.timings[workload][OURS].median for workload in SHOWN]
        cells = [
            f"{_duration(timing.median)} ({timing.median / reference:.2f})" if timing else "-"
            for timing, reference in zip(timings, ours, strict=True)
        ]
        yield [f"**{name}**" if name == OURS else name, *cells]


def _duration(seconds):
    return f"{1e6 * seconds:.1f} us" if seconds < 1e-3 else f"{1e3 * seconds:.1f} ms"


def _markdown(columns, rows):
    cells = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return ["| " + " | ".join(row) + " |" for row in cells]


if __name__ == "__main__":
    raise SystemExit(main())
