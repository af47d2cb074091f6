"""fastadam: the Adam optimizer step as one fused, in-place pass over flat buffers, on CPU and CUDA."""

from fastadam import schedules
from fastadam.family import Adam, Adamax, AdamW, NAdam, RAdam
from fastadam.functional import adam_step
from fastadam.step.rows import SparseRows

__all__ = ["Adam", "AdamW", "Adamax", "NAdam", "RAdam", "SparseRows", "adam_step", "schedules"]
__version__ = "0.1.0"
