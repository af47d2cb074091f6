"""What is in the pass and what it costs; twenty groups beside one; rows of a table beside all of it."""

from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from contenders import TOUCH, fill, launch_of
from interleave import Timing, interleave, timed
from workloads import flat

import fastadam

SIZE = 10_000_000


class Pass(NamedTuple):
    """A step with something more in it, and the bytes that it reads and writes for an element, fp32."""

    text: str
    bytes_per_element: int
    optimizer: str = "Adam"
    options: dict[str, Any] = {}  # noqa: RUF012 (never written)


PLAIN = "Adam"
LIMIT = "limit: the same loads and stores, three additions"
PASSES = [
    Pass(PLAIN, 28),
    Pass("AdamW", 28, "AdamW"),
    Pass("NAdam", 28, "NAdam"),
    Pass("Adamax", 28, "Adamax"),
    Pass("RAdam", 28, "RAdam"),
    Pass("AMSGrad", 36, "Adam", {"amsgrad": True}),
    Pass("clip by value", 28, "Adam", {"clip_value": 0.5}),
    Pass("zero the gradients", 32, "Adam", {"zero_grad": True}),
    Pass("bfloat16 copy of the parameters", 30, "Adam", {"copy_dtype": "bfloat16"}),
    Pass("float16 copy of the parameters", 30, "Adam", {"copy_dtype": "float16"}),
    Pass("average of the parameters", 36, "Adam", {"ema_decay": 0.999}),
    Pass("clip by global norm", 32, "Adam", {"max_grad_norm": 1.0}),
    Pass("finite check, skip", 32, "Adam", {"nonfinite": "skip"}),
    Pass("clip by norm, finite check", 32, "Adam", {"max_grad_norm": 1.0, "nonfinite": "skip"}),
    Pass(
        "norm, check, average, bfloat16 copy, zero, AdamW",
        46,
        "AdamW",
        {
            "max_grad_norm": 1.0,
            "nonfinite": "skip",
            "ema_decay": 0.999,
            "copy_dtype": "bfloat16",
            "zero_grad": True,
        },
    ),
]


def time_passes(rounds: int = 21) -> dict[str, Timing]:
    """Every pass on the same number of parameters, in turns, each after a first step that is checked."""
    workload = flat(SIZE)
    grads = workload.random(seed=1)
    turns = {}
    for each in PASSES:
        optimizer = getattr(fastadam, each.optimizer)(workload.random(seed=0), **each.options)
        restore = partial(fill, optimizer, grads)
        restore()
        _check_step(each, optimizer)
        restore()
        turns[each.text] = timed(optimizer.step, restore if "zero_grad" in each.options else None)
    limit = fill(fastadam.Adam(workload.random(seed=0)), grads)
    turns[LIMIT] = timed(launch_of(limit, TOUCH))
    return interleave(turns, rounds)


def _check_step(each, optimizer):
    """Take the first step, in which every member moves against the gradient, whatever else is in the pass."""
    before, gradient = optimizer.params["flat"][:1_000].astype(np.float64), optimizer.grads["flat"][:1_000].copy()
    optimizer.step()
    moved = before - optimizer.params["flat"][:1_000]
    decayed = before * optimizer.param_groups[0]["weight_decay"] * optimizer.param_groups[0]["lr"]
    assert np.all(np.sign(moved - decayed) == np.sign(gradient)), each.text


def pass_rows(timings: dict[str, Timing]) -> list[list[str]]:
    """What is in the step, bytes an element, time, both in terms of plain Adam, and the share of the limit."""
    plain, limit = timings[PLAIN].median, timings[LIMIT].median
    rows = []
    for each in PASSES:
        seconds, bytes_ratio = timings[each.text].median, each.bytes_per_element / 28
        rows.append(
            [
                each.text,
                str(each.bytes_per_element),
                f"{bytes_ratio:.2f}",
                f"{1e3 * seconds:.2f} ms",
                f"{seconds / plain:.2f}",
                f"{bytes_ratio * limit / seconds:.2f}",
            ]
        )
    return rows


PASS_COLUMNS = ["in the step", "bytes", "of plain", "time", "of plain", "of the limit"]


def _grouped(count: int, total: int) -> Any:
    """An optimizer of `total` parameters in `count` tensors and as many groups, or in one group if `count` is 1."""
    rng = np.random.default_rng(0)
    sizes = [total // 20] * 19 + [total - total // 20 * 19]
    tensors = {f"t{index}": rng.standard_normal(size, np.float32) for index, size in enumerate(sizes)}
    if count == 1:
        return fastadam.AdamW(tensors)
    groups = [
        {"params": {name: tensor}, "lr": 1e-3 * (1 + index), "weight_decay": 0.01 * index}
        for index, (name, tensor) in enumerate(tensors.items())
    ]
    return fastadam.AdamW(groups)


def group_ratio(total: int, rounds: int) -> float:
    """The time of a step with twenty groups of one tensor each, in terms of that with one group of these tensors."""
    turns = {}
    for count in (1, 20):
        optimizer = _grouped(count, total)
        for name, view in optimizer.params.items():
            optimizer.grads[name] = 0.5 * view
        turns[str(count)] = timed(optimizer.step)
    timings = interleave(turns, rounds)
    return timings["20"].median / timings["1"].median


def sparse_ratios(rounds: int = 15) -> tuple[float, float]:
    """A dense step of a table of 1,000,000 rows of 64, in terms of a lazy and of an exact one over 1% of the rows.

    The exact table is in the state of a long run: its rows were last stepped 1 to 100 steps ago.
    """
    rows, width, touched = 1_000_000, 64, 10_000
    rng = np.random.default_rng(0)
    tables = {
        mode: fastadam.Adam({"table": np.ones((rows, width), np.float32)}, sparse=mode) for mode in ("lazy", "exact")
    }
    dense = fastadam.Adam({"table": np.ones((rows, width), np.float32)})
    values = rng.standard_normal((touched, width), np.float32)
    for optimizer in (dense, *tables.values()):
        optimizer.grads["table"] = 1e-3
        for _ in range(3):
            optimizer.step()
        optimizer._plans[0].carry(0, 10_000, 1.0)
    for start in range(0, rows, touched):
        tables["exact"].step({"table": fastadam.SparseRows(np.arange(start, start + touched), values)})

    def sparse_step(optimizer):
        indices = rng.choice(rows, touched, replace=False)
        return lambda: optimizer.step({"table": fastadam.SparseRows(indices, values)})

    times: dict[str, list[float]] = {"dense": [], "lazy": [], "exact": []}
    for _ in range(rounds):
        times["dense"].append(_seconds(dense.step))
        for mode, optimizer in tables.items():
            times[mode].append(_seconds(sparse_step(optimizer)))
    medians = {name: float(np.median(values)) for name, values in times.items()}
    return medians["dense"] / medians["lazy"], medians["dense"] / medians["exact"]


def _seconds(call):
    start = perf_counter()
    call()
    return perf_counter() - start


if __name__ == "__main__":
    for row in pass_rows(time_passes()):
        print(" | ".join(row))
    print("20 groups:", group_ratio(4_481, 101), group_ratio(SIZE, 21))
    print("sparse:", sparse_ratios())
