"""fastadam: the Adam optimizer step as one fused, in-place pass over flat buffers, on CPU and CUDA."""

from fastadam.functional import adam_step
from fastadam.optimizer import Adam, AdamW

__all__ = ["Adam", "AdamW", "adam_step"]
__version__ = "0.1.0"
