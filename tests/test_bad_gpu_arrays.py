"""Arrays on a GPU that kernels cannot take, with arrays of CuPy over the memory of the host; devices that do not do."""

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("cupy")

from gpu_arrays import cupy_over

import fastadam
from fastadam import functional
from fastadam.kernels import cuda
from fastadam.kernels.cuda import launch as cuda_launch
from fastadam.kernels.texts.formats import Formats
from fastadam.memory.arrays import as_gradient, check_flat
from fastadam.memory.buffers import Buffers
from fastadam.memory.layout import plain
from fastadam.memory.parameters import Parameter
from fastadam.params import layout_in_place, parse_groups
from fastadam.step.gradients import Collector

F4 = np.dtype(np.float32)


def unaligned(size=12):
    """Elements of 4 bytes that begin one byte behind a multiple of 4."""
    return cupy_over(np.zeros(4 * size + 4, np.uint8))[1 : 1 + 4 * size].view(np.float32)


def test_arrays_that_are_not_aligned_are_refused():
    # An access to one of their elements would end all work of the process on the GPU.
    for params in ({"w": unaligned()}, [unaligned()], unaligned()):
        with pytest.raises(ValueError, match="must be aligned to 4 bytes"):
            parse_groups(params)
    with pytest.raises(ValueError, match="`g` must be aligned to 4 bytes"):
        check_flat(unaligned(), "g")
    with pytest.raises(ValueError, match=r"`grads\['w'\]` must be aligned to 4 bytes"):
        as_gradient(unaligned(), (12,), F4, cupy_over(np.zeros(1, F4)), "grads['w']", "its parameter")


def test_arrays_that_are_aligned_are_taken():
    array = cupy_over(np.zeros(12, F4))[1:]
    (((entry,), _),) = parse_groups({"w": array})
    assert layout_in_place(entry).plain
    check_flat(array, "p")
    example = cupy_over(np.zeros(1, F4))
    assert as_gradient(array, (11,), F4, example, "grads['w']", "its parameter") is array


def test_gradients_on_another_device_are_refused():
    gradient, example = cupy_over(np.zeros(12, F4), device=1), cupy_over(np.zeros(1, F4))
    with pytest.raises(ValueError, match=r"`grads\['w'\]` must be on cuda:0 like the parameters, got cuda:1"):
        as_gradient(gradient, (12,), F4, example, "grads['w']", "its parameter")


def test_cupy_for_rocm_is_refused_by_name(monkeypatch):
    runtime = SimpleNamespace(is_hip=True)
    monkeypatch.setattr(cuda_launch, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    assert cuda.device_problem() == "this CuPy is for ROCm, and the kernels are for CUDA"


def test_a_gpu_that_is_too_old_is_refused(monkeypatch):
    capabilities = ["61"]
    runtime = SimpleNamespace(is_hip=False, getDeviceCount=lambda: len(capabilities), CUDARuntimeError=OSError)
    driver = SimpleNamespace(
        runtime=runtime, Device=lambda number: SimpleNamespace(compute_capability=capabilities[number])
    )
    monkeypatch.setattr(cuda_launch, "cupy", SimpleNamespace(cuda=driver))
    assert cuda.device_problem() == "kernels need a GPU of compute capability 7.0, and there is one of 6.1"
    capabilities.append("120")
    assert cuda.device_problem() is None


def test_adam_step_is_not_captured(monkeypatch):
    backend = SimpleNamespace(address=cuda.address, is_captured=lambda device_of: True, tables=mock.Mock())
    monkeypatch.setattr(functional, "backend_of", lambda array, label: backend)
    arrays = [cupy_over(np.zeros(7, F4)) for _ in range(4)]
    with pytest.raises(RuntimeError, match="`adam_step` cannot be captured in a CUDA graph"):
        fastadam.adam_step(*arrays, step=1, betas=(0.123, 0.456))
    backend.tables.assert_not_called()


def test_a_gradient_on_another_device_does_not_take_the_short_way():
    # Arrays of memory of their own, as far as the type of their memory tells.
    layout, memory = plain((12,)), np.zeros(12, F4)
    buffers = Buffers({"w": layout}, Formats(), F4, np.zeros(0))
    parameter = Parameter("w", 0, layout, memory, buffers)
    backend = SimpleNamespace(DIRECT_FROM=0, address=lambda array: array.data.ptr)
    found = Collector([parameter], [cupy_over(memory)], backend, zeroed=False, of_torch=frozenset())
    found._foreign = type(None)
    here, there = (cupy_over(np.zeros(12, F4), device) for device in (0, 1))
    assert found.collect({"w": here}, None).addresses.tolist() == [here.data.ptr]
    with pytest.raises(ValueError, match=r"`grads\['w'\]` must be on cuda:0 like the parameters, got cuda:1"):
        found.collect({"w": there}, None)
