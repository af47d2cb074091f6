"""How the elements of an array lie in memory: which axis is outermost, and which run backwards."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Layout:
    """A dense array of `shape`, whose elements fill a range of memory without a gap.

    Attributes:
        shape: The shape of the array.
        order: The axes, from the longest stride to the shortest.
        backwards: The axes with a negative stride.
        plain: Whether the array is C-contiguous.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    backwards: tuple[int, ...] = ()
    plain: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        plain = not self.backwards and self.order == tuple(range(len(self.shape)))
        object.__setattr__(self, "plain", plain)

    @classmethod
    def of_axes(cls, shape: tuple[int, ...], axes: Sequence[int]) -> "Layout":
        """The layout with these `axes`."""
        order = tuple(max(axis, ~axis) for axis in axes)
        return cls(shape, order, tuple(sorted(~axis for axis in axes if axis < 0)))

    @property
    def axes(self) -> tuple[int, ...]:
        """`order` with -1 - axis for axes that run backwards: the form that a state dictionary has."""
        return tuple(~axis if axis in self.backwards else axis for axis in self.order)

    def flat(self, array: Any) -> Any:
        """`array`, of this shape, as a 1-D array in this memory order; a view if `array` has this layout."""
        return self._in_order(array).reshape(-1)

    def fits(self, array: Any) -> bool:
        """Whether `array`, of this shape, has this layout."""
        return bool(self._in_order(array).flags.c_contiguous)

    def view(self, flat: Any) -> Any:
        """A view of the 1-D array `flat` as an array with this layout."""
        if self.plain:
            return flat.reshape(self.shape)
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        array = flat.reshape([self.shape[axis] for axis in self.order]).transpose(inverse)
        return array[self._flips] if self.backwards else array

    def _in_order(self, array):
        return (array[self._flips] if self.backwards else array).transpose(self.order)

    @property
    def _flips(self):
        return tuple(slice(None, None, -1 if axis in self.backwards else 1) for axis in range(len(self.shape)))


def plain(shape: tuple[int, ...]) -> Layout:
    """The layout of C-contiguous arrays."""
    return Layout(shape, tuple(range(len(shape))))


def layout_of(array: Any) -> Layout | None:
    """The layout of a dense `array`; None if there are gaps between its elements, or elements that share memory."""
    if array.flags.c_contiguous or array.size == 0:
        return plain(array.shape)
    axes = range(array.ndim)
    backwards = tuple(axis for axis in axes if array.strides[axis] < 0 and array.shape[axis] > 1)
    # An axis of one element has no place of its own: it stays where it is in the order.
    order = tuple(sorted(axes, key=lambda axis: -abs(array.strides[axis]) if array.shape[axis] > 1 else 0))
    layout = Layout(array.shape, order, backwards)
    return layout if layout.fits(array) else None
