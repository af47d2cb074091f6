"""Two runs compared by shares of the limit and not by seconds, so that a noisy or another machine does not matter."""

from typing import NamedTuple

from fastadam.bench.record import Record, Result


class Change(NamedTuple):
    """One contender in two runs: its shares of the limit by the medians, and by the quartiles that lie nearest."""

    workload: str
    kind: str
    contender: str
    before: float
    after: float
    lowest_before: float
    highest_after: float

    @property
    def ratio(self) -> float:
        """The share now, divided by the share before: below 1 it has become slower."""
        return self.after / self.before

    def is_slower(self, threshold: float) -> bool:
        """Whether it has lost more than `threshold` of its share, and the quartiles of the two runs lie apart."""
        return self.ratio < 1 - threshold and self.highest_after < self.lowest_before


def changes(before: Record, after: Record) -> list[Change]:
    """The change of every result of fastadam that both runs have, with its limit."""
    found = []
    for result in after.results:
        earlier = before.find(result.workload, result.kind, result.contender)
        if result.contender.startswith("fastadam") and earlier is not None:
            change = _change(before, earlier, after, result)
            if change.ratio == change.ratio:
                found.append(change)
    return found


def _change(before: Record, earlier: Result, after: Record, result: Result) -> Change:
    was, now = before.share_of_limit(earlier), after.share_of_limit(result)
    lowest = was * earlier.median / earlier.quartiles[1]
    highest = now * result.median / result.quartiles[0]
    return Change(result.workload, result.kind, result.contender, was, now, lowest, highest)
