"""Gradients of single rows, for embedding tables: only those rows are read and written."""

from typing import Any, NamedTuple

import numpy as np

from fastadam.kernels.texts import casts, catch_up
from fastadam.kernels.texts.formats import EXPONENT_BLOCK, Storage
from fastadam.memory.arrays import as_array, check_like, dtype_name, kernels, namespace, on_host, widened
from fastadam.step.plan import Plan


class SparseRows(NamedTuple):
    """The gradient of a parameter that is zero but for some rows.

    Args:
        indices: Rows of the parameter (of its first axis), integers, shape (k,). A row may occur more than once.
        values: Their gradients, shape (k, ...) with the shape of the parameter's rows, of its dtype and device. The
            values of a row that occurs more than once are added up. They are only read, also with `zero_grad`.

    Example:
        >>> import numpy as np, fastadam
        >>> params = {"table": np.zeros((1000, 2), np.float32)}
        >>> opt = fastadam.Adam(params, lr=0.1)
        >>> opt.step({"table": fastadam.SparseRows([3, 7], np.array([[1, -1], [2, 0]], np.float32))})
        >>> params["table"][3].round(6)
        array([-0.1,  0.1], dtype=float32)
    """

    indices: Any
    values: Any


class Rows(NamedTuple):
    """A checked `SparseRows`: distinct rows in ascending order.

    Attributes:
        indices: The rows, on the host.
        offsets: Where the gradient of each begins in `values`, in elements.
        values: The gradients, flat.
    """

    indices: np.ndarray
    offsets: np.ndarray
    values: Any

    @property
    def size(self) -> int:
        """How many elements the gradients have."""
        return self.values.size


def checked_rows(rows: SparseRows, view: Any, label: str, storage: Storage) -> Rows:
    """`rows` as the gradient of a parameter whose gradients are like `view`."""
    if view.ndim == 0:
        raise ValueError(f"`{label}` must be an array for a parameter without rows, got SparseRows")
    width = view.size // view.shape[0] if view.shape[0] else 0
    if storage.blocked and width % EXPONENT_BLOCK:
        raise ValueError(
            f"`{label}` must be an array with `moment_dtype` 'float8', got SparseRows of {width} elements a row: only "
            f"rows of a multiple of {EXPONENT_BLOCK} have blocks of codes of their own"
        )
    indices = row_indices(rows.indices, view, f"{label}.indices")
    values = as_array(rows.values, f"{label}.values")
    rows_of_view = namespace(view).broadcast_to(view[:1], (len(indices), *view.shape[1:]))
    check_like(values, rows_of_view, f"{label}.values", f"the gradient of {len(indices)} rows")
    values = namespace(values).ascontiguousarray(values)
    if isinstance(values, np.ndarray) and not values.flags.aligned:
        values = values.copy()
    ascending, order = _sorted(indices)
    first = _is_first(ascending)
    if first.all():
        return Rows(ascending, order * width, values.reshape(-1))
    starts = np.flatnonzero(first)
    # On a GPU the sums are made on the host: an atomic addition there would add in any order.
    host = on_host(values)
    with np.errstate(over="ignore"):
        sums = np.add.reduceat(widened(host)[order], starts, axis=0)
    return Rows(ascending[starts], np.arange(len(starts)) * width, _narrowed(sums, values).reshape(-1))


def _narrowed(sums, like):
    """`sums` in the dtype and on the device of `like`."""
    if dtype_name(like) == "bfloat16":
        sums = casts.to_bfloat16(sums).view(like.dtype)
    with np.errstate(over="ignore"):
        return namespace(like).asarray(sums.astype(like.dtype, copy=False))


def row_indices(indices: Any, view: Any, label: str) -> np.ndarray:
    """`indices` as int64 on the host; raise unless they are rows of `view`."""
    array = as_array(indices if hasattr(indices, "__dlpack__") else np.asarray(indices), label)
    array = on_host(array)
    if array.size == 0 and array.dtype == np.float64:  # an empty list
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"`{label}` must be integers, got {array.dtype}")
    if array.ndim != 1:
        raise ValueError(f"`{label}` must be 1-D, got shape {array.shape}")
    outside = (array < 0) | (array >= view.shape[0])
    if outside.any():
        raise ValueError(f"`{label}` must be in [0, {view.shape[0]}), got {int(array[outside][0])}")
    return array.astype(np.int64, copy=False)


def _sorted(values):
    """`values`, integers >= 0, in ascending order, and where each stood; equal ones keep their order.

    Numbers and positions are sorted as one integer, which is several times as fast as `argsort`.
    """
    bits = max(1, len(values) - 1).bit_length()
    keys = np.sort(values << bits | np.arange(len(values)))
    return keys >> bits, keys & ((1 << bits) - 1)


def _distinct(values):
    """The distinct `values`, and for each value which of them it is."""
    ascending, order = _sorted(values)
    first = _is_first(ascending)
    places = np.empty(len(values), np.int64)
    places[order] = np.cumsum(first) - 1
    return ascending[first], places


def _is_first(ascending):
    """Where a new value begins."""
    first = np.ones(len(ascending), bool)
    np.not_equal(ascending[1:], ascending[:-1], out=first[1:])
    return first


