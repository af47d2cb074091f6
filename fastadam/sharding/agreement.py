"""Ranks compare what they are about to do: who does something else is named, in place of collectives that never end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import zip_longest

import numpy as np

from fastadam.sharding.errors import CollectiveError, DisagreementError
from fastadam.sharding.exchange import Exchange

# What each rank says of a thing: bytes that are compared, and lines that tell people what they mean.
Said = tuple[bytes, Callable[[], Sequence[str]]]
_LONGEST = 300


def lines(found: Sequence[str]) -> Said:
    """What is compared line by line."""
    return "\n".join(found).encode(), lambda: found


def agree(exchange: Exchange, what: str, said: Mapping[str, Said], failure: Exception | None = None) -> None:
    """Raise unless all ranks say the same, and none has a `failure`; `said` has the same keys on all ranks.

    With a `failure` of its own a rank only tells it. The numbers that are compared take 8 bytes for each key.

    Raises:
        DisagreementError: names the rank, what it says, and what rank 0 says.
    """
    digests = [blake2b(content, digest_size=8).digest() for content, _ in said.values()] if failure is None else []
    own = np.zeros(1 + len(said), np.int64)
    own[0] = failure is not None
    own[1 : 1 + len(digests)] = np.frombuffer(b"".join(digests), np.int64)
    found = exchange.gathered(own, f"what ranks compare {what}")
    failed = np.flatnonzero(found[:, 0]).tolist()
    if failed:
        told = texts(exchange, "" if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is None:
            raise DisagreementError(f"rank {failed[0]} has failed {what}, so that no rank goes on: {told[failed[0]]}")
        return
    for number, (name, (_, describe)) in enumerate(said.items(), 1):
        others = np.flatnonzero(found[:, number] != found[0, number]).tolist()
        if others:
            told = texts(exchange, "\n".join(describe()))
            first, other = _difference(told[0], told[others[0]])
            raise DisagreementError(
                f"all ranks must have the same {name} {what}, got {other} on rank {others[0]} and {first} on rank 0"
            )


@contextmanager
def shared_failure(exchange: Exchange | None, things: int, what: str) -> Iterator[None]:
    """Tell the other ranks, which go on to compare so many `things`, of an error that is raised inside."""
    try:
        yield
    except (CollectiveError, DisagreementError):  # all ranks have it, or no rank can be told
        raise
    except Exception as failure:
        if exchange is not None:
            agree(exchange, what, dict.fromkeys(map(str, range(things)), (b"", list)), failure)
        raise


def texts(exchange: Exchange, text: str) -> list[str]:
    """The `text` of every rank."""
    encoded = text.encode()
    sizes = exchange.gathered(np.array([len(encoded)], np.int64), "the sizes of texts")[:, 0]
    own = np.zeros(max(1, int(sizes.max())), np.uint8)
    own[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    found = exchange.gathered(own, "texts")
    return [bytes(each[:size]).decode() for each, size in zip(found, sizes.tolist(), strict=True)]


def _difference(first, other):
    """The first lines in which two texts differ."""
    pairs = zip_longest(first.split("\n"), other.split("\n"), fillvalue="nothing")
    for pair in pairs:
        if pair[0] != pair[1]:
            return [each[:_LONGEST] or "nothing" for each in pair]
    return "one", "another"
