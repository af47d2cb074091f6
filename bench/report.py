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
from formats import COLUMNS as FORMAT_COLUMNS
from formats import SIZE, STORAGE
from formats import rows as format_rows
from passes import PASS_COLUMNS, pass_rows, time_passes
from promises import Promise, format_promises, launch_promises, sequence_promises, step_promises
from results import COLUMNS, RUNS, SEQUENCE_RUNS, Results, machine
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sequence import SEQUENCE
from workloads import flat

README = Path(__file__).parent.parent / "README.md"
STORAGE_PAGE = README.parent / "docs" / "storage.md"
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
    full = Results(SEQUENCE)
    for run in track(SEQUENCE_RUNS, "full steps", console=console, transient=True):
        full.run(*run)
    stored = Results(STORAGE)
    with console.status("storage formats"):
        stored.run(flat(SIZE), rounds=21)
    formats = format_rows(stored.timings[flat(SIZE).name])
    with console.status("passes, groups, rows"):
        passes = pass_rows(time_passes())
        kept = [
            *step_promises(results, seconds),
            *sequence_promises(full),
            *format_promises(stored),
            *launch_promises(),
        ]
    console.print(_table("A step", COLUMNS, results.rows()))
    first_steps = [[name, f"{value:.2f}"] for name, value in seconds.items()]
    console.print(_table("From import to the end of the first step", ["process", "seconds"], first_steps))
    console.print(_table("The full step of a training loop", ["contender", *_names(full)], _compared(full, *_FULL)))
    console.print(_table("What is in the step", PASS_COLUMNS, passes))
    console.print(_table("Storage formats", FORMAT_COLUMNS, formats))
    console.print(_table("Promises", ["figure", "measured", "promised", ""], [_row(promise) for promise in kept]))
    console.print(machine(), *(f"Not installed: {package} ({name})." for name, package in MISSING.items()))
    if write_readme:
        _write_readme(results, full, passes, formats, kept)
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


def _write_readme(
    results: Results, full: Results, passes: list[list[str]], formats: list[list[str]], kept: list[Promise]
) -> None:
    source = f"Medians of one run, all contenders in turns, {datetime.date.today()}: {machine()}."
    blocks = {
        "benchmark": [
            *_markdown(["float32, time of a step", *SHOWN], _compared(results, CONTENDERS, OURS, SHOWN)),
            "",
            source,
        ],
        "full step": _markdown(["float32, time of the full step", *_names(full)], _compared(full, *_FULL)),
        "passes": _markdown(PASS_COLUMNS, passes),
        "formats": _markdown(FORMAT_COLUMNS, formats),
        "promises": _markdown(["figure", "measured", "promised", ""], map(_row, kept)),
    }
    _write_blocks(README, blocks)
    _write_blocks(STORAGE_PAGE, {"formats": [*blocks["formats"], "", source]})


def _write_blocks(page: Path, blocks: dict[str, list[str]]) -> None:
    """Write lines between the marks of each block of a page."""
    text = page.read_text(encoding="utf-8")
    for name, lines in blocks.items():
        start, end = f"<!-- {name}: written by `make bench-readme` -->", f"<!-- end of {name} -->"
        before, rest = text.split(start)
        text = "\n".join([before + start, "", *lines, "", end + rest.split(end)[1]])
    page.write_text(text, encoding="utf-8")


_FULL = SEQUENCE, "fastadam, one step()", [workload.name for workload, _ in SEQUENCE_RUNS]


def _names(results):
    return list(results.timings)


def _compared(results, contenders, reference, workloads):
    """A row for each contender: the time of a step of each workload, and its ratio to that of `reference`."""
    for name in contenders:
        timings = [results.timings[workload].get(name) for workload in workloads]
        ours = [results.timings[workload][reference].median for workload in workloads]
        cells = [
            f"{_duration(timing.median)} ({timing.median / median:.2f})" if timing else "-"
            for timing, median in zip(timings, ours, strict=True)
        ]
        yield [f"**{name}**" if name == reference else name, *cells]


def _duration(seconds):
    return f"{1e6 * seconds:.1f} us" if seconds < 1e-3 else f"{1e3 * seconds:.1f} ms"


def _markdown(columns, rows):
    cells = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return ["| " + " | ".join(row) + " |" for row in cells]


if __name__ == "__main__":
    raise SystemExit(main())
