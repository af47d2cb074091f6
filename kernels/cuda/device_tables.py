"""The tables of launches on a CUDA device."""

from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

from fastadam.kernels import ADDRESSES, CARRIED, GRAD_SCALE, GRADIENT, HYPER, SCALARS, Tables
from fastadam.kernels.host_tables import HostTables

# Messages that may be under way at once. Sending one takes the host some microseconds, and a step takes longer.
MESSAGES = 3
# Numbers of 64 KiB: of memory that is not pinned, CUDA copies no more than that without waiting for the device. Pinned
# memory is read by the copying engine, for which the launch that follows waits 10 us on an H100, in the place of 1.
AT_ONCE = 65_536 // 8
# A clock's row on the device: the scalars that the fold writes, and what is carried from step to step.
ROW = SCALARS + CARRIED
# What is asked of a step, before the hyperparameters: a factor on the gradients; and where on the device there are a
# further factor, a divisor and a number that is not 0 if the step is to be skipped: float32, addresses, 0 for none.
FACTOR, FACTOR_AT, DIVISOR_AT, FOUND_INF_AT = range(4)


class CudaTables:
    """What :class:`Tables <fastadam.kernels.Tables>` describes.

    The host folds, and `push` makes one copy for a step, without waiting for it, in the order of the current stream: of
    rows, of where the gradients lie, and of hyperparameters. Once something on the device decides about a step, or a
    graph has been captured, the device folds (`to_device`): its rows are the ones that count, for good, and the host
    only sends what it has changed. So steps on several streams must be put in order by whoever makes them, as for the
    parameters themselves.

    Where the gradients of a step lie, and what is asked of it, is its request. That of a captured step stays as it is
    for its replays: steps after it, with another request, have it elsewhere.

    Attributes:
        host: What the host has written and folded.
        numbers: float64, all that is sent, in memory that stays the same: the rows of the clocks from the last to the
            first, so that those in use end where the request begins; the request; the hyperparameters of each clock;
            the addresses of all but gradients.
        gradients: int64, where the gradient of each parameter lies: the first part of the request.
        asked: float64, what is asked of a step: the second.
        on_device: Whether the device folds.
        pending: What is left of the reduction of the gradients of the step that follows: `norm.Pending`, or None.
        is_settled: Whether it has been done since, before its step: the record then holds for that.
        device_record: The record, as it is.
    """

    def __init__(self, parameters: int, clocks: int, device: Any, settle: Callable[["CudaTables"], None]):
        """Make tables of zeros; `settle` launches what is pending."""
        self._settle = settle
        self.pending: Any = None
        self.is_settled = False
        self.device, self.host = device, HostTables.zeros(parameters, clocks)
        self.addresses, self.hyper = self.host.addresses, self.host.hyper
        self.on_device = False
        sizes = clocks * ROW, parameters + HYPER, clocks * HYPER, parameters * ADDRESSES
        self._request_at, self._hyper_at, self._addresses_at, end = np.cumsum(sizes).tolist()
        with device:
            self.numbers = cupy.zeros(end)
            self.rows = self.numbers[: self._request_at]
            self._have_request_in(self.numbers[self._request_at : self._hyper_at])
            self.device_hyper = self.numbers[self._hyper_at : self._addresses_at]
            self.device_addresses = self.numbers[self._addresses_at :].view(np.int64)
            self.device_record, self.no_sums, self.no_clocks = cupy.zeros(4), cupy.zeros(1), cupy.zeros(0, np.int64)
            self._counters = cupy.zeros(1, np.uint32)
            self._messages = [_Message(end) for _ in range(MESSAGES)]
        self._asked, self._sent_asked = np.zeros((2, HYPER))
        self._sent_gradients = np.zeros(parameters, np.int64)
        self._used, self._captured, self._changed, self._moved = 0, False, False, False
        # Whether the request is that of a captured step, and whether it lies outside of `numbers`.
        self._is_request_captured, self._is_request_apart = False, False
        # What graphs read and write beside what there is: they do not hold it.
        self._of_graphs: list[Any] = []

    def _have_request_in(self, memory):
        self._request = memory
        self.gradients, self.asked = memory[: len(self.addresses)].view(np.int64), memory[len(self.addresses) :]

    # --- what the host writes and reads

    def write(self, name: str, where: Any, values: Any) -> None:
        """Let `where` of a table be `values`, for the launches and the replays of graphs that follow."""
        if name == "record":
            if where == GRAD_SCALE:
                self.host.record[GRAD_SCALE] = self._asked[FACTOR] = values
            else:
                with self.device:
                    self.device_record[where] = values
            return
        getattr(self.host, name)[where] = values
        self._changed = True
        if name == "addresses":
            self._moved = True
            return
        self._used = max(self._used, where[0] + 1)
        if name == "carried" and self.on_device:
            self._write_row(where[0], where[1], values)
        if self._captured:
            self.push()

    def use(self, grad_scale: float) -> None:
        """Take the next step with this factor on the gradients, unless the device has more of it."""
        if grad_scale != self._asked[FACTOR]:
            with self.device:
                if cupy.cuda.get_current_stream().is_capturing():
                    raise RuntimeError(
                        "another `grad_scale` than that of the step before must not be written while a CUDA graph is "
                        "captured: do so before, or after it"
                    )
            self.write("record", GRAD_SCALE, grad_scale)

    def decides(self) -> bool:
        """Whether something on the device decides about the next step."""
        return self.on_device or self.pending is not None or bool(self._asked[FACTOR_AT : FOUND_INF_AT + 1].any())

    def ask(self, factor_at: int = 0, divisor_at: int = 0, found_inf_at: int = 0) -> None:
        """Let the device decide about the next steps by what lies at these addresses."""
        self._asked[FACTOR_AT : FOUND_INF_AT + 1] = factor_at, divisor_at, found_inf_at

    def copy_clock(self, old: int, new: int) -> None:
        """Let row `new` of the scalars begin as row `old`."""
        self.host.copy_clock(old, new)
        self._used, self._changed = max(self._used, new + 1), True
        if self.on_device:
            with self.device:
                rows = self.rows.reshape(-1, ROW)[::-1]
                rows[new] = rows[old]

    def take_over(self, earlier: Tables) -> None:
        """Begin with all that `earlier` tables, of no more rows, hold."""
        assert isinstance(earlier, CudaTables)
        for name in ("addresses", "hyper", "carried", "table"):
            held = getattr(earlier, name)
            getattr(self.host, name)[: len(held)] = held
        self.host.record[...] = earlier.host.record
        self._used, self._asked, self._changed, self._moved = earlier._used, earlier._asked, True, True
        with self.device:
            self.device_record[...] = earlier.device_record
        if earlier._captured:
            self._of_graphs.append(earlier)

    @property
    def record(self) -> cupy.ndarray:
        """The record of the step; if it has not been launched, of the reduction before it, and the host then folds."""
        if self.pending is not None:
            self._settle(self)
            self.is_settled = True
            self.host.record[GRAD_SCALE] = float(self.device_record[GRAD_SCALE])
        return self.device_record

    @property
    def carried(self) -> np.ndarray:
        """What is carried from step to step; it waits for the device where that folds."""
        return self._rows_on_host()[:, SCALARS:] if self.on_device else self.host.carried

    @property
    def table(self) -> np.ndarray:
        """The scalars of the last step; likewise."""
        return self._rows_on_host()[:, :SCALARS] if self.on_device else self.host.table

    def _rows_on_host(self):
        with self.device:
            return self.rows.get().reshape(-1, ROW)[::-1]

    def _write_row(self, clock, columns, values):
        with self.device:
            row = self.rows.reshape(-1, ROW)[::-1][clock, SCALARS:]
            row[columns] = cupy.asarray(values) if isinstance(values, np.ndarray) else values

    def row_of(self, clocks: np.ndarray) -> np.ndarray:
        """The number of the rows of `clocks`, counted from the beginning of `rows`."""
        return len(self.hyper) - 1 - clocks

    def counters(self, count: int) -> cupy.ndarray:
        """At least `count` counters, zero between launches."""
        if self._counters.size < count:
            if self._captured:
                self._of_graphs.append(self._counters)
            self._counters = cupy.zeros(count, np.uint32)
        return self._counters

    # --- what the device gets

    def send(self) -> bool:
        """Take note that the addresses of a step are written; whether it is captured: raise if they are others."""
        with self.device:
            if not cupy.cuda.get_current_stream().is_capturing():
                return False
        if self._moved or self._have_gradients_moved():
            raise RuntimeError(
                "arrays must stay where they are while a CUDA graph is captured: gradients or parameters have other "
                "addresses than in the step before"
            )
        if self._changed or self._is_other_asked():
            raise RuntimeError(
                "a step must have been taken since numbers of a group or a state were written, before it is captured "
                "in a CUDA graph: they are sent with a step"
            )
        self.on_device = self._captured = self._is_request_captured = True
        return True

    def to_device(self) -> None:
        """Let the device fold from now on."""
        if not self.on_device:
            self.push(rows=True)
            self.on_device = True

    def push(self, *, rows: bool = False) -> None:
        """Send what has changed, and the rows of all clocks if asked for, in one copy on the current stream."""
        is_other = self._have_gradients_moved() or self._is_other_asked()
        if not (rows or self._changed or is_other):
            return
        start = self._request_at - self._used * ROW if rows else self._request_at
        stop = self._addresses_at + self.addresses.size if self._moved else self._hyper_at + self._used * HYPER
        with self.device:
            if is_other and self._is_request_captured:
                self._leave_request()
            message, stream = self._messages[0], cupy.cuda.get_current_stream()
            self._fill(message.before_writing(), rows=rows)
            if not self._is_request_apart:
                message.send(self.numbers, start, start, stop, stream)
            else:
                # The device has folded ever since a step was captured, and has the rows.
                if is_other:
                    message.send(self._request, 0, self._request_at, self._hyper_at, stream)
                if self._changed:
                    message.send(self.numbers, self._hyper_at, self._hyper_at, stop, stream)
        self._messages.append(self._messages.pop(0))
        self._sent_gradients[...], self._sent_asked[...] = self.addresses[:, GRADIENT], self._asked
        self._changed = self._moved = False

    def _leave_request(self):
        """Have the requests that follow elsewhere: replays of a captured step read this one."""
        self._of_graphs.append(self._request)
        self._have_request_in(cupy.zeros(len(self.addresses) + HYPER))
        self._is_request_captured, self._is_request_apart = False, True

    def _have_gradients_moved(self):
        return self._sent_gradients.tobytes() != self.addresses[:, GRADIENT].tobytes()

    def _is_other_asked(self):
        return self._sent_asked.tobytes() != self._asked.tobytes()

    def _fill(self, message, *, rows):
        used, host = self._used, self.host
        if rows:
            own = message[self._request_at - used * ROW : self._request_at].reshape(used, ROW)[::-1]
            own[:, :SCALARS], own[:, SCALARS:] = host.table[:used], host.carried[:used]
        request = message[self._request_at : self._hyper_at]
        request[:-HYPER].view(np.int64)[...], request[-HYPER:] = self.addresses[:, GRADIENT], self._asked
        # Up to the addresses, if these are sent as well.
        sent = len(host.hyper) if self._moved else used
        message[self._hyper_at : self._hyper_at + sent * HYPER] = host.hyper[:sent].reshape(-1)
        if self._moved:
            message[self._addresses_at :].view(np.int64)[...] = self.addresses.reshape(-1)


class _Message:
    """Memory of which the device may have to copy while the host goes on."""

    def __init__(self, size):
        self._array = np.zeros(size)
        self._at = self._array.ctypes.data
        self._event = cupy.cuda.Event(disable_timing=True)

    def before_writing(self):
        """The memory, once the last copy out of it has ended."""
        self._event.synchronize()
        return self._array

    def send(self, target, first, start, stop, stream):
        """Copy numbers `start` to `stop` to those of the device array `target` from `first` on, on `stream`."""
        runtime, apart = cupy.cuda.runtime, target.data.ptr + 8 * (first - start)
        for place in range(start, stop, AT_ONCE):
            size = 8 * min(AT_ONCE, stop - place)
            runtime.memcpyAsync(apart + 8 * place, self._at + 8 * place, size, runtime.memcpyHostToDevice, stream.ptr)
        self._event.record(stream)
