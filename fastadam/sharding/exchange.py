"""What ranks send one another: gradients are reduced to their owners, sums for the norm and parameters are gathered."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastadam.kernels.blocks import BLOCK
from fastadam.memory.arrays import assign, moved, on_host, zeros
from fastadam.memory.buffers import WHOLE, Buffers
from fastadam.memory.owners import bounds
from fastadam.memory.parameters import Parameter, all_buffers
from fastadam.sharding.errors import CollectiveError
from fastadam.sharding.groups import Group, Handle

if TYPE_CHECKING:
    from fastadam.step.gather import Gradients


class Exchange:
    """The collectives of a sharded optimizer, in an order that is the same on every rank.

    Each set of buffers is a bucket: its gradients are reduced, its share is stepped, and its parameters are gathered
    while those of other buckets are still under way.

    Attributes:
        rank: The number of this process.
        ranks: How many there are.
    """

    def __init__(self, group: Group, device_of: Any):
        self._group, self._device_of = group, device_of
        self.rank, self.ranks = group.rank, group.size
        self._parameters: list[Parameter] = []
        self._buckets: tuple[Buffers, ...] = ()
        self._members: list[list[int]] = []
        self._sums: list[Any] = []
        self._reducing: list[Handle | None] = []
        self._gathering: list[Handle | None] = []
        self._addresses: dict[bytes, np.ndarray] = {}

    def add(self, parameters: Sequence[Parameter]) -> None:
        """Exchange these parameters, all that there are; memory for a share of their gradients is allocated."""
        known = dict(zip(self._buckets, self._sums, strict=True))
        self._parameters, self._buckets = list(parameters), all_buffers(parameters)
        for each in self._buckets:
            known.setdefault(each, zeros(each.kept[1] - each.kept[0], each.dtype("g"), self._device_of))
        self._sums, self._addresses = [known[each] for each in self._buckets], {}
        everybody = list(enumerate(self._parameters))
        self._members = [[member for member, each in everybody if each.buffers is buffers] for buffers in self._buckets]

    # --- collectives

    def _start(self, collective, what, *arrays):
        return self._checked(collective, what, lambda: getattr(self._group, collective)(*arrays))

    def _end(self, handle, collective, what):
        if handle is not None:
            self._checked(collective, what, handle.wait)

    def _checked(self, collective, what, act):
        try:
            return act()
        except Exception as error:
            raise CollectiveError(
                f"`{collective}` of {what} failed on rank {self.rank} of {self.ranks}: {error}. A rank has died, or "
                "takes longer than the time-out of the group. Parameters may differ between ranks now: go on from a "
                "checkpoint, with a new group"
            ) from error

    def gathered(self, own: np.ndarray, what: str) -> np.ndarray:
        """`own`, 1-D on the host and of one size on all ranks, of every rank: (ranks, size); waits for it."""
        return on_host(self.all_gather(moved(own, self._device_of), what)).reshape(self.ranks, -1)

    def all_gather(self, shard: Any, what: str) -> Any:
        """The `shard` of every rank, one after the other, in new memory; waits for it."""
        whole = zeros(self.ranks * shard.size, shard.dtype, self._device_of)
        self._end(self._start("all_gather", what, shard, whole), "all_gather", what)
        return whole

    # --- a step

    def located(self, gradients: "Gradients") -> "Gradients":
        """The `gradients` as they lie once they are reduced."""
        present = gradients.addresses != 0
        key = present.tobytes()
        if key not in self._addresses:
            if len(self._addresses) > 64:
                self._addresses.clear()
            sums = dict(zip(self._buckets, self._sums, strict=True))
            places = np.array([_address(each, sums[each.buffers]) for each in self._parameters], np.int64)
            self._addresses[key] = np.where(present, places, 0)
        copied = [*gradients.held, *(each.allocate("g") for each in self._buckets)]
        return gradients._replace(
            addresses=self._addresses[key], copied=[each for each in copied if each is not None], in_buffers=True
        )

    def reduce(self, gradients: "Gradients") -> None:
        """Put the `gradients` into their buffers, and start to reduce one after the other to their owners."""
        self._reducing = []
        for bucket, (buffers, shard) in enumerate(zip(self._buckets, self._sums, strict=True)):
            for member in () if gradients.in_buffers else self._members[bucket]:
                gradient, place = gradients.held[member], self._parameters[member].view("g")
                if gradient is not None and not _same(gradient, place):
                    assign(place, gradient)
            what = f"the gradients of bucket {bucket}"
            self._reducing.append(self._start("reduce_scatter", what, buffers.allocate("g"), shard))

    def arrived(self, bucket: int) -> None:
        """Wait for the reduced gradients of a bucket."""
        handle, self._reducing[bucket] = self._reducing[bucket], None
        self._end(handle, "reduce_scatter", f"the gradients of bucket {bucket}")

    def all_arrived(self) -> None:
        """Wait for the reduced gradients of all buckets."""
        for bucket in range(len(self._buckets)):
            self.arrived(bucket)

    def send(self, bucket: int) -> None:
        """Start to gather the parameters of a bucket."""
        buffers = self._buckets[bucket]
        p, (start, stop) = buffers.allocate("p"), buffers.kept
        what = f"the parameters of bucket {bucket}"
        self._gathering.append(self._start("all_gather", what, p[start:stop], p))

    def received(self) -> None:
        """Wait for the parameters of all buckets."""
        handles, self._gathering = self._gathering, []
        for bucket, handle in enumerate(handles):
            self._end(handle, "all_gather", f"the parameters of bucket {bucket}")

    # --- the norm

    def order(self, present: np.ndarray) -> "Partials":
        """How the sums of blocks of all ranks are put in order, for gradients of the parameters that are `present`."""
        kept = [[self._kept_of(each, rank) for each in self._parameters] for rank in range(self.ranks)]
        spans = np.array(kept, np.int64).reshape(self.ranks, -1, 2)[:, present]
        counts = -(-(spans[:, :, 1] - spans[:, :, 0]) // BLOCK)
        most = max(1, int(counts.sum(axis=1).max(initial=0)))
        # Where the blocks of (rank, parameter) begin in what is gathered, parameter by parameter and rank by rank.
        begins = (most * np.arange(self.ranks)[:, np.newaxis] + np.cumsum(counts, axis=1) - counts).T.reshape(-1)
        counts = counts.T.reshape(-1)
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return Partials(self, most, np.repeat(begins, counts) + inside, counts.reshape(-1, self.ranks).sum(axis=1))

    def _kept_of(self, parameter, rank):
        start, stop = parameter.buffers.kept
        width = stop - start
        return parameter.buffers.kept_of(parameter.name, (rank * width, (rank + 1) * width))

    # --- whole arrays

    def whole(self, wanted: Iterable[tuple[Parameter, str]]) -> Iterator[tuple[Parameter, str, Any]]:
        """(parameter, flat, view of it with the elements of all ranks) of each (parameter, flat).

        They come flat array by flat array, each of which is gathered once and forgotten.
        """
        together: dict[tuple[Buffers, str], list[Parameter]] = {}
        for parameter, flat in wanted:
            together.setdefault((parameter.buffers, flat), []).append(parameter)
        for (buffers, flat), parameters in together.items():
            array = buffers.allocate(flat)
            if flat not in WHOLE:
                array = self.all_gather(array, f"`{flat}`")
            for parameter in parameters:
                yield parameter, flat, buffers.segments[parameter.name].view(flat, array)


class Partials:
    """The sums of blocks of all ranks, in the order of the reduction.

    Attributes:
        own: float64 (most,): those of this rank, filled up with zeros.
        counts: int64 (present parameters,): how many sums of all ranks each has.
    """

    def __init__(self, exchange: Exchange, most: int, order: np.ndarray, counts: np.ndarray):
        self._exchange, self.counts = exchange, counts
        self.own = zeros(most, np.float64, exchange._device_of)
        # Without any gradient, the norm is that of a block of zeros.
        self._order = zeros(max(1, len(order)), np.int64, exchange._device_of)
        if len(order):
            assign(self._order, order)

    def gathered(self) -> Any:
        """The sums of all ranks, which take 8 bytes for 8,192 gradients."""
        return self._exchange.all_gather(self.own, "the partial sums of the norm")[self._order]


def _address(parameter, sums):
    """Where element 0 of the gradient would be beside the reduced ones, which are in `sums`."""
    start = parameter.buffers.segments[parameter.name].start - parameter.buffers.kept[0]
    base = sums.__array_interface__["data"][0] if isinstance(sums, np.ndarray) else sums.data.ptr
    return base + start * sums.itemsize


def _same(gradient, place):
    """Whether `gradient` is the parameter's place in the buffer of gradients."""
    return gradient is place or (
        type(gradient) is type(place) and gradient.strides == place.strides and bounds(gradient) == bounds(place)
    )
