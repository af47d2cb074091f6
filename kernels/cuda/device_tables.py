"""The tables of launches on a CUDA device."""

from typing import Any

import cupy
import numpy as np

from fastadam.kernels import ADDRESSES, CARRIED, HYPER, SCALARS, Tables

# Copies of the addresses that may be under way at once. One copy takes the host 2 us, and a step takes longer.
COPIES = 3


class CudaTables:
    """What :class:`Tables <fastadam.kernels.Tables>` describes: addresses on the host, all else on `device`.

    Launches read `device_addresses`, which `send` rewrites in the order of the current stream, in memory that stays the
    same. So steps on several streams must be put in order by whoever makes them, as for the parameters themselves.
    """

    def __init__(self, parameters: int, clocks: int, device: Any):
        self.device = device
        self.addresses = np.zeros((parameters, ADDRESSES), np.int64)
        with device:
            self.device_addresses = cupy.zeros(self.addresses.shape, np.int64)
            self.hyper = cupy.zeros((clocks, HYPER))
            self.carried = cupy.zeros((clocks, CARRIED))
            self.table = cupy.zeros((clocks, SCALARS))
            self.record = cupy.zeros(4)
            self._counters = cupy.zeros(1, np.uint32)
            self._copies = [_Copy(self.addresses) for _ in range(COPIES)]
        self._sent = self.addresses.tobytes()

    def send(self) -> None:
        """Copy `addresses` to the device if they have changed, on the current stream, without waiting for it."""
        written = self.addresses.tobytes()
        if written == self._sent:
            return
        with self.device:
            stream = cupy.cuda.get_current_stream()
            if stream.is_capturing():
                raise RuntimeError(
                    "arrays must stay where they are while a CUDA graph is captured: gradients or parameters have "
                    "other addresses than in the step before"
                )
            self._copies[0].to(self.device_addresses, self.addresses, stream)
        self._copies.append(self._copies.pop(0))
        self._sent = written

    def write(self, name: str, where: Any, values: float | np.ndarray) -> None:
        """Let `where` of a table be `values`, on the current stream of the device."""
        with self.device:
            getattr(self, name)[where] = cupy.asarray(values) if isinstance(values, np.ndarray) else values

    def copy_clock(self, old: int, new: int) -> None:
        """Let row `new` of the scalars begin as row `old`, on the current stream of the device."""
        with self.device:
            for table in (self.hyper, self.carried, self.table):
                table[new] = table[old]

    def take_over(self, earlier: Tables) -> None:
        """Begin with all that `earlier` tables, of no more rows, hold."""
        self.addresses[: len(earlier.addresses)] = earlier.addresses
        with self.device:
            for name in ("hyper", "carried", "table", "record"):
                held = getattr(earlier, name)
                getattr(self, name)[: len(held)] = held

    def counters(self, count: int) -> cupy.ndarray:
        """At least `count` counters, zero between launches."""
        if self._counters.size < count:
            self._counters = cupy.zeros(count, np.uint32)
        return self._counters


class _Copy:
    """Pinned memory, from which the device copies while the host goes on."""

    def __init__(self, like):
        self.array = np.ndarray(like.shape, like.dtype, cupy.cuda.alloc_pinned_memory(max(1, like.nbytes)))
        self.event = cupy.cuda.Event(disable_timing=True)

    def to(self, target, source, stream):
        """Copy `source` to the device array `target`, on `stream`, once the last copy out of this memory has ended."""
        self.event.synchronize()
        self.array[...] = source
        runtime = cupy.cuda.runtime
        kind = runtime.memcpyHostToDevice
        runtime.memcpyAsync(target.data.ptr, self.array.ctypes.data, source.nbytes, kind, stream.ptr)
        self.event.record(stream)
