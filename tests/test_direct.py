"""Gradients on a GPU that need one look each; with arrays of CuPy over the memory of the host."""

from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("cupy")

from gpu_arrays import cupy_over

from fastadam.kernels.texts.formats import Formats
from fastadam.memory.buffers import Buffers
from fastadam.memory.layout import Layout, plain
from fastadam.memory.owners import Owners
from fastadam.memory.parameters import Parameter
from fastadam.step import direct as direct_module
from fastadam.step.direct import Direct, strides_of
from fastadam.step.gather import UNKNOWN
from fastadam.step.gradients import Collector
from fastadam.step.rows import SparseRows

FLOAT32 = np.dtype(np.float32)
SHAPES = [(3, 4), (5,), (), (0, 3), (2, 1, 6)]


class Made(SimpleNamespace):
    """Parameters in the memory of the host, and what looks at their gradients."""

    def __init__(self, shapes=SHAPES, layouts=None, dtype=FLOAT32, device=0, zeroed=False):
        layouts = layouts or [plain(shape) for shape in shapes]
        formats = Formats()
        buffers = Buffers(dict(enumerate(layouts)), formats, FLOAT32, np.zeros(0))
        arrays = [np.zeros(int(np.prod(layout.shape)), dtype) for layout in layouts]
        parameters = [
            Parameter(name, 0, layout, array, buffers)
            for name, (layout, array) in enumerate(zip(layouts, arrays, strict=True))
        ]
        owners = Owners(parameters, [cupy_over(array) for array in arrays])
        super().__init__(arrays=arrays, buffers=buffers, parameters=parameters)
        self.direct = Direct(parameters, [np.dtype(dtype)] * len(shapes), owners, device, zeroed=zeroed)

    def places(self, given):
        return self.direct.places(given).tolist()


def ones(shapes=SHAPES, dtype=np.float32):
    return [np.ones(shape, dtype) for shape in shapes]


def wanted(arrays):
    return [array.ctypes.data if array.size else pytest.approx(1, abs=2**63) for array in arrays]


def test_arrays_are_read_where_they_lie():
    made, host = Made(), ones()
    assert made.places([cupy_over(array) for array in host]) == wanted(host)


def test_no_gradient_has_no_place():
    made, host = Made(), ones()
    given = [cupy_over(array) for array in host]
    given[1] = None
    assert made.places(given)[1] == 0
    assert made.places(given)[2] == host[2].ctypes.data
    assert made.direct.again(given) is None


ODD = {
    "NumPy": lambda host, made: host,
    "shape": lambda host, made: cupy_over(host.reshape(4, 3)),
    "dtype": lambda host, made: cupy_over(np.ones((3, 4))),
    "device": lambda host, made: cupy_over(host, device=1),
    "order": lambda host, made: cupy_over(np.ones((4, 3), np.float32)).T,
    "gaps": lambda host, made: cupy_over(np.ones((3, 8), np.float32))[:, ::2],
    "unaligned": lambda host, made: cupy_over(np.ones(49, np.uint8)[1:]).view(np.float32).reshape(3, 4),
    "parameter": lambda host, made: cupy_over(made.arrays[0].reshape(3, 4)),
    "inside of a buffer": lambda host, made: cupy_over(made.buffers.allocate("m")[:12].reshape(3, 4)),
    "no array": lambda host, made: 1.0,
}


@pytest.mark.parametrize("odd", ODD)
def test_what_is_odd_is_left_to_the_checks(odd):
    made, host = Made(), ones()
    given = [cupy_over(array) for array in host]
    given[0] = ODD[odd](host[0], made)
    assert made.places(given) == [UNKNOWN, *wanted(host)[1:]]
    assert made.direct.again(given) is None


def test_the_same_arrays_are_not_looked_at_again_and_not_kept_alive():
    made, host = Made(), ones()
    given = [cupy_over(array) for array in host]
    assert made.direct.again(given) is None
    made.places(given)
    found = made.direct.again(given)
    assert found.addresses.tolist() == wanted(host)
    assert found.held is given
    assert made.direct.again(list(given)).addresses is found.addresses
    assert made.direct.again([cupy_over(array) for array in host]) is None
    # What nobody else holds is gone, and found again as nothing.
    del given[0]
    assert made.direct.again([None, *given]) is None


