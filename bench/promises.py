"""What the project promises of its speed, and what a run measured of it."""

from functools import partial
from typing import NamedTuple

import formats
import numpy as np
from interleave import interleave, timed
from memory import megabytes_grown
from passes import SIZE, group_ratio, sparse_ratios
from results import BASELINE, Results
from workloads import MLP, RESNET50, flat

import fastadam
from fastadam.kernels import cpu
from fastadam.kernels.update import ADAM


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


def step_promises(results: Results, seconds: dict[str, float]) -> list[Promise]:
    """What is promised of a plain step, with its figure from its timings and the seconds of `startup.measure`."""
    mapping, written = "fastadam, step(grads)", "fastadam, step()"
    first, nan = seconds["fastadam, warm cache"], float("nan")
    rows = []
    for workload in (flat(10_000_000), flat(50_000_000)):
        ratio = results.ratio(workload, "limit", written)
        rows.append(Promise(f"{workload.name}: share of the limit", ratio, "at least", 0.95))
        ratio = results.ratio(workload, BASELINE, written)
        rows.append(Promise(f"{workload.name}: times as fast as textbook NumPy", ratio, "at least", 10))
    for text, baseline, ours, bound in (
        ("step(grads): times as fast as textbook NumPy", BASELINE, mapping, 2.5),
        ("step(): times as fast as textbook NumPy", BASELINE, written, 4),
        ("step(): times as fast as torch fused", "torch fused", written, 10),
    ):
        rows.append(Promise(f"{MLP.name}, {text}", results.ratio(MLP, baseline, ours), "at least", bound))
    return [
        *rows,
        Promise("step() on 100 parameters, in bare calls of the kernel", call_cost(), "at most", 2.5),
        Promise("10,000,000 parameters: MB that steps add to the memory", megabytes_grown(), "at most", 1),
        Promise(
            "first step of a new process, seconds beyond `import numba`",
            first - seconds["import numba"],
            "at most",
            0.7,
        ),
        Promise(
            "first step of a new process, part of torch's", first / seconds.get("torch fused", nan), "at most", 0.5
        ),
    ]


def sequence_promises(results: Results) -> list[Promise]:
    """What is promised of the full step of a training loop, which takes 44 bytes an element where torch takes 68."""
    ours, large = "fastadam, one step()", flat(10_000_000)
    text = "full step, {}: times as fast as {}"
    rows = [
        Promise(text.format(workload.name, baseline), results.ratio(workload, baseline, ours), "at least", bound)
        for workload, baseline, bound in (
            (large, "torch, fastest of each", 1.5),
            (RESNET50, "torch, fastest of each", 1.7),
            (large, "torch, loops", 2.8),
            (RESNET50, "torch, loops", 2.8),
            (MLP, "torch, fastest of each", 12),
        )
    ]
    share = results.ratio(large, "limit of 44 bytes", ours)
    return [*rows, Promise(f"full step, {large.name}: share of the limit of its bytes", share, "at least", 0.9)]


def format_promises(results: Results) -> list[Promise]:
    """What is promised of storage in fewer bytes, beside torch's fused step in float32."""
    large = flat(formats.SIZE)
    return [
        Promise(
            f"{large.name}, {name}: times as fast as {formats.TORCH}",
            results.ratio(large, formats.TORCH, f"fastadam, {name}"),
            "at least",
            bound,
        )
        for name, bound in formats.PROMISED.items()
    ]


def launch_promises() -> list[Promise]:
    """What is promised of groups and of rows."""
    lazy, exact = sparse_ratios()
    text = "rows: 1% of a 1,000,000 x 64 table, {}: times as fast as the dense step"
    return [
        Promise("twenty groups, 10,000,000 parameters, in terms of one", group_ratio(SIZE, 31), "at most", 1.1),
        Promise("twenty groups, 4,481 parameters, in terms of one", group_ratio(4_481, 201), "at most", 2),
        Promise(text.format("lazy"), lazy, "at least", 20),
        Promise(text.format("exact"), exact, "at least", 10),
    ]


def call_cost() -> float:
    """`Adam.step()` on 100 parameters, in bare calls of the compiled serial kernel."""
    optimizer = fastadam.Adam({"w": np.ones(100, np.float32)})
    optimizer.grads["w"] = np.ones(100, np.float32)
    (plan,) = optimizer._plans
    serial, _ = cpu.twins(ADAM)
    ((_, *arguments),) = plan.launches(True)
    flats, blocks, rows = arguments
    addresses = optimizer._gradients[0].written().addresses
    bare = partial(serial, flats, addresses, blocks, rows, plan.hyper, plan.carried, plan.table, 1.0)
    calls = {"bare": timed(bare), "step": timed(lambda: optimizer.step())}
    timings = interleave(calls, rounds=201)
    return timings["step"].median / timings["bare"].median
