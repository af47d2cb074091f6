"""A share on a GPU: on torch's current stream, in CUDA graphs, and with counts for which the host does not wait."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastadam.kernels import SKIPPED
from fastadam.settings.options import Options
from fastadam.step.gather import Gradients
from fastadam.torch.share import Member, Share
from fastadam.torch.tensors import on_device_of, on_stream, tensor_over


class DeviceShare(Share):
    """The parameters on a GPU.

    Where the GPU decides about steps, or replays them, it counts them: numbers in the state are brought up to date when
    they are asked for.
    """

    is_on_device = True

    def __init__(self, members: Sequence[Member], settings: Sequence[dict[str, Any]], options: Options):
        self._asked: list[Any] = []
        self._is_captured = False
        with on_stream(members[0].tensors["p"]):
            super().__init__(members, settings, options)

    def _new_engine(self):
        engine = super()._new_engine()
        self._counts_on_device = engine.skips_by_itself
        return engine

    def refresh(self, settings: Sequence[Mapping[str, Any]]) -> None:
        """Take over the settings of all groups."""
        with on_stream(self._params[0]):
            super().refresh(settings)

    def step(self, gradients: Gradients, grad_scale: float, divisor: Any = None, found_inf: Any = None) -> bool:
        """Step the parameters that have one of `gradients`; return whether the step was taken, as far as is known."""
        with on_stream(self._params[0]):
            if divisor is not None or found_inf is not None or self._asked:
                self._ask(divisor, found_inf)
            self._is_captured = self.engine.plan.is_captured
            self._counts_on_device |= self._is_captured
            return super().step(gradients, grad_scale)

    def _ask(self, divisor, found_inf):
        """Let the device decide by these tensors about the step that follows."""
        # Moved without waiting, and kept until other ones are asked.
        named = (("grad_scale", divisor), ("found_inf", found_inf))
        self._asked = [None if each is None else on_device_of(each, self._params[0], name) for name, each in named]
        places = [0 if each is None else each.data_ptr() for each in self._asked]
        self.engine.plan.ask(0, *places, held=self._asked)
        self._counts_on_device = True

    def _count(self, gradients):
        if not self._is_captured:
            super()._count(gradients)

    def _count_others(self):
        if not self._counts_on_device:
            super()._count_others()

    def recount(self) -> None:
        """Let the numbers in the state be those that the device has counted, if it counts."""
        if self._counts_on_device:
            self._recount()

    @property
    def skipped_on_device(self) -> int:
        """How many steps the device has skipped; this waits for it."""
        if not self._counts_on_device:
            return 0
        with on_stream(self._params[0]):
            return int(self.engine.plan.tables.record[SKIPPED])

    @property
    def skips(self) -> Any:
        """The same as a tensor on the device, which nothing waits for; 0 if the host counts."""
        if not self._counts_on_device:
            return 0
        with on_stream(self._params[0]):
            return tensor_over(self.engine.plan.tables.record[SKIPPED : SKIPPED + 1])[0]

    def _recount(self):
        with on_stream(self._params[0]):
            super()._recount()

    def _restart(self):
        with on_stream(self._params[0]):
            super()._restart()
