"""Where parameters begin in a flat buffer that ranks share in equal parts, whose ends are ends of blocks."""

from collections.abc import Sequence

from fastadam.kernels.blocks import BLOCK

# A multiple of every gap.
_UNIT = 512


def placed(sizes: Sequence[int], gap: int, ranks: int) -> tuple[list[int], int]:
    """Where parameters of these sizes begin, and the width of a rank's part: `ranks` such parts are the buffer.

    Parameters begin at multiples of `gap`, which divides `BLOCK`. Rank r has elements r * width to (r + 1) * width.
    Where a part ends inside a parameter, it ends at a multiple of `BLOCK` of the parameter's own elements.
    """
    if ranks == 1:
        return _placed(sizes, gap, 0)
    # Where nothing is cut, parts can be shorter than a block.
    largest = max(sizes, default=0)
    unit = BLOCK if largest > BLOCK else _UNIT
    width = max(1, -(-max(largest if unit == _UNIT else 0, -(-sum(sizes) // ranks)) // unit)) * unit
    while True:
        starts, stop = _placed(sizes, gap, width)
        if stop <= ranks * width:
            return starts, width
        # Gaps take less than one block for each end of a part.
        width += unit


def _placed(sizes, gap, width):
    """Where parameters begin, and where the last one ends, with an end of a part at each multiple of `width`."""
    starts, stop = [], 0
    for size in sizes:
        start = -(-stop // gap) * gap
        end = -(-start // width) * width if width else 0
        if start < end < start + size:
            start = end - (end - start) // BLOCK * BLOCK
        stop = start + size
        starts.append(start)
    return starts, stop


def buckets(members: Sequence[int], nbytes: Sequence[int], least: int | None) -> list[list[int]]:
    """Neighbours among `members`, which have `nbytes`, in buckets of `least` bytes or more; the last may have fewer."""
    found: list[list[int]] = []
    size = 0
    for member in members:
        if not found or (least is not None and size >= least):
            found.append([])
            size = 0
        found[-1].append(member)
        size += nbytes[member]
    return found
