"""A record as pictures: time against size, models, storage formats, threads, tensors."""

import io
from collections.abc import Iterator

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

from fastadam.bench.contenders.fastadam_adam import ALL
from fastadam.bench.record import Record, Result
from fastadam.bench.registry import CONTENDERS
from fastadam.bench.workloads import SPLITS

FLAT = "flat"
# The number of models in a row.
PANELS = 3


def pictures(record: Record) -> Iterator[tuple[str, str, bytes]]:
    """(file name, title, PNG) of each picture for which the record has something."""
    makers = {
        "sizes": ("Time of a plain step against the number of parameters", _sizes),
        "growth": ("fastadam: nanoseconds a parameter against the number of parameters", _growth),
        "splits": ("1,000,000 parameters in more and more tensors", _splits),
        "models": ("Time of a step of models", _models),
        "storage": ("Time of a step against the bytes that it moves", _storage),
    }
    for name, (title, draw) in makers.items():
        figure = draw(record)
        if figure is not None:
            stream = io.BytesIO()
            figure.savefig(stream, format="png", dpi=110)
            plt.close(figure)
            yield f"{name}.png", title, stream.getvalue()


# One color for a contender in all pictures.
COLORS = {name: plt.cm.tab20(index % 20) for index, name in enumerate(CONTENDERS)} | {"fastadam": "crimson"}


def _series(record, chosen):
    """Contender -> results of plain steps on the workloads that are `chosen`."""
    series: dict[str, list[Result]] = {}
    for result in record.results:
        if result.kind == "plain" and not result.contender.startswith("memory") and chosen(result):
            series.setdefault(result.contender, []).append(result)
    return {name: results for name, results in series.items() if len(results) > 1}


def _style(name):
    if name.startswith("limit"):
        return {"color": "black", "linestyle": ":" if name == "limit, float32" else (0, (1, 4)), "linewidth": 1.4}
    if name.startswith("fastadam"):
        return {"linewidth": 2.2 if name == "fastadam" else 1.4, "marker": "o", "markersize": 4}
    return {"linewidth": 1.3, "marker": ".", "linestyle": "--"}


def _lines(series, value, **labels):
    figure, axes = plt.subplots(figsize=(10, 6), layout="constrained")
    for name, points in series.items():
        style = {"color": COLORS.get(name), **_style(name)}
        # The limits of the storage formats are named once.
        named = name if not name.startswith("limit") or "float32" in name else "limits of the formats"
        label = None if named in axes.get_legend_handles_labels()[1] else named
        axes.plot(*zip(*map(value, points), strict=True), label=label, **style)
    axes.set(xscale="log", yscale="log", **labels)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _sizes(record):
    series = _series(record, lambda result: result.workload.startswith(FLAT))
    if not series:
        return None
    return _lines(series, lambda r: (r.size, 1e6 * r.median), xlabel="parameters", ylabel="us a step")


def _growth(record):
    series = _series(record, lambda r: r.workload.startswith(FLAT) and r.contender.startswith(("fastadam", "limit")))
    if not series:
        return None
    return _lines(series, lambda r: (r.size, r.nanoseconds_a_parameter), xlabel="parameters", ylabel="ns a parameter")


def _splits(record):
    counts = {workload.name: len(workload.shapes) for workload in SPLITS}
    series = _series(record, lambda r: r.workload in counts)
    if not series:
        return None
    return _lines(series, lambda r: (counts[r.workload], 1e6 * r.median), xlabel="tensors", ylabel="us a step")


def _models(record):
    cases = [
        {result.contender: result for result in results}
        for results in record.cases()
        if results[0].kind in ALL and not results[0].workload.startswith(FLAT) and results[0].size != SPLITS[0].size
    ]
    cases = [case for case in cases if "fastadam" in case]
    if not cases:
        return None
    rows = -(-len(cases) // PANELS)
    figure, panels = plt.subplots(rows, PANELS, figsize=(14, 3.6 * rows), layout="constrained", squeeze=False)
    for axes in panels.flat[len(cases) :]:
        axes.remove()
    for axes, case in zip(panels.flat, cases, strict=False):
        ours = case["fastadam"]
        ratios = {name: result.median / ours.median for name, result in case.items() if not result.is_limit}
        bars = axes.barh(list(ratios), list(ratios.values()), color=[COLORS.get(name) for name in ratios])
        axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
        axes.set(xscale="log", xlim=(0.3, 2 * max(ratios.values())))
        axes.set_title(f"{ours.workload}, {ours.kind}", fontsize=9)
        axes.tick_params(labelsize=7)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.invert_yaxis()
        axes.grid(alpha=0.3, axis="x", which="both")
    figure.supxlabel("time of a step, fastadam = 1")
    return figure


def _storage(record):
    """Draw the largest of the flat workloads that have most formats."""
    flats = [case for case in record.cases() if case[0].kind == "plain" and case[0].workload.startswith(FLAT)]
    if not flats:
        return None
    results = max(flats, key=lambda case: (len({r.bytes for r in case}), case[0].size))
    ours = [r for r in results if r.contender == "fastadam" or (r.contender.startswith("fastadam") and r.bytes != 28)]
    if len({r.bytes for r in ours}) < 3:
        return None
    # The limits of one thread and of memory alone are left out.
    limits = sorted((r for r in results if r.contender in {each.limit for each in ours}), key=lambda r: r.bytes)
    figure, axes = plt.subplots(figsize=(10, 6), layout="constrained")
    axes.plot(*_points(limits), "k_:", markersize=14, label="limit")
    axes.plot(*_points(ours), "o", color=COLORS["fastadam"], markersize=8, label="fastadam")
    for index, result in enumerate(sorted(ours, key=lambda r: r.bytes)):
        name, place = result.limit.removeprefix("limit, "), (result.bytes, 1e3 * result.median)
        # Names are by turns above on the left and below on the right, where they do not meet.
        side, shift = ("left", (8, -16)) if index % 2 else ("right", (-4, 8))
        axes.annotate(name, place, xytext=shift, textcoords="offset points", fontsize=9, horizontalalignment=side)
    others = [r for r in results if not r.contender.startswith("fastadam") and not r.is_limit]
    for result in (r for r in others if r.median < 2 * max(each.median for each in ours)):
        axes.plot(*_points([result]), "s", color=COLORS.get(result.contender), label=result.contender)
    axes.set(xlim=(0, 32), ylim=(0, None), xlabel="bytes that a step moves for each parameter", ylabel="ms a step")
    axes.set_title(f"{results[0].size:,} parameters", fontsize=10)
    axes.legend(loc="upper left")
    axes.grid(alpha=0.3)
    return figure


def _points(results):
    return [result.bytes for result in results], [1e3 * result.median for result in results]
