"""Twenty groups beside one, some rows of a table beside all of it, a call beside the launch that is in it."""

from collections.abc import Iterator
from functools import partial
from itertools import cycle
from statistics import median

import numpy as np

import fastadam
from fastadam.bench.interleave import interleave, timed
from fastadam.bench.machine import memory_free
from fastadam.bench.record import Record
from fastadam.kernels import cpu
from fastadam.kernels.texts.update import ADAM

Table = dict[str, dict[str, float]]
GROUPS, ROWS, CALLS = "Parameter groups", "Rows of a table", "A call and a launch"
# Bytes of three optimizers and their tables.
ROWS_MEMORY = 5_000_000_000
ROWS_CASE = "1% of the rows of 1,000,000 x 64"
CALL_CASE = "100 parameters"


def parts(record: Record) -> Iterator[tuple[str, Table]]:
    """(title, what -> how -> median seconds of a step) one after the other; `record` is told of what is skipped."""
    yield GROUPS, {f"{size:,} parameters": _groups(size, rounds) for size, rounds in ((10_000_000, 31), (4_481, 201))}
    yield CALLS, {CALL_CASE: _calls()}
    if memory_free() < ROWS_MEMORY:
        record.skipped.append(
            f"{ROWS}: needs {ROWS_MEMORY / 1e9:.0f} GB of memory, {memory_free() / 1e9:.1f} GB are left"
        )
    else:
        yield ROWS, {ROWS_CASE: _rows()}


def _groups(total, rounds):
    turns = {}
    for count, name in ((1, "one group"), (20, "twenty groups")):
        optimizer = _grouped(count, total)
        for parameter, view in optimizer.params.items():
            optimizer.grads[parameter] = 0.5 * view
        turns[name] = timed(optimizer.step)
    return _medians(turns, rounds)


def _grouped(count, total):
    """An optimizer of `total` parameters in twenty tensors, and as many groups or one."""
    rng = np.random.default_rng(0)
    sizes = [total // 20] * 19 + [total - total // 20 * 19]
    tensors = {f"t{index}": rng.standard_normal(size, np.float32) for index, size in enumerate(sizes)}
    if count == 1:
        return fastadam.AdamW(tensors)
    return fastadam.AdamW(
        [
            {"params": {name: tensor}, "lr": 1e-3 * (1 + index), "weight_decay": 0.01 * index}
            for index, (name, tensor) in enumerate(tensors.items())
        ]
    )


def _rows(rounds=15):
    """A dense step of a table, and a lazy and an exact one over 1% of the rows, which are others each time.

    The exact table is in the state of a long run: its rows were last stepped 1 to 100 steps ago.
    """
    rows, width, touched = 1_000_000, 64, 10_000
    rng = np.random.default_rng(0)
    modes = {"dense": "lazy", "lazy": "lazy", "exact": "exact"}
    tables = {
        name: fastadam.Adam({"table": np.ones((rows, width), np.float32)}, sparse=mode) for name, mode in modes.items()
    }
    values = rng.standard_normal((touched, width), np.float32)
    for optimizer in tables.values():
        optimizer.grads["table"] = 1e-3
        for _ in range(3):
            optimizer.step()
        optimizer._plans[0].carry(0, 10_000, 1.0)
    for start in range(0, rows, touched):
        tables["exact"].step({"table": fastadam.SparseRows(np.arange(start, start + touched), values)})
    chosen = [rng.choice(rows, touched, replace=False) for _ in range(4 * rounds)]

    def sparse(optimizer):
        each = cycle(chosen)
        return lambda: optimizer.step({"table": fastadam.SparseRows(next(each), values)})

    turns = {
        "dense": timed(tables["dense"].step),
        "lazy": timed(sparse(tables["lazy"])),
        "exact": timed(sparse(tables["exact"])),
    }
    return _medians(turns, rounds)


def _calls():
    """`Adam.step()`, and the bare call of the compiled serial kernel that is in it."""
    optimizer = fastadam.Adam({"w": np.ones(100, np.float32)})
    optimizer.grads["w"] = np.ones(100, np.float32)
    (plan,) = optimizer._plans
    serial, _ = cpu.twins(ADAM)
    ((_, *arguments),) = plan.launches(True)
    flats, blocks, rows = arguments
    addresses = optimizer._gradients[0].written().addresses
    bare = partial(serial, flats, addresses, blocks, rows, plan.hyper, plan.carried, plan.table, 1.0)
    return _medians({"bare kernel": timed(bare), "step()": timed(optimizer.step)}, rounds=201)


def _medians(turns, rounds):
    return {name: median(timing.rounds) for name, timing in interleave(turns, rounds).items()}
