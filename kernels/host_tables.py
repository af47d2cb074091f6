"""The tables of launches on the host, for the reference and for the CPU."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastadam.kernels import ADDRESSES, CARRIED, HYPER, SCALARS, Tables


@dataclass(eq=False)
class HostTables:
    """What :class:`Tables <fastadam.kernels.Tables>` describes, as NumPy arrays."""

    addresses: np.ndarray
    hyper: np.ndarray
    carried: np.ndarray
    table: np.ndarray
    record: np.ndarray

    @classmethod
    def zeros(cls, parameters: int, clocks: int) -> "HostTables":
        """Tables of zeros for so many parameters and clocks."""
        return cls(
            np.zeros((parameters, ADDRESSES), np.int64),
            np.zeros((clocks, HYPER)),
            np.zeros((clocks, CARRIED)),
            np.zeros((clocks, SCALARS)),
            np.zeros(4),
        )

    def send(self) -> bool:
        """Nothing: launches read `addresses` where it is, and none is captured."""
        return False

    def write(self, name: str, where: Any, values: Any) -> None:
        """Let `where` of a table be `values`."""
        getattr(self, name)[where] = values

    def ask(self, factor_at: int = 0, divisor_at: int = 0, found_inf_at: int = 0) -> None:
        """Never: on the host nothing decides but the host."""
        raise NotImplementedError

    def copy_clock(self, old: int, new: int) -> None:
        """Let row `new` of the scalars begin as row `old`."""
        for table in (self.hyper, self.carried, self.table):
            table[new] = table[old]

    def take_over(self, earlier: Tables) -> None:
        """Begin with all that `earlier` tables, of no more rows, hold."""
        for name in ("addresses", "hyper", "carried", "table", "record"):
            held = getattr(earlier, name)
            getattr(self, name)[: len(held)] = held
