"""`fastadam bench`: the suite for people."""

from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fastadam.bench.compare import Change, changes
from fastadam.bench.costs import TITLE, costs
from fastadam.bench.layouts import KINDS
from fastadam.bench.machine import facts
from fastadam.bench.record import Record, RecordError, read_record
from fastadam.bench.registry import CONTENDERS
from fastadam.bench.report import keep, show, table, write
from fastadam.bench.suite import Case, full_cases, quick_cases, run_case
from fastadam.bench.workers import Workers
from fastadam.bench.workloads import WORKLOADS

FAILED, INTERRUPTED = 1, 130


class BenchError(Exception):
    """What was asked for cannot be done; the message says why."""


def choose(
    full: bool, contenders: Sequence[str], workloads: Sequence[str], kinds: Sequence[str], rounds: int | None
) -> list[Case]:
    """The cases of the quick or the full suite, narrowed down to names or beginnings of names."""
    contenders = named("--contender", contenders, CONTENDERS)
    workloads = named("--workload", workloads, WORKLOADS)
    kinds = named("--kind", kinds, KINDS)
    cases = full_cases()
    # What somebody names is run, even if the quick suite does not have it.
    if not full and _has_all(quick_cases(), contenders, workloads, kinds):
        cases = quick_cases()
    chosen = []
    for case in cases:
        names = tuple(name for name in contenders if case.kind in CONTENDERS[name].kinds)
        if (workloads and case.workload.name not in workloads) or (kinds and case.kind not in kinds):
            continue
        if contenders:
            case = case._replace(contenders=names, left_out=())
        if case.contenders:
            chosen.append(case._replace(rounds=rounds or case.rounds))
    if not chosen:
        raise BenchError("nothing is left to run: the suite has no such contender on such a workload and kind of step")
    return chosen


def _has_all(cases, contenders, workloads, kinds):
    """Whether each contender can take part in one of the cases, and each workload and kind of step is among them."""
    there = {case.kind for case in cases}
    return (
        set(kinds) <= there
        and set(workloads) <= {case.workload.name for case in cases}
        and all(there & set(CONTENDERS[name].kinds) for name in contenders)
    )


def named(option: str, wanted: Iterable[str], known: Iterable[str]) -> list[str]:
    """The names in `known` that are one of `wanted`, or else begin with it; upper and lower case are alike."""
    found = []
    for text in wanted:
        exact = [name for name in known if name.casefold() == text.casefold()]
        matching = exact or [name for name in known if name.casefold().startswith(text.casefold())]
        if not matching:
            raise BenchError(f"`{option}` must be one of these, or how they begin, got {text!r}: {'; '.join(known)}")
        found += matching
    return found


def check_writable(folder: Path) -> None:
    """Make `folder`, and raise unless files can be written into it and pictures can be drawn."""
    import_module("matplotlib")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".fastadam"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise BenchError(f"`--save` must be a directory that can be written to, got {folder}: {reason}") from error


def read(option: str, path: Path | None) -> Record | None:
    """The record in the file that an option names."""
    try:
        return read_record(path) if path else None
    except RecordError as error:
        raise BenchError(f"`{option}`: {error}") from error


def bench(
    cases: list[Case],
    *,
    save: Path | None,
    load: Path | None,
    compare: Path | None,
    threshold: float,
    baseline: str,
    all_costs: bool,
    console: Console,
) -> int:
    """Run or load, show, save and compare; return the exit status."""
    names = named("--baseline", [baseline], CONTENDERS)
    if len(names) > 1:
        raise BenchError(
            f"`--baseline` must be one contender, but {baseline!r} is how several begin: {'; '.join(names)}"
        )
    (baseline,) = names
    earlier, record = read("--compare", compare), read("--load", load)
    if save:
        check_writable(save)
    if record is None:
        record = Record(facts())
        outcome = _measure(cases, record, all_costs, console, save)
    else:
        outcome = FAILED if record.failed else 0
    show(record, baseline, console)
    if save:
        console.print(f"Saved in {save}: {', '.join(write(record, baseline, save))}.", markup=False)
    if outcome:
        console.print("Not all of it was measured; what was is above.")
    slower = _compared(earlier, record, threshold, console) if earlier else 0
    return outcome or slower


def _measure(cases, record, all_costs, console, save):
    """Fill `record` and save it after each case; return 0, INTERRUPTED after Ctrl-C, or FAILED if a part is missing."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    turns = sum(case.rounds for case in cases for name in case.with_limits if CONTENDERS[name].missing() is None)
    with Progress(*columns, console=console, transient=True) as progress, Workers() as workers:
        bar = progress.add_task("", total=turns)
        try:
            for case in cases:
                progress.update(bar, description=case.title)
                run_case(workers, case, record, lambda: progress.advance(bar))
                keep(record, save)
            if all_costs:
                progress.update(bar, description=TITLE, total=None)
                costs(record.tables.setdefault(TITLE, {}))
        except KeyboardInterrupt:
            return INTERRUPTED
        except Exception:
            # A later error does not lose what was measured before it.
            console.print_exception(max_frames=4)
            return FAILED
    return FAILED if record.failed or record.skipped else 0


def _compared(earlier, record, threshold, console):
    """Print how shares of the limit have changed; return 1 if one has fallen by more than the threshold."""
    found = changes(earlier, record)
    if not found:
        raise BenchError("`--compare` must be a run with results of fastadam that this one has too, got none of them")
    slower = [change for change in found if change.is_slower(threshold)]
    columns = ("workload", "kind", "contender", "share of the limit before", "now", "ratio", "")
    rows = [_change_row(change, change in slower) for change in found]
    console.print(table("Share of the limit, before and now", columns, rows))
    lost = f"more than {100 * threshold:.0f}% of their share of the limit, beyond their quartiles"
    console.print(f"{len(slower)} of {len(found)} have lost {lost}.")
    return int(bool(slower))


def _change_row(change: Change, slower: bool) -> list[str]:
    numbers = [f"{change.before:.2f}", f"{change.after:.2f}", f"{change.ratio:.2f}"]
    return [change.workload, change.kind, change.contender, *numbers, "SLOWER" if slower else ""]
