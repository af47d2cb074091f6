"""fastadam for PyTorch."""

from fastadam.torch.flatten import flatten_
from fastadam.torch.functional import adamw_step

__all__ = ["adamw_step", "flatten_"]
