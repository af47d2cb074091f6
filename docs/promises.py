"""What the project promises about its speed, and what a record has measured."""

from collections.abc import Callable
from typing import NamedTuple

from fastadam.bench import costs
from fastadam.bench.record import Record
from fastadam.bench.registry import BASELINE
from fastadam.bench.tables import number
from fastadam.bench.workloads import GROUPED, MLP, RESNET50, TABLE, flat

FUSED, LOOP = "torch, fused", "torch, loop"
OURS, MAPPING = "fastadam", "fastadam, step(grads)"
CALL, CACHED, LARGE, LARGEST = (flat(size).name for size in (100, 1_000_000, 10_000_000, 100_000_000))
COLUMNS = ("figure", "measured", "promised", "")
NAN = float("nan")
# Computes a figure from a record; NaN if it was not measured.
Figure = Callable[[Record], float]


def share(workload: str, kind: str) -> Figure:
    """The share of the limit."""

    def figure(record):
        result = record.find(workload, kind, OURS)
        return record.share_of_limit(result) if result else NAN

    return figure


def quotient(workload: str, kind: str, above: str, below: str) -> Figure:
    """The time of contender `above`, divided by that of `below`."""

    def figure(record):
        one, other = record.find(workload, kind, above), record.find(workload, kind, below)
        return one.median / other.median if one and other else NAN

    return figure


def bounded(layout: str) -> Figure:
    """How near a format comes to its bound: to its bytes, or to its arithmetic, which is measured in the cache."""

    def figure(record):
        large, cached = (record.find(size, "plain", f"fastadam, {layout}") for size in (LARGEST, CACHED))
        if not (large and cached):
            return NAN
        return max(record.share_of_limit(large), cached.nanoseconds_a_parameter / large.nanoseconds_a_parameter)

    return figure


def cost(record: Record, what: str, name: str) -> float:
    """A fixed cost of a library."""
    return record.tables.get(costs.TITLE, {}).get(what, {}).get(name, NAN)


class Promise(NamedTuple):
    """`figure` is to be `relation` ("at least" or "at most") `bound`."""

    text: str
    figure: Figure
    relation: str
    bound: float

    def row(self, record: Record) -> list[str]:
        """The cells of a row, in the order of `COLUMNS`."""
        measured = self.figure(record)
        return [self.text, number(measured), f"{self.relation} {self.bound:g}", self.verdict(measured)]

    def verdict(self, measured: float) -> str:
        """Say whether the promise is kept."""
        if measured != measured:
            return "not measured"
        holds = measured >= self.bound if self.relation == "at least" else measured <= self.bound
        return "kept" if holds else "BROKEN"


def _faster(workload, kind, ours, other, bound):
    text = f"{workload}, {kind} step, {ours}: times as fast as {other}"
    return Promise(text, quotient(workload, kind, other, ours), "at least", bound)


def _format(layout):
    text = f"{LARGEST}, {layout}: share of its limit, or of its speed in the cache"
    return Promise(text, bounded(layout), "at least", 0.85)


def _groups(workload, size, bound):
    text = f"twenty groups, {size:,} parameters: in terms of one"
    return Promise(
        text, quotient(workload, "groups", "fastadam, a group each", "fastadam, one group"), "at most", bound
    )


def _rows(mode, bound):
    text = f"1% of the rows of 1,000,000 x 64, {mode}: times as fast as the dense step"
    return Promise(text, quotient(TABLE.name, "rows", OURS, f"fastadam, {mode} rows"), "at least", bound)


def _beyond_numba(record):
    return cost(record, costs.FIRST, OURS) - cost(record, costs.IMPORT, costs.NUMBA)


def _part_of_torch(record):
    return cost(record, costs.FIRST, OURS) / cost(record, costs.FIRST, FUSED)


PROMISES = (
    Promise(f"{LARGE}, plain step: share of the limit", share(LARGE, "plain"), "at least", 0.95),
    Promise(f"{LARGEST}, plain step: share of the limit", share(LARGEST, "plain"), "at least", 0.95),
    Promise(f"{LARGE}, full step: share of the limit", share(LARGE, "full"), "at least", 0.9),
    _faster(LARGE, "plain", OURS, BASELINE, 10),
    _faster(MLP.name, "plain", MAPPING, BASELINE, 2.5),
    _faster(MLP.name, "plain", OURS, BASELINE, 4),
    _faster(MLP.name, "plain", OURS, FUSED, 10),
    _faster(LARGE, "full", OURS, FUSED, 1.5),
    _faster(RESNET50.name, "full", OURS, FUSED, 1.7),
    _faster(MLP.name, "full", OURS, FUSED, 12),
    _faster(LARGE, "full", OURS, LOOP, 2.8),
    _faster(RESNET50.name, "full", OURS, LOOP, 2.8),
    _format("bfloat16 m, v"),
    _format("8-bit m, v"),
    _format("bfloat16 p, g, m, v"),
    _format("bfloat16 p, g, 8-bit m, v"),
    _groups(GROUPED[0].name, 10_000_000, 1.1),
    _groups(GROUPED[1].name, 4_481, 2),
    _rows("lazy", 20),
    _rows("exact", 10),
    Promise(
        "step() on 100 parameters, in bare calls of the kernel",
        quotient(CALL, "calls", OURS, "kernel alone"),
        "at most",
        2.5,
    ),
    Promise("first step of a new process, seconds beyond `import numba`", _beyond_numba, "at most", 0.7),
    Promise("first step of a new process, part of torch's", _part_of_torch, "at most", 0.5),
    Promise(
        "20,000,000 parameters: MB that a step takes beyond its buffers",
        lambda record: cost(record, costs.MEMORY, OURS) / 1e6,
        "at most",
        1,
    ),
)
