"""How one pass runs: the interface of the backends, on one page.

`texts` has what is computed. `reference` runs the texts on NumPy arrays, `cpu` compiles them with Numba, `cuda` with
CuPy; each of the three is a `Backend`. `blocks` cuts what is stepped into blocks, and `norm` has the order of the one
reduction. Dependencies: texts -> blocks, norm -> reference -> cpu | cuda.

A launch knows no arrays and no packing. It is described by tables (`Tables`) and by what each update text steps
(`Pass`). Inputs are trusted: all checks live in :mod:`fastadam`.

A *clock* is a row of scalars: the parameters of one group that have the same update text and have taken the same steps.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from fastadam.kernels.texts.update import Update

Array = Any  # a NumPy array, or a CuPy array for the CUDA backend

# Widths of the tables, in elements: no update needs more.
ADDRESSES, HYPER, CARRIED, SCALARS = 16, 24, 4, 24
# Columns of the block table.
PARAMETER, CLOCK, START, STOP, FIRST = range(5)
# Column of the address table with the gradient; those of an update's flat arrays follow, and then its random place.
GRADIENT = 0
# What the record of a step holds: the factor on the gradients, whether the step is taken (1.0 or 0.0), the norm of the
# scaled gradients before clipping, and how many steps have not been taken.
GRAD_SCALE, TAKEN, NORM, SKIPPED = range(4)


class Tables(Protocol):
    """The numbers that launches read and write.

    Attributes:
        addresses: int64 (parameters, ADDRESSES), on the host; all but the column GRADIENT is written by `write`. A row
            has the address of the gradient (0: there is none), of each flat array of the parameter's update, in the
            order of `update.flats`, and then the place of its random words, an integer below 2**32: the number of its
            first chunk of 128 elements. An address is that of the parameter's element 0 (of its exponent 0).
        hyper: float64 (clocks, HYPER): hyperparameters, in the order of `update.hyper`.
        carried: float64 (clocks, CARRIED): what is carried from step to step, in the order of `update.carried`.
        table: float64 (clocks, SCALARS), the memory of the scalars that the fold writes and elements read, in the order
            of `update.columns`: row by row in the dtype of the arithmetic, from the beginning of the row.
        record: float64 (4,): GRAD_SCALE, TAKEN, NORM, SKIPPED.
    """

    addresses: np.ndarray
    hyper: Array
    carried: Array
    table: Array
    record: Array

    def send(self) -> bool:
        """Take note that the addresses of a step are written; whether it is captured: raise if they are others."""

    def write(self, name: str, where: Any, values: Any) -> None:
        """Let `where` of a table be `values`, for the launches that follow."""

    def ask(self, factor_at: int = 0, divisor_at: int = 0, found_inf_at: int = 0) -> None:
        """Let the device decide about the next steps, by float32 numbers at these addresses; only on a GPU."""

    def copy_clock(self, old: int, new: int) -> None:
        """Let row `new` of the scalars begin as row `old`."""

    def take_over(self, earlier: "Tables") -> None:
        """Begin with all that `earlier` tables, of no more rows, hold."""


class Pass(NamedTuple):
    """What one update text steps in one launch.

    Attributes:
        update: The text.
        dtype: Of its arithmetic: float32 or float64.
        clocks: int64 (k,): rows of the scalars, each folded once, before the elements.
        blocks: int64 (n, 5): PARAMETER, CLOCK, START, STOP, FIRST. Elements START to STOP of the parameter are stepped
            with the scalars of CLOCK, and with the gradient from its element FIRST on. START is a multiple of the
            elements that share an exponent, where there are exponents.
    """

    update: "Update"
    dtype: np.dtype
    clocks: np.ndarray
    blocks: np.ndarray


class Each(NamedTuple):
    """That the gradients of each parameter are clipped by their own norm.

    Attributes:
        ends: int64 (k,): the sums of blocks of one end where those of the next begin.
        clocks: int64 (k,): the clock of each, which no other parameter has.
        max_grad_norm: The limit of each norm.
    """

    ends: np.ndarray
    clocks: np.ndarray
    max_grad_norm: float


class Launch(Protocol):
    """Runs when it is called, and tells how far it has come if an exception from outside, such as Ctrl-C, ends it.

    Attributes:
        begun: Integers, of which the first is how often it has begun.
        ended: Integers, of which the first is how often it has come to its end. If that is one less than `begun`, an
            unknown part has been written.
    """

    begun: Sequence[int]
    ended: Sequence[int]

    def __call__(self) -> None:
        """Run once."""


class Backend(Protocol):
    """What :mod:`kernels.cpu <fastadam.kernels.cpu>` and :mod:`kernels.cuda <fastadam.kernels.cuda>` provide.

    `device_of` is an array on the device that is meant; the CPU backend takes None as well.
    """

    # A gradient of this many elements or more is read where it lies; a smaller one is copied into a buffer first, if
    # there is one, where that costs less than to find out its address.
    DIRECT_FROM: int

    def tables(self, parameters: int, clocks: int, device_of: Array) -> Tables:
        """Tables of zeros."""

    def address(self, array: Array) -> int:
        """Where `array` begins; it must live on until the launch that reads it has run."""

    def is_captured(self, device_of: Array) -> bool:
        """Whether launches now become part of a CUDA graph, which runs them later and again; never on the CPU."""

    def launcher(self, passes: Sequence[Pass], tables: Tables, *, guarded: bool) -> Launch:
        """What runs `passes` once: the fold of each clock, then the elements of each block.

        All that can fail is done here: compilation and allocation. It reads the tables as they are when it is called.
        The factor on the gradients is `tables.record[GRAD_SCALE]`; if `guarded`, nothing is written, no clock goes on
        and only gradients are zeroed where `tables.record[TAKEN]` is 0 (the CPU backend leaves that to its caller, who
        does not launch).
        """

    def squares(
        self, dtype: np.dtype, format: str, blocks: np.ndarray, tables: Tables, sums: Array
    ) -> Callable[[], None]:
        """A function that writes the sum of squares of the gradients of each block: level 0 of the reduction.

        `sums` is float64 (blocks,); `format` is how the gradients are stored: a key of `formats.FORMATS`.
        """

    def clip(
        self,
        sums: Array,
        grad_scale: float,
        max_grad_norm: float,
        largest: float,
        propagate: float,
        tables: Tables,
        squares: Sequence[Any] = (),
        each: Any = None,
    ) -> None:
        """Add up `sums`, in place, and write what follows from the norm into `tables.record`.

        `squares` are the functions that write the sums and have not been called yet. With `each`, which the function of
        that name has made, the hyperparameters of each clock get a factor beside, `texts.clip.clip_each`, and
        `grad_scale` stays the factor on all. A backend may do all of it in the launch of the step that follows, unless
        the record is read before.
        """

    def each(self, ends: np.ndarray, clocks: np.ndarray, max_grad_norm: float, tables: Tables) -> Any:
        """What `clip` is to know to clip the gradients of each parameter by their own norm: see `Each`."""

    def catch_up(
        self, addresses: np.ndarray, dtype: np.dtype, blocks: np.ndarray, table: Array, starts: Array
    ) -> Launch:
        """What makes up for what rows have missed: blocks int64 (n, 4) of PARAMETER, slot, START, STOP.

        Row PARAMETER of `addresses`, int64 (parameters, 3), has where p, m and v begin. Each block gets rows
        `starts[slot]` to `starts[slot + 1]` of `table`, one after the other.
        """

    def copy_out(self, p: Array, copy: Array, format: str) -> None:
        """Write flat `p`, of the dtype of the arithmetic, rounded to "bfloat16" or "float16" into the bits `copy`."""


if TYPE_CHECKING:
    from fastadam.kernels import cpu, cuda, reference

    # mypy holds the three to this page.
    _CPU: Backend = cpu
    _CUDA: Backend = cuda
    _REFERENCE: Backend = reference
