"""The bytes of an element that a step has to read and write, for each storage format and extra."""

from typing import NamedTuple

# Kinds of cases: Adam alone; after clipping by the global norm; the full step of a training loop: unscale, check that
# gradients are finite, clip by the global norm, AdamW, average the parameters, zero the gradients. The others are about
# fastadam: what one thing more in the step costs, what a call costs, what groups cost, what rows of a table save.
KINDS = {
    "plain": "plain step",
    "clip": "step with clipping by norm",
    "full": "full step",
    "extras": "one thing more in the step",
    "calls": "costs of a call",
    "groups": "a group for each tensor",
    "rows": "rows of a table",
}
# The part of the rows of a table that have a gradient.
ROWS = 0.01


class Moves(NamedTuple):
    """Bytes of an element in each buffer that a step only reads, in each that it updates, in each that it only writes.

    `first` are the bytes that a pass before it reads: gradients, for their norm. `part` is the part of the elements
    that it touches.
    """

    read: tuple[int, ...]
    updated: tuple[int, ...]
    written: tuple[int, ...] = ()
    first: int = 0
    part: float = 1

    @property
    def total(self) -> float:
        """Bytes that go from and to the memory for an element."""
        return self.part * (sum(self.read) + 2 * sum(self.updated) + sum(self.written) + self.first)


class Stored(NamedTuple):
    """Bytes of an element of each buffer; `remainder` is 2 with exact masters of bfloat16 parameters."""

    p: int
    g: int
    m: int
    v: int
    remainder: int = 0

    @property
    def kept(self) -> int:
        """Bytes that all of them take in memory."""
        return sum(self)

    def moves(self, kind: str) -> Moves:
        """What a kind of step moves; the average of the full step is float32."""
        updated = tuple(size for size in (self.p, self.m, self.v, self.remainder) if size)
        if kind == "full":
            return Moves((), (*updated, self.g, 4), first=self.g)
        return Moves((self.g,), updated, first=self.g if kind == "clip" else 0)


# The exponents of 8-bit codes, one byte for 128 elements, count as nothing here.
FORMATS = {
    "float32": Stored(4, 4, 4, 4),
    "bfloat16 m, v": Stored(4, 4, 2, 2),
    "float16 m": Stored(4, 4, 2, 4),
    "8-bit m, v": Stored(4, 4, 1, 1),
    "bfloat16 p, g, m, v": Stored(2, 2, 2, 2),
    "bfloat16 p, g, 8-bit m, v": Stored(2, 2, 1, 1),
    "masters, bfloat16 g, m, v": Stored(2, 2, 2, 2, 2),
}
EXTRAS = {
    "g zeroed": Moves((), (4, 4, 4, 4)),
    "one buffer more": Moves((4,), (4, 4, 4, 4)),
    "16-bit copy": Moves((4,), (4, 4, 4), (2,)),
    "bfloat16 g, 16-bit copy": Moves((2,), (4, 4, 4), (2,)),
    "g twice": Moves((4,), (4, 4, 4), first=4),
    "all": Moves((), (4, 4, 4, 4, 4), (2,), first=4),
}
SPARSE = {"rows": Moves((4,), (4, 4, 4), part=ROWS)}
# These are no steps. They tell what the memory does with float32.
MEMORY = {"read": Moves((4,), ()), "copy": Moves((4,), (), (4,)), "scale": Moves((4,), (), (4,))}
_OTHERS = EXTRAS | SPARSE | MEMORY


def moves(layout: str, kind: str) -> Moves:
    """What a kind of step moves in a layout."""
    return FORMATS[layout].moves(kind) if layout in FORMATS else _OTHERS[layout]


def kept(layout: str) -> int:
    """Bytes of an element that p, g, m, v and what is beside them take in memory."""
    if layout in FORMATS:
        return FORMATS[layout].kept
    moved = _OTHERS[layout]
    return sum((*moved.read, *moved.updated, *moved.written))
