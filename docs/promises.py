"""What the project promises of its speed, and what a record has measured of it."""

from typing import NamedTuple

from fastadam.bench import costs, parts
from fastadam.bench.registry import BASELINE
from fastadam.bench.record import Record
from fastadam.bench.tables import number
from fastadam.bench.workloads import MLP, RESNET50, flat

FUSED, LOOP = "torch, fused", "torch, loop"
OURS, MAPPING = "fastadam", "fastadam, step(grads)"
CACHED, LARGE, LARGEST = (flat(size).name for size in (1_000_000, 10_000_000, 100_000_000))
COLUMNS = ("figure", "measured", "promised", "")


class Promise(NamedTuple):
    """`measured` is to be `relation` ("at least" or "at most") `bound`; it is NaN where it was not measured."""

    text: str
    measured: float
    relation: str
    bound: float

    @property
    def verdict(self) -> str:
        if self.measured != self.measured:
            return "not measured"
        holds = self.measured >= self.bound if self.relation == "at least" else self.measured <= self.bound
        return "kept" if holds else "BROKEN"

    def row(self) -> list[str]:
        """In the order of `COLUMNS`."""
        return [self.text, number(self.measured), f"{self.relation} {self.bound:g}", self.verdict]


def promises(record: Record) -> list[Promise]:
    """Every promise, with its figure from a record."""
    return [*_shares(record), *_speeds(record), *_formats(record), *_parts(record), *_costs(record)]


def _shares(record):
    for workload, kind, bound in ((LARGE, "plain", 0.95), (LARGEST, "plain", 0.95), (LARGE, "full", 0.9)):
        result = record.find(workload, kind, OURS)
        share = record.share_of_limit(result) if result else float("nan")
        yield Promise(f"{workload}, {kind} step: share of the limit", share, "at least", bound)


def _speeds(record):
    for workload, kind, other, ours, bound in (
        (LARGE, "plain", BASELINE, OURS, 10),
        (MLP.name, "plain", BASELINE, MAPPING, 2.5),
        (MLP.name, "plain", BASELINE, OURS, 4),
        (MLP.name, "plain", FUSED, OURS, 10),
        (LARGE, "full", FUSED, OURS, 1.5),
        (RESNET50.name, "full", FUSED, OURS, 1.7),
        (MLP.name, "full", FUSED, OURS, 12),
        (LARGE, "full", LOOP, OURS, 2.8),
        (RESNET50.name, "full", LOOP, OURS, 2.8),
    ):
        text = f"{workload}, {kind} step, {ours}: times as fast as {other}"
        yield Promise(text, _ratio(record, workload, kind, other, ours), "at least", bound)


def _formats(record):
    """How near each format comes to what bounds it: its bytes, or its arithmetic, as it is measured in the cache."""
    for layout in ("bfloat16 m, v", "8-bit m, v", "bfloat16 p, g, m, v", "bfloat16 p, g, 8-bit m, v"):
        large, cached = (record.find(size, "plain", f"fastadam, {layout}") for size in (LARGEST, CACHED))
        share = float("nan")
        if large and cached:
            arithmetic = cached.nanoseconds_a_parameter / large.nanoseconds_a_parameter
            share = max(record.share_of_limit(large), arithmetic)
        yield Promise(f"{LARGEST}, {layout}: share of its limit, or of its speed in the cache", share, "at least", 0.85)


def _ratio(record, workload, kind, other, ours):
    slow, fast = record.find(workload, kind, other), record.find(workload, kind, ours)
    return slow.median / fast.median if slow and fast else float("nan")


def _parts(record):
    for size, bound in (("10,000,000 parameters", 1.1), ("4,481 parameters", 2)):
        ratio = _in_table(record, parts.GROUPS, size, "twenty groups") / _in_table(
            record, parts.GROUPS, size, "one group"
        )
        yield Promise(f"twenty groups, {size}: in terms of one", ratio, "at most", bound)
    dense = _in_table(record, parts.ROWS, parts.ROWS_CASE, "dense")
    for mode, bound in (("lazy", 20), ("exact", 10)):
        ratio = dense / _in_table(record, parts.ROWS, parts.ROWS_CASE, mode)
        text = f"{parts.ROWS_CASE}, {mode}: times as fast as the dense step"
        yield Promise(text, ratio, "at least", bound)
    call, bare = (_in_table(record, parts.CALLS, parts.CALL_CASE, name) for name in ("step()", "bare kernel"))
    yield Promise("step() on 100 parameters, in bare calls of the kernel", call / bare, "at most", 2.5)


def _costs(record):
    def cost(what, name):
        return _in_table(record, costs.TITLE, what, name)

    first = cost(costs.FIRST, OURS)
    beyond = first - cost(costs.IMPORT, costs.NUMBA)
    yield Promise("first step of a new process, seconds beyond `import numba`", beyond, "at most", 0.7)
    yield Promise("first step of a new process, part of torch's", first / cost(costs.FIRST, FUSED), "at most", 0.5)
    yield Promise(
        "20,000,000 parameters: MB that a step takes beyond its buffers", cost(costs.MEMORY, OURS) / 1e6, "at most", 1
    )


def _in_table(record, title, what, name):
    return record.tables.get(title, {}).get(what, {}).get(name, float("nan"))
