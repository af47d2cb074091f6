"""The arguments of a sharded optimizer, checked, and what cannot be sharded, refused by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastadam.params import Entry
from fastadam.settings.checks import flag, integer
from fastadam.settings.options import Options
from fastadam.sharding.groups import Group, group_of


def shared(held: Mapping[Any, Any]) -> tuple[Group | None, int | None]:
    """The group of `shard`, and `bucket_bytes`, of arguments that were given."""
    shard, least = held.get("shard"), held.get("bucket_bytes")
    if least is not None:
        least = integer(least, "bucket_bytes", least=1)
    if shard is None:
        if least is not None:
            raise ValueError(f"`bucket_bytes` must be None without `shard`, got {least}")
        return None, None
    if not flag(held.get("flat", True), "flat"):
        raise ValueError("`flat` must be True with `shard`, got False: ranks share flat buffers")
    return group_of(shard), least


def check_shared(options: Options) -> None:
    """Raise if an option asks for what ranks cannot share."""
    if options.sparse != "lazy":
        raise ValueError(
            f"`sparse` must be 'lazy' with `shard`, got {options.sparse!r}: gradients of rows are not reduced"
        )
    if options.copy_dtype is not None:
        raise ValueError(
            f"`copy_dtype` must be None with `shard`, got {options.copy_dtype!r}: train bfloat16 parameters with "
            "`master_weights`, so that 16 bits are gathered and the others are shared"
        )


def check_entries(entries: Sequence[Entry]) -> None:
    """Raise if a parameter is a flat array, which cannot be lengthened until ranks have equal parts of it."""
    for entry in entries:
        if entry.alone:
            raise ValueError(f"`{entry.label}` must be a dict or a list of arrays with `shard`, got one flat array")