def test_other_arrays_in_the_same_places_have_the_same_addresses():
    made, host = Made(), ones()
    first = made.direct.places([cupy_over(array) for array in host])
    assert made.direct.places([cupy_over(array) for array in host]) is first
    # Unless there may be a new buffer in those places.
    made.buffers.allocate("m")
    assert made.direct.places([cupy_over(array) for array in host]) is not first


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("backwards", [(), (0,), (1,), (0, 1)])
def test_the_lowest_address_of_arrays_in_the_order_of_their_parameter(order, backwards):
    layout, host = Layout((3, 4), order, backwards), np.arange(12, dtype=np.float32)
    made = Made([(3, 4)], [layout])
    array = layout.view(cupy_over(host))
    assert array.strides == strides_of(layout, 4) == layout.view(host).strides
    assert made.places([array]) == [host.ctypes.data]


def test_gradients_to_be_zeroed_share_no_memory():
    read, zeroed = (Made([(5,), (5,), (5,)], zeroed=each) for each in (False, True))
    host = np.ones(15, np.float32)
    apart = [cupy_over(host[start : start + 5]) for start in (10, 0, 5)]
    assert zeroed.places(apart) == [array.data.ptr for array in apart]
    together = [apart[0], apart[1], cupy_over(host[4:9])]
    assert read.places(together) == [array.data.ptr for array in together]
    assert zeroed.places(together) == [UNKNOWN] * 3
    assert zeroed.places([None, apart[1], together[2]]) == [0, UNKNOWN, UNKNOWN]


# --- gradients of an optimizer on a GPU


def collector(zeroed=False):
    """What finds the gradients of parameters on a GPU, and where one of them is not asked for."""
    made = Made()
    backend = SimpleNamespace(DIRECT_FROM=0, address=lambda array: array.data.ptr)
    example = [cupy_over(array) for array in made.arrays]
    return made, Collector(made.parameters, example, backend, zeroed=zeroed)


def collect(found, grads):
    return found.collect(grads, lambda: pytest.fail("no flat array was given"))


@pytest.mark.parametrize("zeroed", [False, True])
@pytest.mark.parametrize("way", [dict, list])
def test_gradients_come_by_name_or_in_order(way, zeroed):
    (_, found), host = collector(zeroed), ones()
    arrays = [cupy_over(array) for array in host]
    grads = dict(enumerate(arrays)) if way is dict else arrays
    gradients = collect(found, grads)
    assert gradients.addresses.tolist() == wanted(host)
    assert (gradients.held, gradients.rows, gradients.copied) == (arrays, {}, ())
    # Arrays that come again have the same column of addresses, for which the launches are ready.
    assert collect(found, grads).addresses is gradients.addresses


def test_gradients_that_are_none_or_of_rows_are_located_beside_the_others():
    (_, found), host = collector(), ones()
    given = [cupy_over(array) for array in host]
    values = cupy_over(np.ones((2, 4), np.float32))
    given[0], given[1] = SparseRows(np.array([0, 2]), values), None
    gradients = collect(found, given)
    assert gradients.addresses.tolist() == [values.data.ptr, 0, *wanted(host)[2:]]
    assert gradients.rows[0].indices.tolist() == [0, 2]
    assert gradients.held[2] is given[2]
    assert collect(found, [cupy_over(array) for array in host]).addresses.tolist() == wanted(host)


