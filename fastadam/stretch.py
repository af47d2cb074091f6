"""One parameter group's part of the flat buffers, and the launches of its step."""

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fastadam.arrays import as_array, check_like, kernels, namespace
from fastadam.buffers import Buffers
from fastadam.groups import ParamGroup
from fastadam.kernels.fold import fold, fold_l2
from fastadam.kernels.update import ADAM, ADAM_L2, Update


def choose_update(settings: Mapping[str, Any]) -> tuple[Update, Callable]:
    """The update text for `settings`, and the fold that gives its scalars for a step and a gradient scale."""
    coupled = settings["weight_decay"] > 0.0 and not settings["decoupled_weight_decay"]
    sign = -1.0 if settings["maximize"] else 1.0
    beta1, beta2 = settings["betas"]
    hyperparameters = settings["lr"], beta1, beta2, settings["eps"], settings["weight_decay"], sign
    return (ADAM_L2, fold_l2(*hyperparameters)) if coupled else (ADAM, fold(*hyperparameters))


class Part(NamedTuple):
    """A part of a step: elements `start` to `stop` of the flat buffers, and the flat gradient for them."""

    start: int
    stop: int
    gradient: Any


class Stretch:
    """The stretch of flat buffers that one parameter group covers, and how many steps it has taken."""

    def __init__(self, settings: ParamGroup, buffers: Buffers):
        self.settings = settings
        self.buffers = buffers
        self.step = 0
        self._segments = [buffers.segments[name] for name in settings["params"]]
        self._usual = np.ndarray if isinstance(buffers.p, np.ndarray) else None
        self.start, self.stop = self._segments[0].start, self._segments[-1].stop
        self.p, self.m, self.v = (self.cut(flat) for flat in (buffers.p, buffers.m, buffers.v))
        self.g: Any = None
        # Name -> place of a gradient in `g`; empty while there is no `g`.
        self.gradient_views: dict[Hashable, Any] = {}
        self._kernels: ModuleType = kernels(buffers.p, "params")
        settings.changed = self._prepare
        self._prepare()

    def _prepare(self):
        self._update, self.scalars = choose_update(self.settings)
        # Without eps, an element whose gradients have all been zero becomes 0 / 0.
        self._must_clear_gaps = self.settings["eps"] == 0.0 and len(self._segments) > 1
        self.launch: Callable = self._launch_first

    def _launch_first(self, *arguments):
        # The kernel is compiled here, and not while setting after setting is assigned.
        launch = self._launcher(self.stop - self.start)
        self.launch = partial(self._launch_and_clear_gaps, launch) if self._must_clear_gaps else launch
        self.launch(*arguments)

    def _launcher(self, size):
        return self._kernels.launcher(self._update, size, self.p.dtype)

    def _launch_and_clear_gaps(self, launch, *arguments):
        launch(*arguments)
        self._clear_gaps()

    def _clear_gaps(self):
        for left, right in pairwise(self._segments):
            self.buffers.p[left.stop : right.start] = 0.0

    def cut(self, flat: Any) -> Any:
        """This stretch of one of the flat buffers."""
        return flat[self.start : self.stop]

    def views(self, flat: Any) -> dict[Hashable, Any]:
        """Name -> view of its segment in one of the flat buffers."""
        names = self.settings["params"]
        return {name: segment.of(flat) for name, segment in zip(names, self._segments, strict=True)}

    def use_gradient_buffer(self) -> None:
        """Give the stretch its part of the gradient buffer, which is allocated by its first user."""
        if self.g is None:
            self.g = self.cut(self.buffers.g)
            self.gradient_views = self.views(self.buffers.g)

    def named_gradients(self, grads: Mapping[Hashable, Any], all_buffers: list[Buffers]) -> list[Any]:
        """The gradient of each parameter in `grads`, as arrays of its dtype, shape and device.

        One that lies in a gradient buffer, but for the parameter's own place, is copied: `gather` will write there.
        """
        self.use_gradient_buffer()
        gradients, dtype = [], self.p.dtype
        written, may_share_memory = [flat.g for flat in all_buffers], namespace(self.p).may_share_memory
        for name, view in self.gradient_views.items():
            if name not in grads:
                raise ValueError(f"`grads` must have an entry for every parameter, got none for {name!r}")
            gradient = grads[name]
            # The usual case first: the checks below take longer than a small step.
            if type(gradient) is not self._usual or gradient.dtype is not dtype or gradient.shape != view.shape:
                label = f"grads[{name!r}]"
                gradient = as_array(gradient, label)
                check_like(gradient, view, label, "its parameter")
            if gradient.base is not None and gradient is not view:
                for flat in written:
                    if may_share_memory(gradient, flat):
                        gradient = gradient.copy()
            gradients.append(gradient)
        return gradients

    def gather(self, gradients: list[Any], all_buffers: list[Buffers]) -> list[Part]:
        """Copy small gradients next to each other in `g`, where they share a launch; the others, as parts.

        A large gradient is read where it lies.
        """
        direct = []
        direct_from = self._kernels.DIRECT_FROM
        for segment, view, gradient in zip(self._segments, self.gradient_views.values(), gradients, strict=True):
            if gradient.size >= direct_from and _is_readable(gradient, all_buffers):
                direct.append(Part(segment.start, segment.stop, gradient.reshape(-1)))
            elif gradient is not view:
                view[...] = gradient
        return direct

    def covering(self, direct: list[Part]) -> list[Part]:
        """`direct`, and between its entries parts of `g`, so that all of the stretch is covered."""
        parts, done = [], self.start
        for part in direct:
            parts += [self._gathered(done, part.start), part]
            done = part.stop
        parts.append(self._gathered(done, self.stop))
        return [part for part in parts if part.start < part.stop]

    def _gathered(self, start, stop):
        return Part(start, stop, self.buffers.g[start:stop])

    def advance(self, parts: list[Part], grad_scale: float) -> None:
        """Take one step in `parts` that cover the stretch, each a launch of its own."""
        scalars, flat = self.scalars(self.step + 1, grad_scale), self.buffers
        for start, stop, gradient in parts:
            launch = self._launcher(stop - start)
            launch(flat.p[start:stop], gradient, flat.m[start:stop], flat.v[start:stop], scalars)
        if self._must_clear_gaps:
            self._clear_gaps()
        self.step += 1


def _is_readable(gradient, all_buffers) -> bool:
    """Whether the kernel can read `gradient` where it lies, which must not be where it writes."""
    if not gradient.flags.c_contiguous or (isinstance(gradient, np.ndarray) and not gradient.flags.aligned):
        return False
    written = [array for flat in all_buffers for array in (flat.p, flat.m, flat.v)]
    return not any(namespace(gradient).may_share_memory(gradient, array) for array in written)
