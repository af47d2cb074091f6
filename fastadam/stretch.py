"""One parameter group's part of the flat buffers, and the launches of its step."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastadam.arrays import kernels, namespace
from fastadam.buffers import Buffers
from fastadam.groups import ParamGroup


class Stretch:
    """The stretch of flat buffers that one parameter group covers, and how many steps it has taken."""

    def __init__(self, settings: ParamGroup, buffers: Buffers):
        segments = [buffers.segments[name] for name in settings["params"]]
        self.settings = settings
        self.buffers = buffers
        self.start, self.stop = segments[0].start, segments[-1].stop
        self.step = 0
        self.p, self.m, self.v = (self.cut(flat) for flat in (buffers.p, buffers.m, buffers.v))
        self.g: Any = None
        self._kernels = kernels(buffers.p, "params")
        self._update: Any = None

    def cut(self, flat: Any) -> Any:
        """This stretch of one of the flat buffers."""
        return flat[self.start : self.stop]

    def own_gradient(self) -> Any:
        """This stretch of the flat gradient buffer."""
        if self.g is None:
            self.g = self.cut(self.buffers.g)
        return self.g

    def advance(self, gradients: Any, grad_scale: float) -> None:
        """Take one step, with one flat gradient or with a list that has an array for each parameter."""
        settings, step = self.settings, self.step + 1
        if self._update is not settings.update_text:
            self._update = settings.update_text
            self._launch = self._kernels.launcher(self._update)
        scalars = settings.scalars(step, settings.sign * grad_scale)
        if type(gradients) is list:
            for p, g, m, v in self._pieces(gradients):
                self._launch(p, g, m, v, scalars)
        else:
            self._launch(self.p, gradients, self.m, self.v, scalars)
        self.step = step

    def _pieces(self, gradients) -> Iterator[tuple]:
        """Buffers to launch on, for one array a parameter.

        A large gradient is read where it lies. Small ones are copied next to each other and share a launch.
        """
        flat, done = self.buffers, self.start
        for name, gradient in zip(self.settings["params"], gradients, strict=True):
            start, stop, shape = flat.segments[name]
            if gradient.size >= self._kernels.DIRECT_FROM and _is_plain(gradient, flat):
                if done < start:
                    yield flat.p[done:start], flat.g[done:start], flat.m[done:start], flat.v[done:start]
                yield flat.p[start:stop], gradient.reshape(-1), flat.m[start:stop], flat.v[start:stop]
                done = stop
            else:
                flat.g[start:stop].reshape(shape)[...] = gradient
        if done < self.stop:
            end = self.stop
            yield flat.p[done:end], flat.g[done:end], flat.m[done:end], flat.v[done:end]


def _is_plain(gradient, buffers):
    """Whether the kernel can read `gradient` where it lies, with the one compiled signature and without aliasing."""
    flags = gradient.flags
    if not flags.c_contiguous or (isinstance(gradient, np.ndarray) and not (flags.writeable and flags.aligned)):
        return False
    may_share_memory = namespace(gradient).may_share_memory
    return not any(may_share_memory(gradient, flat) for flat in (buffers.p, buffers.m, buffers.v))
