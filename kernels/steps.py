"""Launches of several statements or kernels, between which an exception from outside may come."""

from collections.abc import Callable


class Steps:
    """The :class:`Launch <fastadam.kernels.Launch>` of a Python function."""

    def __init__(self, run: Callable[[], None]):
        """Make one that calls `run`."""
        self._run = run
        self.begun, self.ended = [0], [0]

    def __call__(self) -> None:
        """Run once."""
        self.begun[0] = self.ended[0] + 1
        self._run()
        self.ended[0] = self.begun[0]
