"""The tables of launches on the host, for the reference and for the CPU."""

from dataclasses import dataclass

import numpy as np

from fastadam.kernels import ADDRESSES, CARRIED, HYPER, SCALARS


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

    def send(self) -> None:
        """Nothing: launches read `addresses` where it is."""
