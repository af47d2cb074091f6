"""Parameters that share memory, of which one must be stepped after the other, as torch does."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def share_memory(addresses: Any, sizes: np.ndarray) -> bool:
    """Whether two of the ranges of memory that begin at `addresses` and have `sizes` bytes share some."""
    low = np.asarray(addresses, np.int64)[sizes > 0]
    high = low + sizes[sizes > 0]
    order = low.argsort()
    return bool((np.maximum.accumulate(high[order])[:-1] > low[order][1:]).any())


def bytes_of(tensors: Sequence[Any]) -> np.ndarray:
    """How many bytes dense tensors take, int64."""
    return np.array([tensor.numel() * tensor.element_size() for tensor in tensors], np.int64)


def turns_of(written: Sequence[Sequence[Any]]) -> list[int]:
    """A turn for each parameter, whose step writes `written`: after those before with which it shares memory."""
    tensors = [tensor for each in written for tensor in each]
    low, sizes = np.array(list(map(torch.Tensor.data_ptr, tensors)), np.int64), bytes_of(tensors)
    turns = [0] * len(written)
    if not share_memory(low, sizes):
        return turns
    owner, high = np.repeat(np.arange(len(written)), list(map(len, written))), low + sizes
    for index in range(len(written)):
        for mine in np.flatnonzero(owner == index):
            shared = (low < high[mine]) & (low[mine] < high) & (sizes > 0) & (owner < index)
            turns[index] = max([turns[index], *(1 + turns[other] for other in owner[shared])])
    return turns
