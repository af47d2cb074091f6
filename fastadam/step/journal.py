"""What has been begun: an exception from outside, such as Ctrl-C, leaves all as before or as after it.

Machine code runs to its end before Python raises: such a launch has run as a whole, or not at all, and tells which.
What follows it in Python, counts and the like, can be done twice, and is done when the exception comes. Where a launch
is several kernels, an exception between them tears the state apart; that is said from then on.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fastadam.kernels import Launch
from fastadam.kernels.subnormals import leave

Entry = tuple[Launch | None, int, Callable[..., None], tuple]


class Journal:
    """The one thing that is under way.

    Attributes:
        begun: What has been begun and did not come to its end, None if there is nothing.
    """

    def __init__(self) -> None:
        """Make one in which nothing has been begun."""
        self.begun: Entry | None = None

    def run(self, launch: Launch | None, finish: Callable[..., None], *arguments: Any) -> None:
        """Call `launch`, if there is one, and then `finish(*arguments)`, which must bear to be called twice.

        If an exception comes when the launch has run, `finish` is called all the same before it is raised.
        """
        entry = (launch, 0 if launch is None else launch.ended[0], finish, arguments)
        try:
            self.begun = entry
            if launch is not None:
                launch()
            finish(*arguments)
            self.begun = None
        except BaseException:
            leave()
            with suppress(Exception):  # the next call tries again, or says what is wrong
                self._settle(entry)
            raise

    def settle(self) -> None:
        """Finish what has been begun.

        Raises:
            RuntimeError: that cannot be done: parameters and moments are torn.
        """
        if self.begun is not None:
            try:
                self._settle(self.begun)
            except Exception as error:
                raise RuntimeError(
                    "this optimizer is torn: an exception ended a call of it half-way, so that some of its parameters "
                    "and moments are as before it and some as after it. Write the parameters anew and load a state, "
                    "with `load` or `load_state_dict`, before it is used or saved"
                ) from error

    def _settle(self, entry):
        launch, ended, finish, arguments = entry
        if launch is None or launch.ended[0] > ended:
            finish(*arguments)
        elif launch.begun[0] > ended:
            raise RuntimeError("an exception came between the kernels of one launch")
        self.begun = None
