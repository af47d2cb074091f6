"""What the tests of bad input share: `refuses`, and the parts of which bad arguments are made."""

import re

import numpy as np
import pytest
from gpu import device_problem
from oracle import bits, memory

import fastadam
from fastadam.optimizer import Optimizer

F4 = np.float32
NAN, INF = float("nan"), float("inf")
DTYPES = "float32, float64, bfloat16 or float16 in native byte order, got"
FREE = "`decouple_lr` needs `decoupled_weight_decay`: L2 is a part of the gradient, and so always multiplied by lr"
NO_AMSGRAD = "`amsgrad` must be False for this optimizer with `convention` '{}', which has none, got True"
MASTERS = "`master_weights` needs bfloat16 parameters, got {} ones: they lack nothing"
MASTERS_FLOAT16 = (
    "`master_weights` needs bfloat16 parameters, got float16 ones: the 13 bits that they lack are not kept"
)
FLOAT16 = (
    "`eps` must be >= 0.000244140625 (2**-12) with second moments in float16, got 1e-08: those below its square become "
    "zero. Use bfloat16 for the second moment: `moment_dtype` ('float16', 'bfloat16')"
)

without_gpu = pytest.mark.skipif(device_problem() is None, reason="here CUDA arrays are good input")


def refuses(act, error, message, *untouched):
    """`act()` raises `error` with a message in which the regular expression `message` is found; nothing has changed.

    Of what is `untouched`, arrays have their bytes; lists and dicts hold the same objects, arrays among them with their
    bytes; optimizers have their memory, gradients and settings, and take a step with ones afterwards.
    """
    before = [_seen(each) for each in untouched]
    with pytest.raises(error, match=message):
        act()
    # The objects are alive in `before`, so that another one cannot have the same id.
    assert [_ids(_seen(each)) for each in untouched] == [_ids(each) for each in before]
    for each in untouched:
        if isinstance(each, Optimizer):
            _takes_a_step(each)


def _seen(each):
    """What must not change about `each`: (objects, values)."""
    if isinstance(each, Optimizer):
        grads = [flats.flats["g"].tobytes() for flats in each.all_buffers if "g" in flats.flats]
        return list(each.params.values()), (memory(each), grads, repr(each), list(each.params))
    if isinstance(each, np.ndarray):
        return [each], each.tobytes()
    keys = list(each) if hasattr(each, "keys") else list(range(len(each)))
    objects = [each[key] for key in keys]
    return objects, (keys, [one.tobytes() for one in objects if isinstance(one, np.ndarray)])


def _ids(seen):
    objects, values = seen
    return list(map(id, objects)), values


def _takes_a_step(opt):
    before = [entry["step"] for entry in opt.state_dict()["state"].values()]
    opt.step({name: np.ones_like(view) for name, view in opt.grads.items()})
    assert [entry["step"] for entry in opt.state_dict()["state"].values()] == [step + 1 for step in before]


def adam_step_refuses(changes, error, message):
    """`fastadam.adam_step` refuses its arguments with `changes`, and writes nothing; without them it works."""
    arguments = {name: np.full(4, position, F4) for position, name in enumerate("pgmv")} | {"step": 1}
    given = [value for value in changes.values() if isinstance(value, np.ndarray)]
    kept = [arguments[name] for name in "pgmv"]
    refuses(lambda: fastadam.adam_step(**(arguments | changes)), error, message, *kept, *given)
    before = bits({name: arguments[name] for name in "pmv"})
    fastadam.adam_step(**arguments)
    assert all(arguments[name].tobytes() != before[name] for name in "pmv")


def exactly(message):
    """The regular expression of this message and no other."""
    return f"^{re.escape(message)}$"


def beginning(message):
    """The regular expression of messages that begin so."""
    return f"^{re.escape(message)}"


def table(rows):
    """The rows as parameters; those about CUDA arrays are for machines without a GPU."""
    return [pytest.param(*row, id=name, marks=[without_gpu] * ("CUDA" in name)) for name, row in rows.items()]


def read_only(array):
    array.flags.writeable = False
    return array


def unaligned(size, dtype=F4):
    return np.zeros(np.dtype(dtype).itemsize * size + 1, np.uint8)[1:].view(dtype)


def cupy_array_without_a_gpu():
    """A CuPy array over an address that nothing may touch: building one needs no device."""
    cupy = pytest.importorskip("cupy")
    pointer = cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(4096, 16, None, 0), 0)
    return cupy.ndarray((4,), F4, pointer)


class OnDevice:
    """What an array of any library on a device looks like to DLPack."""

    def __init__(self, kind):
        self.kind = kind

    def __dlpack__(self, **options):
        raise AssertionError("its memory is out of reach")

    def __dlpack_device__(self):
        return self.kind, 0
