"""Hosts that offload from CUDA to the CPU, run without CUDA: streams that do nothing, memory that is not pinned."""

from contextlib import nullcontext
from types import SimpleNamespace

import torch


class Stream:
    """A stream, and the events that are recorded on it: all work is done at once."""

    def wait_stream(self, stream):
        pass

    def record_event(self):
        return self

    def wait(self, stream):
        pass

    def synchronize(self):
        pass


class Torch:
    """The name `torch` in a module of the host."""

    cuda = SimpleNamespace(Stream=Stream, current_stream=Stream, stream=nullcontext)

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty_like(self, tensor, device="cpu", pin_memory=False):
        return torch.empty_like(tensor, device=device)


class DeviceParameter(torch.nn.Parameter):
    """A parameter that says it lies on the GPU."""

    is_cuda = True