BAD = {
    "device": (lambda host: host, ValueError, "must be on cuda:0 like the parameters, got cpu"),
    "shape": (lambda host: cupy_over(host.reshape(4, 3)), ValueError, r"must have shape \(3, 4\)"),
    "dtype": (lambda host: cupy_over(np.ones((3, 4))), TypeError, "must be float32 like its parameter, got float64"),
    "kind": (lambda host: 1.0, TypeError, "must be a NumPy or CuPy array"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_gradient_is_refused(bad):
    (_, found), (make, error, message) = collector(), BAD[bad]
    host = ones()
    with pytest.raises(error, match=rf"`grads\[0\]` {message}"):
        collect(found, [make(host[0]), *(cupy_over(array) for array in host[1:])])


def test_a_gradient_inside_of_a_parameter_is_refused():
    (made, found), host = collector(), ones()
    given = [cupy_over(array) for array in host]
    given[1] = cupy_over(made.arrays[0][:5])
    with pytest.raises(ValueError, match=r"`grads\[1\]` must not share memory with a parameter"):
        collect(found, given)


# --- tensors of torch, which are on the host here: its device has the number -1


@pytest.fixture
def torch(monkeypatch):
    monkeypatch.setattr(direct_module, "same_stream", lambda torch, device: True)
    return pytest.importorskip("torch")


def test_tensors_are_read_where_they_lie(torch):
    made = Made(device=-1)
    tensors = [torch.ones(shape) for shape in SHAPES]
    places = made.places(tensors)
    assert places == [tensor.data_ptr() or 1 for tensor in tensors]
    assert made.direct.again(tensors) is None
    # Most often torch has new gradients in the places of the old ones.
    assert made.direct.places(tensors) is made.direct.places(list(tensors))
    tensors[0].data = torch.zeros(3, 4)
    assert made.places(tensors)[0] == tensors[0].data_ptr() != places[0]


def test_bfloat16_tensors_are_bits(torch):
    made = Made(dtype=np.uint16, device=-1)
    tensors = [torch.ones(shape, dtype=torch.bfloat16) for shape in SHAPES]
    assert made.places(tensors) == [tensor.data_ptr() or 1 for tensor in tensors]


ODD_TENSORS = {
    "shape": lambda torch: torch.ones(4, 3),
    "dtype": lambda torch: torch.ones(3, 4, dtype=torch.float64),
    "order": lambda torch: torch.ones(4, 3).T,
    "gaps": lambda torch: torch.ones(3, 8)[:, ::2],
    "grad": lambda torch: torch.ones(3, 4, requires_grad=True),
    "negated": lambda torch: torch.ones(3, 4, dtype=torch.complex64).conj().imag,
    "sparse": lambda torch: torch.ones(3, 4).to_sparse(),
    "kind": lambda torch: torch.nn.Parameter(torch.ones(3, 4)),
    "device": lambda torch: mock.Mock(spec=torch.Tensor),
}


@pytest.mark.parametrize("odd", ODD_TENSORS)
def test_odd_tensors_are_left_to_the_checks(odd, torch):
    made = Made(device=-1)
    tensors = [torch.ones(shape) for shape in SHAPES]
    tensors[0] = ODD_TENSORS[odd](torch)
    assert made.places(tensors) == [UNKNOWN, *(tensor.data_ptr() or 1 for tensor in tensors[1:])]


def test_tensors_of_another_device_or_stream_are_left_to_dlpack(torch, monkeypatch):
    tensors = [torch.ones(shape) for shape in SHAPES]
    assert Made(device=0).places(tensors) == [UNKNOWN] * len(SHAPES)
    monkeypatch.setattr(direct_module, "same_stream", lambda torch, device: False)
    assert Made(device=-1).places(tensors) == [UNKNOWN] * len(SHAPES)


def test_tensors_and_arrays_beside_each_other(torch):
    made = Made([(5,), (5,), (5,)], device=0)
    host = np.ones(5, np.float32)
    assert made.places([cupy_over(host), torch.ones(5), None]) == [host.ctypes.data, UNKNOWN, 0]


@pytest.mark.parametrize(("of_torch", "same"), [(0, True), (7, False)])
def test_streams_are_compared_by_what_they_are_for_cuda(of_torch, same, monkeypatch):
    cuda = SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=of_torch))
    current = mock.Mock(return_value=SimpleNamespace(ptr=0))
    monkeypatch.setattr(direct_module, "cupy", SimpleNamespace(cuda=SimpleNamespace(get_current_stream=current)))
    assert direct_module.same_stream(SimpleNamespace(cuda=cuda), 3) is same
    current.assert_called_once_with(3)
