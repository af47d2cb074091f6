"""Ranks of a sharded optimizer: threads of this process, whose group is any object with the four names."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np


class Wire:
    """What the ranks of a `ThreadGroup` share: each puts its array, and all go on when the last has."""

    def __init__(self, size, timeout=30.0):
        self.size, self.barrier, self.put = size, threading.Barrier(size, timeout=timeout), [None] * size
        self.nbytes = [0] * size

    def exchange(self, rank, array):
        self.nbytes[rank] += array.nbytes
        self.put[rank] = array
        self.barrier.wait()
        found = list(self.put)
        self.barrier.wait()
        return found


class ThreadGroup:
    """One rank of a group of threads."""

    def __init__(self, wire, rank):
        self.wire, self.rank, self.size, self.calls = wire, rank, wire.size, []

    def _check(self, flat, shard):
        assert flat.ndim == shard.ndim == 1
        assert flat.flags.c_contiguous
        assert shard.flags.c_contiguous
        assert len(flat) == self.size * len(shard)

    def reduce_scatter(self, flat, shard):
        self._check(flat, shard)
        self.calls.append("reduce_scatter")
        parts = [each.reshape(self.size, -1)[self.rank] for each in self.wire.exchange(self.rank, flat)]
        total = parts[0].copy()
        for part in parts[1:]:
            total += part
        shard[...] = total
        self.wire.barrier.wait()

    def all_gather(self, shard, flat):
        self._check(flat, shard)
        self.calls.append("all_gather")
        found = np.concatenate(self.wire.exchange(self.rank, shard.copy()))
        flat[...] = found


class Later:
    """A handle whose collective is done when it is waited for."""

    def __init__(self, act):
        self.act = act

    def wait(self):
        act, self.act = self.act, None
        act()


class LateGroup(ThreadGroup):
    """A group that does everything when it is waited for, in the order in which it was started."""

    def __init__(self, wire, rank):
        super().__init__(wire, rank)
        self.waiting = []

    def _later(self, act):
        handle = Later(lambda: self._until(handle))
        self.waiting.append((handle, act))
        return handle

    def _until(self, handle):
        while any(each is handle for each, _ in self.waiting):
            self.waiting.pop(0)[1]()

    def reduce_scatter(self, flat, shard):
        start = super().reduce_scatter
        return self._later(lambda: start(flat, shard))

    def all_gather(self, shard, flat):
        start = super().all_gather
        return self._later(lambda: start(shard, flat))


def on_ranks(size, act, kind=ThreadGroup, timeout=60.0):
    """What `act(group)` returns on each of `size` threads; an error of any is raised."""
    wire = Wire(size, timeout)
    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(act, kind(wire, rank)) for rank in range(size)]
        return [future.result() for future in futures]


def errors_on_ranks(size, act, kind=ThreadGroup, timeout=60.0):
    """The error that `act(group)` raises on each of `size` threads, None where there is none."""

    def caught(group):
        try:
            act(group)
        except Exception as error:
            return error
        return None

    return on_ranks(size, caught, kind, timeout)
