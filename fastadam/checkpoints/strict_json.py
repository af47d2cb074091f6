"""JSON as it is in a file that nobody can be sure of: no duplicate keys, no NaN, nothing deep and nothing huge."""

import json
from collections import Counter
from typing import Any

from fastadam.checkpoints.errors import CheckpointError

_LARGEST = 2**63


def parsed(text: str, label: str) -> Any:
    """The value of `text`; raise `CheckpointError` unless it is strict JSON with finite numbers below 2**63."""
    try:
        return json.loads(
            text, object_pairs_hook=_distinct, parse_constant=_no_number, parse_int=_integer, parse_float=_finite
        )
    except ValueError as error:
        raise CheckpointError(f"`{label}` must be strict JSON: {error}") from None
    except RecursionError:
        raise CheckpointError(f"`{label}` must be strict JSON, got brackets that are nested too deeply") from None


def _distinct(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"keys must be distinct, got {twice[:80]!r} twice")
    return found


def _no_number(text):
    raise ValueError(f"numbers must be finite, got {text}")


def _integer(digits):
    if len(digits) > 20 or abs(int(digits)) >= _LARGEST:
        raise ValueError(f"integers must be below 2**63, got {digits[:24]}")
    return int(digits)


def _finite(digits):
    value = float(digits)
    if value - value != 0.0:
        raise ValueError(f"numbers must be finite, got {digits[:24]}")
    return value
