"""Timing in turns: every contender once a round, so that a slow second of the machine hits them all."""

import gc
import random
from collections.abc import Callable, Iterator, Mapping
from time import perf_counter, sleep
from typing import Any

# A turn: `turn(count)` makes `count` calls and returns the seconds that one took.
Turn = Callable[[int], float]


def timed(call: Callable[[], Any], prepare: Callable[[], Any] | None = None) -> Turn:
    """The turn of a function of this process: one call to warm up, then `count` that are timed.

    With `prepare`, which is called outside of the time taken, a turn has 50 calls at most: gradients that a step has
    zeroed would make moments subnormal after some hundreds.
    """

    def turn(count):
        count = count if prepare is None else min(count, 50)
        call()
        if prepare is not None:
            prepare()
        counter = range(count)
        gc.disable()
        try:
            start = perf_counter()
            for _ in counter:
                call()
            return (perf_counter() - start) / count
        finally:
            gc.enable()

    return turn


def in_turns(
    turns: Mapping[str, Turn], rounds: int, *, turn_seconds=2e-3, pause=0.0, patience=float("inf")
) -> Iterator[tuple[str, float]]:
    """(name, seconds a call) of turn after turn, as many calls as fill `turn_seconds`, after a `pause`.

    Every round has an order of its own, so that no contender always follows the same neighbour. After five turns and
    `patience` seconds a contender gets no more turns.
    """
    counts = {name: max(1, round(turn_seconds / turn(1))) for name, turn in turns.items()}
    order, names, spent = random.Random(0), list(turns), dict.fromkeys(turns, 0.0)
    for number in range(rounds):
        order.shuffle(names)
        for name in names:
            if number >= 5 and spent[name] > patience:
                continue
            sleep(pause)
            start = perf_counter()
            seconds = turns[name](counts[name])
            spent[name] += perf_counter() - start
            yield name, seconds


def interleave(turns: Mapping[str, Turn], rounds: int, *, turn_seconds=2e-3, pause=0.0) -> dict[str, list[float]]:
    """Let `turns` take turns for some rounds; return the seconds that a call of each took in each round."""
    times: dict[str, list[float]] = {name: [] for name in turns}
    for name, seconds in in_turns(turns, rounds, turn_seconds=turn_seconds, pause=pause):
        times[name].append(seconds)
    return times
