"""What is taken from Thinc, if it is installed and a version that is known."""

from fastadam.hosts import require

require("thinc", "fastadam.thinc")

from thinc.optimizers import ADAM_DEFAULTS, FloatOrSeq, Optimizer  # noqa: E402  (the check comes first)

__all__ = ["ADAM_DEFAULTS", "FloatOrSeq", "Optimizer"]
