"""The picture of README and of the first page: the step beside its peers."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from promises import FUSED, LOOP, MAPPING, OURS

from fastadam.bench.pictures import COLORS
from fastadam.bench.record import Record, RecordError
from fastadam.bench.workloads import MLP, RESNET50, flat

LIMIT = "limit, float32"
PEERS = ("NumPy, textbook", "Keras", LOOP, "optax, jit", "DeepSpeed CPUAdam", FUSED, MAPPING, OURS, LIMIT)
PANELS = ((MLP, "plain"), (flat(10_000_000), "plain"), (RESNET50, "plain"), (RESNET50, "full"))


def step_picture(record: Record) -> Figure:
    """Bars of the time of a step, in that of fastadam, for some contenders, workloads and kinds of steps."""
    figure, panels = plt.subplots(1, len(PANELS), figsize=(15, 3.4), layout="constrained")
    for axes, (workload, kind) in zip(panels, PANELS, strict=True):
        found = {name: record.find(workload.name, kind, name) for name in PEERS}
        times = {name: result.median for name, result in found.items() if result}
        if OURS not in times:
            raise RecordError(f"the record must be one of the full suite, but has no {workload.name}, {kind}, {OURS}")
        ratios = [time / times[OURS] for time in times.values()]
        colors = ["0.6" if name == LIMIT else COLORS[name] for name in times]
        bars = axes.barh(["the limit of the memory" if name == LIMIT else name for name in times], ratios, color=colors)
        axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
        axes.set(xscale="log", xlim=(0.15, 4 * max(ratios)))
        axes.set_title(f"{workload.name}: {kind} step", fontsize=10)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.invert_yaxis()
    processor = record.machine["processor"]
    figure.supxlabel(f"time of a step, fastadam = 1, on a logarithmic scale; {processor}, 2 threads", fontsize=9)
    return figure
