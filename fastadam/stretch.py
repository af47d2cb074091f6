"""One parameter group's part of the flat buffers, and the launches of its step."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from types import ModuleType
from typing import Any

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


class Stretch:
    """The stretch of flat buffers that one parameter group covers, and how many steps it has taken."""

    def __init__(self, settings: ParamGroup, buffers: Buffers):
        self.settings = settings
        self.buffers = buffers
        self.step = 0
        self._segments = [buffers.segments[name] for name in settings["params"]]
        self._shapes = [(name, buffers.segments[name].shape) for name in settings["params"]]
        self._usual = np.ndarray if isinstance(buffers.p, np.ndarray) else None
        self.start, self.stop = self._segments[0].start, self._segments[-1].stop
        self.p, self.m, self.v = (self.cut(flat) for flat in (buffers.p, buffers.m, buffers.v))
        self.g: Any = None
        self._gradient_views: list[Any] = []
        self._kernels: ModuleType = kernels(buffers.p, "params")
        settings.changed = self._prepare
        self._prepare()

    def _prepare(self):
        self._update, self._scalars = choose_update(self.settings)
        self._launch = self._kernels.launcher(self._update, self.stop - self.start)

    def cut(self, flat: Any) -> Any:
        """This stretch of one of the flat buffers."""
        return flat[self.start : self.stop]

    def use_gradient_buffer(self) -> None:
        """Give the stretch its part of the gradient buffer, which is allocated by its first user."""
        self.g = self.cut(self.buffers.g)
        self._gradient_views = [segment.of(self.buffers.g) for segment in self._segments]

    def named_gradients(self, grads: Mapping[Hashable, Any]) -> list[Any]:
        """The gradient of each parameter in `grads`, as arrays of its dtype, shape and device."""
        gradients, dtype = [], self.p.dtype
        for name, shape in self._shapes:
            if name not in grads:
                raise ValueError(f"`grads` must have an entry for every parameter, got none for {name!r}")
            gradient = grads[name]
            # The usual case first: the checks below take longer than a small step.
            if type(gradient) is not self._usual or gradient.dtype is not dtype or gradient.shape != shape:
                label = f"grads[{name!r}]"
                gradient = as_array(gradient, label)
                check_like(gradient, self.buffers.segments[name].of(self.buffers.p), label, "its parameter")
            gradients.append(gradient)
        return gradients

    def advance(self, gradient: Any, grad_scale: float) -> None:
        """Take one step with a flat gradient of this stretch."""
        step = self.step + 1
        self._launch(self.p, gradient, self.m, self.v, self._scalars(step, grad_scale))
        self.step = step

    def advance_by_parameter(self, gradients: list[Any], grad_scale: float) -> None:
        """Take one step with a gradient array for each parameter.

        A large one is read where it lies. Small ones are copied next to each other in `g` and share a launch.
        """
        if self.g is None:
            self.use_gradient_buffer()
        direct = []
        direct_from = self._kernels.DIRECT_FROM
        for segment, view, gradient in zip(self._segments, self._gradient_views, gradients, strict=True):
            if gradient.size >= direct_from and self._is_readable(gradient):
                direct.append((segment.start, segment.stop, gradient.reshape(-1)))
            elif gradient is not view:
                view[...] = gradient
        if not direct:
            self.advance(self.g, grad_scale)
            return
        step = self.step + 1
        scalars = self._scalars(step, grad_scale)
        for start, stop, gradient in self._covering(direct):
            launch = self._kernels.launcher(self._update, stop - start)
            flat = self.buffers
            launch(flat.p[start:stop], gradient, flat.m[start:stop], flat.v[start:stop], scalars)
        self.step = step

    def _is_readable(self, gradient) -> bool:
        """Whether the kernel can read `gradient` where it lies: no second signature to compile, no aliasing."""
        flags, flat = gradient.flags, self.buffers
        if not flags.c_contiguous or (isinstance(gradient, np.ndarray) and not (flags.writeable and flags.aligned)):
            return False
        return not any(namespace(gradient).may_share_memory(gradient, buffer) for buffer in (flat.p, flat.m, flat.v))

    def _covering(self, direct) -> Iterator[tuple[int, int, Any]]:
        """`direct`, and between its entries the parts of `g`."""
        done = self.start
        for start, stop, gradient in direct:
            if done < start:
                yield done, start, self.buffers.g[done:start]
            yield start, stop, gradient
            done = stop
        if done < self.stop:
            yield done, self.stop, self.buffers.g[done : self.stop]
