"""What gradients must have in common with their parameters, to be stepped where they lie."""

from collections.abc import Sequence
from itertools import compress
from operator import attrgetter
from typing import Any

import torch

_dtype, _stride, _size = attrgetter("dtype"), torch.Tensor.stride, torch.Tensor.numel
_is_neg, _is_inference = torch.Tensor.is_neg, torch.Tensor.is_inference


class Facts:
    """Dtypes, strides and sizes of parameters.

    Gradients as those of an earlier step are told by one call of torch, by which `torch.compile` decides whether what
    it compiled still holds: types, dtypes, devices, sizes, strides, what they dispatch to (negated views differ in
    that), and that none is there twice.
    """

    def __init__(self, params: Sequence[Any]):
        self._known = _facts(params)
        self._guards: Any = None
        self._made_in: Any = None

    def are_of(self, tensors: Sequence[Any]) -> bool:
        """Whether `tensors`, one for each parameter, have the same."""
        return _facts(tensors) == self._known

    def are_of_gradients(self, gradients: Sequence[Any]) -> bool:
        """Whether `gradients`, one for each parameter, have the same, and none is a negated view.

        Raises:
            AttributeError, RuntimeError: one is None, or has no strides.
        """
        if self._guards and self._guards.check(*gradients):
            return True
        if not _lie_so(gradients, self._known):
            return False
        # A subclass may say other things than the guards see, and an error of its Python code would end the process.
        if self._guards is not False and all(
            type(each) is torch.Tensor and not each.requires_grad for each in gradients
        ):
            modes = _modes(gradients)
            if modes != self._made_in:
                self._guards, self._made_in = _guards_of(gradients), modes
        return True

    def are_of_some(self, gradients: Sequence[Any], present: Sequence[bool]) -> bool:
        """Whether `gradients` of those parameters that are `present` have the same, and none is a negated view."""
        return _lie_so(gradients, list(compress(self._known, [*present] * 3)))


def _facts(tensors):
    return [*map(_dtype, tensors), *map(_stride, tensors), *map(_size, tensors)]


def _lie_so(gradients, known):
    return _facts(gradients) == known and not any(map(_is_neg, gradients))


def _modes(tensors):
    """What says how tensors dispatch here, as in inference mode or autocast: guards hold only where they were made.

    None where torch, of which it is no public part, does not say it.
    """
    try:
        here = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
        return [*(keys.raw_repr() for keys in here), *map(_is_inference, tensors)]
    except AttributeError:
        return None


def _guards_of(tensors):
    """What tells whether other tensors are like these; False where torch, of which it is no public part, has none."""
    try:
        return torch._C._dynamo.guards.TensorGuards(
            *tensors,
            dynamic_dims_sizes=[list(tensor.shape) for tensor in tensors],
            dynamic_dims_strides=[list(tensor.stride()) for tensor in tensors],
        )
    except (AttributeError, TypeError, RuntimeError):
        return False
