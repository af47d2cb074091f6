"""Process groups of several engines, as one: torch.distributed, MPI, NCCL through CuPy, and what speaks like them."""

import sys
from typing import Any, Protocol

import numpy as np

from fastadam.memory.arrays import as_torch, dtype_name
from fastadam.memory.owners import bounds


class Handle(Protocol):
    """A collective under way."""

    def wait(self) -> Any:
        """Return when it is done."""


class Group(Protocol):
    """The processes that share an optimizer. Every one of them makes the same calls in the same order.

    Arrays are 1-D and contiguous, NumPy or CuPy, with len(flat) == size * len(shard): rank r has part r of `flat`. Each
    method returns None when it is done, or a `Handle`.

    Attributes:
        rank: The number of this process, from 0.
        size: How many processes there are.
    """

    rank: int
    size: int

    def reduce_scatter(self, flat: Any, shard: Any) -> Handle | None:
        """Write the sum of this rank's part of all ranks' `flat`, of gradients, into `shard`, which lies apart."""

    def all_gather(self, shard: Any, flat: Any) -> Handle | None:
        """Write the `shard` of every rank into `flat`. `shard` may be this rank's part of `flat` itself."""


def group_of(shard: Any) -> Group:
    """`shard` as a `Group`; raise unless it is one, or the process group of an engine."""
    module = _module("torch.distributed")
    if module is not None and module.is_available() and isinstance(shard, module.ProcessGroup):
        return TorchGroup(shard)
    module = _module("mpi4py.MPI")
    if module is not None and isinstance(shard, module.Intracomm):
        return MpiGroup(shard)
    kind = getattr(_module("cupy.cuda.nccl"), "NcclCommunicator", None)
    if kind is not None and isinstance(shard, kind):
        return NcclGroup(shard)
    for name in ("reduce_scatter", "all_gather"):
        if not callable(getattr(shard, name, None)):
            raise TypeError(
                "`shard` must be a process group of torch.distributed, an mpi4py communicator or a CuPy NCCL "
                f"communicator, or have rank, size, reduce_scatter and all_gather, got {type(shard).__name__}"
            )
    for name in ("rank", "size"):
        if type(getattr(shard, name, None)) is not int:
            raise TypeError(f"`shard.{name}` must be an integer, got {getattr(shard, name, None)!r}")
    if not 0 <= shard.rank < shard.size:
        raise ValueError(f"`shard.rank` must be in [0, {shard.size}), got {shard.rank}")
    return shard


def _module(name):
    """A module of an engine, if somebody has imported it: nobody else can have its process group."""
    return sys.modules.get(name)


class TorchGroup:
    """A `torch.distributed.ProcessGroup`, of gloo or nccl."""

    def __init__(self, group: Any):
        self._engine, self._group = sys.modules["torch.distributed"], group
        self.rank, self.size = self._engine.get_rank(group), self._engine.get_world_size(group)
        # torch 2.13 has other names, and warns of those before.
        self._scatter = getattr(self._engine, "reduce_scatter_single", None) or self._engine.reduce_scatter_tensor
        self._gather = getattr(self._engine, "all_gather_single", None) or self._engine.all_gather_into_tensor

    def reduce_scatter(self, flat: Any, shard: Any) -> Handle:
        """As in `Group`, not waited for."""
        return self._scatter(as_torch(shard), as_torch(flat), group=self._group, async_op=True)

    def all_gather(self, shard: Any, flat: Any) -> Handle:
        """As in `Group`, not waited for."""
        # Bytes: gloo does not know every dtype.
        given, whole = (as_torch(array.view(np.uint8)) for array in (shard, flat))
        return self._gather(whole, given, group=self._group, async_op=True)


class MpiGroup:
    """An mpi4py communicator of one group of processes."""

    def __init__(self, communicator: Any):
        self._engine, self._communicator = sys.modules["mpi4py.MPI"], communicator
        self.rank, self.size = communicator.Get_rank(), communicator.Get_size()
        self._sums: dict[str, Any] = {}

    def reduce_scatter(self, flat: Any, shard: Any) -> Handle:
        """As in `Group`, not waited for."""
        name = dtype_name(flat)
        if name in ("float32", "float64"):
            return self._communicator.Ireduce_scatter_block(flat, shard)
        if name not in self._sums:
            self._sums[name] = self._engine.Op.Create(_adding(flat.dtype), commute=True)
        sent, received = ([array.view(np.uint16), self._engine.UINT16_T] for array in (flat, shard))
        return self._communicator.Ireduce_scatter_block(sent, received, op=self._sums[name])

    def all_gather(self, shard: Any, flat: Any) -> Handle:
        """As in `Group`, not waited for."""
        part = flat[self.rank * len(shard) : (self.rank + 1) * len(shard)]
        if bounds(part) != bounds(shard):
            part[...] = shard
        # Bytes of numbers of 1, 2, 4 or 8 bytes: MPI has neither bfloat16 nor float16.
        whole = flat.view(f"u{flat.itemsize}")
        return self._communicator.Iallgather(self._engine.IN_PLACE, whole)


def _adding(dtype):
    """What MPI calls to add up numbers of 16 bits, which it does not know."""

    def add(given, total, _):
        given, total = np.frombuffer(given, dtype), np.frombuffer(total, dtype)
        total += given

    return add


class NcclGroup:
    """A `cupy.cuda.nccl.NcclCommunicator`; its collectives are put into the current stream."""

    def __init__(self, communicator: Any):
        self._communicator = communicator
        self.rank, self.size = communicator.rank_id(), communicator.size()

    def reduce_scatter(self, flat: Any, shard: Any) -> None:
        """As in `Group`, in the order of the current stream."""
        cupy = sys.modules["cupy"]
        places = flat.data.ptr, shard.data.ptr
        stream = cupy.cuda.get_current_stream().ptr
        self._communicator.reduceScatter(*places, shard.size, _NCCL[dtype_name(flat)], _NCCL_SUM, stream)

    def all_gather(self, shard: Any, flat: Any) -> None:
        """As in `Group`, in the order of the current stream."""
        cupy = sys.modules["cupy"]
        places = shard.data.ptr, flat.data.ptr
        self._communicator.allGather(*places, shard.nbytes, _NCCL_BYTES, cupy.cuda.get_current_stream().ptr)


# Numbers of nccl.h.
_NCCL = {"float16": 6, "float32": 7, "float64": 8, "bfloat16": 9}
_NCCL_BYTES, _NCCL_SUM = 1, 0
