"""Checkpoints: parameters and all state of an optimizer in one safetensors file, replaced as a whole, believed last."""

from fastadam.checkpoints.errors import CheckpointError

__all__ = ["CheckpointError"]