def sparse_launches(plan: Plan, sparse: dict[int, Rows]) -> list[tuple]:
    """The launches of a step in which some parameters have a gradient of rows only: a piece a row."""
    pieces = [np.array(plan.pieces(merged=False, without=frozenset(sparse)), np.int64).reshape(-1, 5)]
    for index, rows in sparse.items():
        of_rows = np.empty((len(rows.indices), 5), np.int64)
        _write_spans(plan, index, rows.indices, of_rows)
        of_rows[:, 2], of_rows[:, 3], of_rows[:, 4] = plan.rows[index], index, rows.offsets
        pieces.append(of_rows)
    together = np.concatenate(pieces)
    return [plan.launch(update, rows, together) for update, rows in plan.updates().items()]


def _write_spans(plan, index, indices, target):
    """Write where rows of a parameter begin and end in the flat buffers into the first two columns of `target`."""
    segment = plan.segments[index]
    width = (segment.stop - segment.start) // max(1, segment.shape[0])
    np.multiply(indices, width, out=target[:, 0])
    target[:, 0] += segment.start
    np.add(target[:, 0], width, out=target[:, 1])


class Past:
    """What exact sparse rows need to know of the past of a plan: its steps, and when each row was last stepped.

    Rows whose gradient is zero are not touched. Before a row is read again, `catch_up` makes up for what dense Adam
    would have done to it meanwhile.
    """

    def __init__(self, plan: Plan):
        self._plan = plan
        # Group row -> what is in `catch_up.HISTORY` of each step since the first sparse one, and the running totals.
        self._history: dict[int, np.ndarray] = {}
        self._totals: dict[int, np.ndarray] = {}
        self._steps: dict[int, int] = {}
        # Parameter -> how many of these steps each of its rows has been taken through.
        self._last: dict[int, np.ndarray] = {}

    def before_step(self, sparse: dict[int, Rows]) -> None:
        """Bring up to date what the next step reads: the rows of `sparse`, and all of the other parameters."""
        for index, rows in sparse.items():
            self._begin(index)
            self.catch_up(index, rows.indices)
        for index in self._last.keys() - sparse.keys():
            self.catch_up(index)

    def check_decays(self) -> None:
        """Raise if a decay of the next step is no factor between 0 and 1, whose logarithm is kept."""
        plan = self._plan
        for row, group in enumerate(plan.groups):
            if group["decoupled_weight_decay"]:
                loss = group["weight_decay"] * (1.0 if plan.options.decouple_lr else plan.lr(row))
                if loss >= 1.0:
                    raise ValueError(f"`lr` * `weight_decay` must be < 1 with `sparse` 'exact', got {loss}")

    def after_step(self, sparse: dict[int, Rows]) -> None:
        """Note the step that has been taken."""
        for row in self._steps:
            self._note(row)
        for index, last in self._last.items():
            now = self._steps[self._plan.rows[index]]
            last[sparse[index].indices if index in sparse else slice(None)] = now

    def forget(self) -> None:
        """Take every row as up to date: a state has been loaded."""
        for kept in (self._history, self._totals, self._steps, self._last):
            kept.clear()

    def catch_up(self, index: int, indices: np.ndarray | None = None) -> None:
        """Bring rows of a parameter up to date, all of them without `indices`."""
        if index not in self._last:
            return
        plan, last = self._plan, self._last[index]
        now = self._steps[plan.rows[index]]
        indices = np.arange(len(last)) if indices is None else indices
        steps = last[indices]
        late = steps < now
        if not late.any():
            return
        behind, steps = (indices, steps) if late.all() else (indices[late], steps[late])
        lasts, slots = _distinct(steps)
        history, totals = self._history[plan.rows[index]], self._totals[plan.rows[index]]
        host = kernels(history, "params")
        table, starts = host.catch_up_table(lasts, now, history, totals, plan.buffers.p.dtype)
        flats = plan.buffers.p, plan.buffers.m, plan.buffers.v
        blocks = np.empty((len(behind), 3), np.int64)
        _write_spans(plan, index, behind, blocks)
        blocks[:, 2] = slots
        plan.kernels.catch_up(flats, blocks, table, starts)
        last[behind] = now

    def _begin(self, index):
        row = self._plan.rows[index]
        if row not in self._steps:
            self._steps[row] = 0
            self._history[row] = np.zeros((64, len(catch_up.HISTORY)))
            self._totals[row] = np.zeros((65, catch_up.TOTALS))
        if index not in self._last:
            self._last[index] = np.full(self._plan.segments[index].shape[0], self._steps[row])

    def _note(self, row):
        scalars = self._plan.scalars(row)
        blends = [1.0 - beta for beta in self._plan.groups[row]["betas"]]
        step = [scalars["step_size"], scalars["eps"], scalars.get("decay", 1.0), *blends]
        count = self._steps[row]
        if count == len(self._history[row]):
            self._history[row] = np.concatenate([self._history[row], np.zeros_like(self._history[row])])
            self._totals[row] = np.concatenate([self._totals[row], np.zeros((count, catch_up.TOTALS))])
        self._history[row][count] = step
        catch_up.add_logs(self._totals[row][count], step, self._totals[row][count + 1])
        self._steps[row] = count + 1
