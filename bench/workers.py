"""A process for each pool of threads.

Two OpenMP pools in one process, Numba's and torch's, keep their idle threads spinning for a while after each launch
and so slow each other down. The contenders of each pool therefore have a process of their own, and only one of them
works at a time.
"""

import gc
import multiprocessing
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from fastadam.bench.build import build
from fastadam.bench.interleave import Turn, timed
from fastadam.bench.registry import CONTENDERS
from fastadam.bench.workloads import Workload

# Seconds in which the idle threads of the process that was last at work go to sleep: those of LLVM's OpenMP wait 0.2.
SETTLE = 0.21 if sys.platform == "darwin" else 0.01
# Parameters from which processes are ended with the case: caches of compilers and allocators hold gigabytes.
FORGET_FROM = 5_000_000


class ContenderError(Exception):
    """A contender could not be built, gave a wrong answer, or failed at work."""


class Workers:
    """The processes, each started when one of its contenders is first wanted, and ended with the `with` block."""

    def __init__(self):
        self._workers: dict[str, _Worker] = {}

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception):
        for worker in self._workers.values():
            worker.connection.close()
        for worker in self._workers.values():
            worker.end()

    @contextmanager
    def at_work(
        self, names: Iterable[str], workload: Workload, kind: str
    ) -> Iterator[tuple[dict[str, Turn], dict[str, str]]]:
        """The turns of those `names` that can be built and are right; and for the others, what went wrong."""
        homes: dict[str, list[str]] = {}
        for name in names:
            homes.setdefault(CONTENDERS[name].process, []).append(name)
        failed = {}
        for home, members in homes.items():
            if home not in self._workers:
                self._workers[home] = _Worker()
            # One after the other: to build takes more memory than to step.
            self._workers[home].send("build", members, workload, kind)
            try:
                failed.update(self._workers[home].receive())
            except ContenderError as error:
                failed.update(dict.fromkeys(members, str(error)))
        try:
            yield {name: self._turn(name) for name in names if name not in failed}, failed
        finally:
            for home in homes:
                self._drop(home, forget=workload.size >= FORGET_FROM)

    def _turn(self, name):
        worker = self._workers[CONTENDERS[name].process]

        def turn(count):
            worker.send("turn", name, count)
            return worker.receive()

        return turn

    def _drop(self, home, forget):
        """Free what was built, before something else takes the memory; forget a process that has ended."""
        if forget:
            self._workers.pop(home).end()
            return
        try:
            self._workers[home].send("drop")
            self._workers[home].receive()
        except ContenderError:
            self._workers.pop(home).end()


class _Worker:
    """A process and the way to speak with it."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self.connection, far_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(far_end,), daemon=True)
        self.process.start()
        far_end.close()

    def send(self, *message):
        # If the process has ended, `receive` says so.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(message)

    def receive(self):
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise ContenderError("its process ended, for want of memory perhaps") from None
        if isinstance(answer, str):
            raise ContenderError(answer)
        return answer

    def end(self):
        """End the process, and wait for it: it leaves when the connection is closed."""
        self.connection.close()
        self.process.join(timeout=2)
        self.process.kill()
        self.process.join()


def _serve(connection):
    # Ctrl-C is for the process that keeps the results.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    turns: dict[str, Turn] = {}
    with suppress(EOFError, OSError):
        while True:
            what, *arguments = connection.recv()
            if what == "build":
                connection.send(_build(turns, *arguments))
            elif what == "turn":
                connection.send(_take(turns, *arguments))
            else:
                turns.clear()
                gc.collect()
                connection.send(None)


def _build(turns, names, workload, kind):
    """Add the turns of `names`; return for each that failed what went wrong."""
    failed = {}
    for name in names:
        try:
            built = build(name, workload, kind)
        except BaseException as error:
            failed[name] = _in_one_line(error)
        else:
            turns[name] = timed(built.step, built.prepare)
    return failed


def _take(turns, name, count):
    try:
        return turns[name](count)
    except BaseException as error:
        return f"{name}: {_in_one_line(error)}"


def _in_one_line(error):
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
