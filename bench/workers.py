"""A process for each contender.

Two OpenMP pools in one process, Numba's and torch's, keep their idle threads spinning for a while after each launch
and so slow each other down. Each contender therefore has a process of its own, and only one of them works at a time.
"""

import multiprocessing
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from catalogue import build
from interleave import Turn, timed
from workloads import Workload

# Seconds in which the idle threads of the process that was last at work go to sleep.
SETTLE = 0.01


@contextmanager
def contenders_at_work(names: list[str], workload: Workload) -> Iterator[dict[str, Turn]]:
    """The turns of the contenders `names` on `workload`; each has been checked and warmed up in its own process."""
    context = multiprocessing.get_context("spawn")
    processes, connections = [], {}
    try:
        for name in names:
            connection, far_end = context.Pipe()
            process = context.Process(target=_serve, args=(far_end, name, workload), daemon=True)
            process.start()
            processes.append(process)
            connections[name] = connection
            _reply(connection)
        yield {name: _remote(connection) for name, connection in connections.items()}
    finally:
        for connection in connections.values():
            connection.close()
        for process in processes:
            process.join()


def _remote(connection):
    def turn(count):
        connection.send(count)
        return _reply(connection)

    return turn


def _reply(connection):
    answer = connection.recv()
    if isinstance(answer, str):
        raise RuntimeError(answer)
    return answer


def _serve(connection, name, workload):
    try:
        contender = build(name, workload)
        turn = timed(contender.step, contender.prepare)
        connection.send(0.0)
        while True:
            connection.send(turn(connection.recv()))
    except EOFError:
        pass
    except BaseException:
        connection.send(traceback.format_exc())
