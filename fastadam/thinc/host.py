"""What is taken from Thinc, if it is installed and a version that is known."""

try:
    import thinc
except ModuleNotFoundError as error:
    if error.name != "thinc":
        raise
    raise ImportError("fastadam.thinc needs Thinc, which is not installed: pip install 'fastadam[thinc]'") from error

# Later ones have schedules that are no generators.
LEAST, BELOW = "8.3", "9"
if not LEAST.split(".") <= thinc.__version__.split(".")[:2] < [BELOW]:
    raise ImportError(
        f"fastadam.thinc needs Thinc {LEAST} or newer, and older than {BELOW}, got {thinc.__version__}: pip install "
        f"'thinc>={LEAST},<{BELOW}'"
    )

from thinc.optimizers import ADAM_DEFAULTS, FloatOrSeq, Optimizer  # noqa: E402  (the checks come first)

__all__ = ["ADAM_DEFAULTS", "FloatOrSeq", "Optimizer"]
