"""A record as rows, and as Markdown."""

from collections.abc import Iterable, Mapping
from typing import Any

from fastadam.bench.layouts import KINDS
from fastadam.bench.machine import in_one_line
from fastadam.bench.record import WIDE, Record, Result
from fastadam.bench.registry import BASELINE

COLUMNS = ("contender", "time", "quartiles", "ns/param", "GB/s", "of limit", "x baseline")
WIDE_MARK = "~"


def title_of(result: Result) -> str:
    """Workload and kind of step."""
    size = f"{result.size:,}"
    workload = result.workload if size in result.workload else f"{result.workload} ({size} parameters)"
    return f"{workload}, {KINDS.get(result.kind, result.kind)}"


def case_tables(record: Record, baseline: str = BASELINE) -> Iterable[tuple[str, list[list[str]]]]:
    """(title, rows in the order of `COLUMNS`) of each case."""
    for results in record.cases():
        yield title_of(results[0]), [row(record, result, baseline) for result in results]


def row(record: Record, result: Result, baseline: str = BASELINE) -> list[str]:
    """The cells of a result."""
    low, high = result.quartiles
    unit, factor, digits = unit_of(result.median)
    return [
        result.contender,
        f"{factor * result.median:.{digits}f} {unit}",
        f"{WIDE_MARK} " * result.is_wide + f"{factor * low:.{digits}f} to {factor * high:.{digits}f}",
        f"{result.nanoseconds_a_parameter:.3f}",
        f"{result.gigabytes_a_second:.1f}",
        number(record.share_of_limit(result)),
        number(record.ratio(result, baseline)),
    ]


def duration(seconds: float) -> str:
    """A time with the unit that suits it."""
    unit, factor, digits = unit_of(seconds)
    return f"{factor * seconds:.{digits}f} {unit}"


def unit_of(seconds: float) -> tuple[str, float, int]:
    """(unit, how many are a second, digits to show)."""
    for unit, factor, digits in (("ns", 1e9, 0), ("us", 1e6, 1), ("ms", 1e3, 2)):
        if seconds * factor < 999.5:
            return unit, factor, digits
    return "s", 1.0, 2


def number(value: float) -> str:
    """Two digits, or a dash for NaN."""
    return "-" if value != value else f"{value:.2f}"


def notes(record: Record, baseline: str = BASELINE) -> list[str]:
    """Where the tables come from, and how to read them."""
    lines = [source(record.machine)]
    if record.bandwidth:
        listed = ", ".join(f"{name} {value:.1f} GB/s" for name, value in record.bandwidth.items())
        lines.append(f"Memory bandwidth in the same run, all threads, float32: {listed}.")
    lines.append(
        "A limit makes the same loads and stores with trivial arithmetic, in the same run: `of limit` is its time in "
        "that of the step. GB/s are of the bytes that have to be moved; `x baseline` is how many times as fast as "
        f"{baseline}. {WIDE_MARK} marks quartiles more than {100 * WIDE:.0f}% of the median apart."
    )
    return lines


def absences(record: Record) -> list[str]:
    """What was not measured, and why."""
    lines = [f"Missing, {why}: {'; '.join(names)}." for why, names in by_value(record.missing).items()]
    lines += [f"Failed: {line}." for line in record.failed]
    lines += [f"Skipped: {line}." for line in record.skipped]
    left_out = by_value({case: "; ".join(names) for case, names in record.left_out.items()})
    return [*lines, *(f"Left out of {'; '.join(cases)}: {names}." for names, cases in left_out.items())]


def by_value(mapping: Mapping[str, str]) -> dict[str, list[str]]:
    """Value -> the keys that have it."""
    keys: dict[str, list[str]] = {}
    for key, value in mapping.items():
        keys.setdefault(value, []).append(key)
    return keys


def source(machine: Mapping[str, Any]) -> str:
    """How it was measured, when and on what."""
    return f"Medians, all contenders in turns, {machine.get('date', 'undated')}: {in_one_line(machine)}."


def to_markdown(record: Record, baseline: str = BASELINE) -> str:
    """The whole record as Markdown."""
    lines = ["# Benchmark of Adam steps", ""]
    for title, rows in case_tables(record, baseline):
        lines += [f"## {title}", "", *markdown_table(COLUMNS, rows), ""]
    for title, columns, rows in other_tables(record):
        lines += [f"## {title}", "", *markdown_table(columns, rows), ""]
    absent = ["", "## Not measured", "", *(f"- {line}" for line in absences(record))] if absences(record) else []
    return "\n".join([*lines, "\n\n".join(notes(record, baseline)), *absent, ""])


def markdown_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """The lines of a table whose first column is text and whose others are numbers."""
    columns = list(columns)
    cells = [columns, ["---", *["---:"] * (len(columns) - 1)], *map(list, rows)]
    return ["| " + " | ".join(line) + " |" for line in cells]


def other_tables(record: Record) -> Iterable[tuple[str, list[str], list[list[str]]]]:
    """(title, columns, rows) of each of `Record.tables`."""
    for title, table in record.tables.items():
        names = list(dict.fromkeys(name for values in table.values() for name in values))
        rows = [[what, *(_value(what, values.get(name)) for name in names)] for what, values in table.items()]
        yield title, ["", *names], rows


def _value(what, value):
    if value is None:
        return "-"
    return f"{value / 1e6:.1f} MB" if what.startswith("memory") else duration(value)
