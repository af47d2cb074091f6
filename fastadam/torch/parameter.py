"""A tensor that trains, as a plan knows it."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from fastadam.kernels.texts.formats import Formats
from fastadam.memory.layout import Layout
from fastadam.memory.parameters import Parameter
from fastadam.torch.tensors import array_over


class TensorParameter(Parameter):
    """A parameter whose flat arrays are the memory of tensors that others own and may replace.

    Attributes:
        tensors: Flat array -> tensor; of DTensors, the parts in this process.
    """

    def __init__(
        self, name: Hashable, place: int, layout: Layout, tensors: Mapping[str, Any], stored: Formats, dtype: str
    ):
        self.name, self.place, self.layout, self.tensors = name, place, layout, tensors
        self._formats, self._arithmetic = stored, np.dtype(dtype)

    @property
    def formats(self) -> Formats:
        """The format of each buffer."""
        return self._formats

    @property
    def arithmetic(self) -> np.dtype:
        """The dtype of the arithmetic."""
        return self._arithmetic

    @property
    def size(self) -> int:
        """How many elements it has."""
        return self.tensors["p"].numel()

    @property
    def kept(self) -> tuple[int, int]:
        """All of its elements."""
        return 0, self.size

    def flat(self, name: str) -> Any:
        """The memory of one of its tensors."""
        return array_over(self.tensors[name])

    def address(self, name: str, backend: Any) -> int:
        """Where one of its tensors begins."""
        return self.tensors[name].data_ptr()

    def start_average(self) -> None:
        """Nothing: an average begins as the parameter when its tensor is made."""
