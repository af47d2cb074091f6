"""Write the tables of README and docs/, and the pictures of docs/, from what was measured and saved there.

    python docs/publish.py

The runs are docs/benchmark.json and docs/benchmark-intel.json, which `fastadam bench --full --save DIR` makes; those on
GPUs are docs/gpu.json and docs/gpu-h100.json, which `make gpu-day` makes; the arithmetic is docs/arithmetic.json, which
`python -m fastadam.bench.arithmetic` makes; beside torch's optimizers docs/torch-*.json, one for each processor, which
`python -m fastadam.bench.torch_steps` makes; over ranks docs/sharding.json, which `python -m fastadam.bench.sharding`
makes; in stable-baselines3 docs/reinforcement-*.json, which `python -m fastadam.bench.reinforcement` makes; in Keras
docs/keras.json, which `python -m fastadam.bench.keras_fit` makes; and in Thinc docs/thinc.json, which `python -m
fastadam.bench.thinc_classifier` makes. The studies are what those of examples/ save with `--docs`. It prints what is
promised about the speed and what the run has measured. The exit status is 1 if a promise is broken.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import gpu_tables
import run_tables as tables
from promises import COLUMNS, PROMISES
from rich.console import Console
from step_picture import step_picture

from fastadam.bench import costs, keras_fit, reinforcement, report, sharding, thinc_classifier, torch_steps
from fastadam.bench.machine import versions_in_one_line
from fastadam.bench.pictures import pictures
from fastadam.bench.record import Record, RecordError, read_record
from fastadam.bench.tables import markdown_table, notes, source
from fastadam.bench.workloads import GPT2, MLP, RECOMMENDER, RESNET50, flat

DOCS = Path(__file__).parent
FIRST = (MLP, flat(10_000_000), RESNET50, GPT2)
# README is short, and docs/benchmarks.md has them.
NOT_IN_README = ("NumPy, in place", "numexpr", "torch, loop", "torch, foreach", "torch, compiled")


def pages(record: Record) -> dict[str, str]:
    """Path, from the root of the repository -> its text with the tables of a record and of the studies."""
    arithmetic = _saved("arithmetic")
    blocks = {
        "README.md": {
            "benchmark": [*tables.compared(record, "plain", FIRST, NOT_IN_README), "", source(record.machine)],
            "torch": _torch_in_brief(),
        },
        "docs/how-to/clipping.md": {
            "full step": tables.compared(record, "full", FIRST),
            "passes": [*tables.extras(record), "", source(record.machine)],
        },
        "docs/storage.md": {
            "formats": [*tables.formats(record), "", source(record.machine)],
            "study": study("storage-study"),
            "quantisation": study("quantisation"),
        },
        "docs/benchmarks.md": {
            "promises": _promised(record),
            "intel": _on_intel(),
            "machine": [line for note in notes(record) for line in (note, "")][:-1],
            "models": tables.compared(record, "plain", (MLP, RESNET50, GPT2, RECOMMENDER)),
            "growth": tables.growth(record),
            "splits": tables.splits(record),
            "costs": tables.other(record, costs.TITLE),
            "calls": [line for kind in ("calls", "groups", "rows") for line in (*tables.calls(record, kind), "")][:-1],
            "predictions": tables.predictions(record, arithmetic, _saved("gpu")),
            "arithmetic": [*tables.second_bound(arithmetic), "", _where(arithmetic)],
        },
        "docs/scaling.md": {"sharding": _sharding()},
        "docs/torch.md": {
            "torch": _on_processors("torch", torch_steps, source),
            "reinforcement": _on_processors("reinforcement", reinforcement, _where_agents_ran),
        },
        "docs/keras.md": {"keras": _measured("keras", keras_fit, source)},
        "docs/spacy.md": {"thinc": _measured("thinc", thinc_classifier, source)},
        "docs/gpu.md": {**gpu_tables.blocks(_saved("gpu")), "h100": _on_h100()},
    }
    texts = {}
    for name, of_page in blocks.items():
        texts[name] = (DOCS.parent / name).read_text(encoding="utf-8")
        for block, lines in of_page.items():
            texts[name] = between(texts[name], block, lines)
    return texts


def _saved(name):
    """What was measured and saved under a name."""
    return json.loads((DOCS / f"{name}.json").read_text(encoding="utf-8"))


def _sharding():
    """What a sharded step costs, and where it was measured."""
    record = _saved("sharding")
    facts = record["machine"]
    measured = f"{record['count']:,} parameters, gloo, medians of {sharding.STEPS - 1} steps"
    where = f"{facts['date']}: {facts['processor']}; {versions_in_one_line(facts)}"
    where += f'; {measured}. "Sent" is what a ring sends.'
    return [*markdown_table(sharding.COLUMNS, list(sharding.rows(record))), "", where]


def _promised(record):
    return markdown_table(COLUMNS, [promise.row(record) for promise in PROMISES])


def _on_intel():
    """The same on a processor of Intel, models too, and where it was measured."""
    record = read_record(DOCS / "benchmark-intel.json")
    models = tables.compared(record, "plain", (MLP, RESNET50, GPT2))
    return [*_promised(record), "", *models, "", source(record.machine)]


def _torch_in_brief():
    """What README says of fastadam.torch, and where it was measured."""
    first, second = _saved("torch-intel"), _saved("torch-amd")
    other = second["machine"]
    older = f"On {other['processor']}: {other['date']}, [with the rest](docs/torch.md)."
    return [*markdown_table(*torch_steps.brief(first, second)), "", f"{source(first['machine'])} {older}"]


def _where_agents_ran(facts):
    measured = f"Medians, both in turns, one thread, {facts['date']}"
    return f"{measured}: {facts['processor']}; {versions_in_one_line(facts)}."


def _on_processors(name, bench, where):
    """What was measured on each processor."""
    lines: list[str] = []
    for processor in ("intel", "amd"):
        lines += [*_measured(f"{name}-{processor}", bench, where), ""]
    return lines[:-1]


def _measured(name, bench, where):
    """The table of what was measured and saved under a name, and where that was."""
    record = _saved(name)
    return [*markdown_table(bench.COLUMNS, bench.rows(record["seconds"])), "", where(record["machine"])]


def _on_h100():
    """What was measured of the promises on another card, and how."""
    record = _saved("gpu-h100")
    return [*gpu_tables.promised(record), "", gpu_tables.machine(record)]


def _where(arithmetic):
    """Where the arithmetic was measured."""
    machine = arithmetic["machine"]
    return (
        f"{machine['date']}: {machine['processor']}, {machine['vector width']}, one thread, numba {machine['numba']}."
    )


def study(name: str) -> list[str]:
    """The tables that a study has saved, and its notes on them."""
    saved = _saved(name)
    lines = []
    for title, rows in saved["tables"].items():
        lines += [*markdown_table([title, *saved["columns"]], rows), ""]
    return [*lines, *saved["notes"]] if saved["notes"] else lines[:-1]


def between(text: str, name: str, lines: Iterable[str]) -> str:
    """`text` with lines between the marks of a block, `<!-- name: ... -->` and `<!-- end of name -->`."""
    marks = re.compile(rf"(<!-- {re.escape(name)}: [^\n]* -->\n).*?(<!-- end of {re.escape(name)} -->)", re.DOTALL)
    if len(marks.findall(text)) != 1:
        raise ValueError(f"the page must have the marks of {name!r} once, has them {len(marks.findall(text))} times")
    return marks.sub(lambda found: "\n".join([found[1], *lines, "", found[2]]), text)


def main() -> int:
    """Write pages and pictures, and print the promises."""
    try:
        record = read_record(DOCS / "benchmark.json")
        texts = pages(record)
    except RecordError as error:
        raise SystemExit(str(error)) from None
    for name, text in texts.items():
        (DOCS.parent / name).write_text(text, encoding="utf-8")
    for name, _, png in pictures(record):
        (DOCS / f"benchmark-{name}").write_bytes(png)
    step_picture(record).savefig(DOCS / "benchmark-step.png", dpi=110)
    rows = [promise.row(record) for promise in PROMISES]
    Console().print(report.table("Promises", COLUMNS, rows))
    return int(any(row[-1] == "BROKEN" for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
