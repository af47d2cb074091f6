"""Launches for lists of torch tensors on the CPU, which are kept ready for tensors of the same dtypes and shapes."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastadam.kernels import Pass, Tables
from fastadam.kernels.blocks import cut
from fastadam.kernels.texts.formats import Formats
from fastadam.kernels.texts.members import MEMBERS
from fastadam.kernels.texts.update import Recipe, Update, update_of
from fastadam.memory.arrays import DTYPES, backend_of
from fastadam.memory.parameters import random_place


class Ready(NamedTuple):
    """A launch for tensors of certain dtypes and shapes; a call writes the rest into its tables.

    Attributes:
        tables: A clock for each parameter.
        launch: Runs the step.
        itemsizes: int64 (parameters, lists): bytes of an element.
        ranges: int64 (2, parameters, lists): where what is stepped begins and ends in a tensor, in bytes.
    """

    tables: Tables
    launch: Callable[[], None]
    itemsizes: np.ndarray
    ranges: np.ndarray


_dtype_of = Tensor.dtype.__get__


class _Kept(threading.local):
    """What is ready, of each thread: two may be inside of a call at the same time."""

    def __init__(self):
        self.ready: dict[tuple, Ready] = {}
        self.size = 0


_kept = _Kept()
# Bytes of all that a thread keeps ready: some hundred lists of tensors, or one for each of some hundred chunks.
_MOST_KEPT = 2**25


def ready_for(
    lists: Mapping[str, Sequence[Tensor]],
    shapes: Sequence[torch.Size],
    ranges: tuple[tuple[int, int], ...] | None,
    small_betas: tuple[int, ...],
) -> Ready:
    """The launch for tensors of these dtypes and shapes, in the calling thread; None as `ranges` is all elements."""
    dtypes = [tuple(map(_dtype_of, tensors)) for tensors in lists.values()]
    key = tuple(shapes), *dtypes, ranges, small_betas
    ready = _kept.ready.get(key)
    if ready is None:
        ready, size = _made_ready(dict(zip(lists, dtypes, strict=True)), shapes, ranges, small_betas)
        if _kept.size + size > _MOST_KEPT:
            _kept.ready.clear()
            _kept.size = 0
        _kept.ready[key] = ready
        _kept.size += size
    return ready


def _made_ready(dtypes, shapes, ranges, small_betas):
    """A `Ready`, and about how many bytes it takes."""
    count = len(shapes)
    indices, spans = np.arange(count), _checked_spans(ranges, shapes)
    members: dict[tuple[Update, np.dtype], list[int]] = {}
    for index in range(count):
        of_one = {name: column[index] for name, column in dtypes.items()}
        members.setdefault(_update(of_one, index, small_betas), []).append(index)
    pieces = np.stack([indices, indices, spans[:, 0], spans[:, 1], spans[:, 0]], axis=1)
    passes = [Pass(update, dtype, indices[of], cut(pieces[of])) for (update, dtype), of in members.items()]
    backend = backend_of(indices, "params")
    tables = backend.tables(count, count, indices)
    tables.addresses[:, len(dtypes)] = random_place(0, 0, 0)
    launch = backend.launcher(passes, tables, guarded=False)
    itemsizes = np.array([[dtype.itemsize for dtype in column] for column in dtypes.values()], np.int64).T
    ready = Ready(tables, launch, itemsizes, spans.T[:, :, np.newaxis] * itemsizes)
    return ready, sum(each.blocks.nbytes for each in passes) + 1_000 * count


def _checked_spans(ranges, shapes):
    sizes = [shape.numel() for shape in shapes]
    if ranges is None:
        return np.array([(0, size) for size in sizes], np.int64)
    for index, ((start, stop), size) in enumerate(zip(ranges, sizes, strict=True)):
        if not start <= stop <= size:
            raise ValueError(
                f"`spans[{index}]` must be elements (start, stop) of the {size} of `params[{index}]`, got "
                f"({start}, {stop})"
            )
    return np.array(ranges, np.int64)


_BUFFERS = {"params": "p", "grads": "g", "exp_avgs": "m", "exp_avg_sqs": "v", "compute_params": "copy"}


def _update(dtypes, index, small_betas):
    """The text for a parameter whose tensors have these dtypes, and the dtype of its arithmetic."""
    names = {name: str(dtype).removeprefix("torch.") for name, dtype in dtypes.items()}
    arithmetic = "float64" if names["params"] == "float64" else "float32"
    halves = () if arithmetic == "float64" else ("bfloat16", "float16")
    allowed = {
        "params": ("float32", "float64") if "compute_params" in names else DTYPES,
        "grads": (arithmetic, *halves),
        "exp_avgs": (arithmetic, *halves[:1]),
        "exp_avg_sqs": (arithmetic, *halves[:1]),
        "compute_params": (arithmetic, "bfloat16", "float16"),
    }
    for name, dtype in names.items():
        if dtype not in allowed[name]:
            beside = f" beside `params[{index}]` of {names['params']}"
            if name == "params":
                beside = " beside `compute_params`" if "compute_params" in names else ""
            raise TypeError(f"`{name}[{index}]` must be {' or '.join(allowed[name])}{beside}, got {dtype}")
    member, native = MEMBERS["adam"], {arithmetic: "native"}
    formats = {_BUFFERS[name]: member.format(_BUFFERS[name], native.get(dtype, dtype)) for name, dtype in names.items()}
    recipe = Recipe(
        decay="decoupled", small_betas=small_betas, copy="compute_params" in names, storage=Formats(**formats)
    )
    return update_of(recipe), np.dtype(arithmetic)
