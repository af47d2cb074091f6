"""Gradients that a step refuses: nothing is written, and the step after it is right."""

import numpy as np
import pytest
from ml_dtypes import bfloat16
from oracle import assert_same_bits
from refusal import F4, INF, NAN, OnDevice, adam_step_refuses, exactly, read_only, refuses, table, unaligned
from training import both, pmv

import fastadam


def gradients(**changes):
    grads = {"w": np.ones((3, 4), F4), "b": np.ones((), F4)} | changes
    return {name: value for name, value in grads.items() if value is not None}


GRADIENTS = {
    "transposed": (
        lambda: gradients(w=np.ones((4, 3), F4)),
        ValueError,
        r"`grads\['w'\]` must have shape \(3, 4\) like its parameter, got \(4, 3\)",
    ),
    "to broadcast": (lambda: gradients(w=np.ones(4, F4)), ValueError, r"`grads\['w'\]` .*got \(4,\)"),
    "one element for a scalar": (lambda: gradients(b=np.ones(1, F4)), ValueError, r"`grads\['b'\]` .*got \(1,\)"),
    "float64": (lambda: gradients(w=np.ones((3, 4))), TypeError, r"`grads\['w'\]` must be float32 .*got float64"),
    "integers": (lambda: gradients(b=np.int32(1)), TypeError, r"`grads\['b'\]` must be float32 .*got int32"),
    "Python float": (lambda: gradients(b=1.0), TypeError, r"`grads\['b'\]` must be a NumPy or CuPy array.*got float"),
    "numpy.matrix": (
        lambda: gradients(w=np.ones((3, 4), F4).view(np.matrix)),
        TypeError,
        "got numpy.matrix, which",
    ),
    "masked": (lambda: gradients(w=np.ma.ones((3, 4), F4)), TypeError, r"`grads\['w'\]` .*MaskedArray"),
    "missing": (lambda: gradients(b=None), ValueError, "`grads` must have an entry for every parameter.*'b'"),
    "unknown": (lambda: gradients(c=np.ones(3, F4)), ValueError, r"`grads` must have .* no other, got \['c'\]"),
    "empty": (dict, ValueError, "`grads` must have an entry for every parameter"),
    "list of one": (lambda: [np.ones((3, 4), F4)], ValueError, "`grads` must have 2 entries, one for each .*, got 1"),
    "list of three": (lambda: [np.ones((3, 4), F4)] * 3, ValueError, "`grads` must have 2 entries, .*, got 3"),
    "list in another order": (lambda: list(gradients().values())[::-1], ValueError, r"`grads\['w'\]` must have shape"),
    "list of floats": (lambda: [np.ones((3, 4), F4), 1.0], TypeError, r"`grads\['b'\]` must be .*got float"),
    "list of integers": (lambda: (np.ones((3, 4), int), np.ones((), F4)), TypeError, r"`grads\['w'\]` must be float32"),
    "generator": (lambda: iter(gradients().values()), TypeError, "`grads` must be a NumPy or CuPy array.*iterator"),
    "objects": (lambda: gradients(b=np.array(None)), TypeError, r"`grads\['b'\]` must be float32 .*got object"),
    "big-endian": (lambda: gradients(w=np.ones((3, 4), ">f4")), TypeError, r"`grads\['w'\]` must be float32 .*got >f4"),
    "number": (lambda: 1.0, TypeError, "`grads` must be .*got float"),
    "flat of another size": (lambda: np.ones(13, F4), ValueError, r"`grads` must have shape \(17,\).*got \(13,\)"),
    "flat of another dtype": (
        lambda: np.ones(17),
        TypeError,
        "`grads` must be float32 like .*`buffers.g`, got float64",
    ),
    "flat with gaps": (lambda: np.ones(34, F4)[::2], ValueError, "`grads` must be contiguous"),
    "unaligned": (lambda: unaligned(17), ValueError, "`grads` must be aligned"),
    "CUDA tensor": (lambda: gradients(w=OnDevice(2)), RuntimeError, r"`grads\['w'\]` is in CUDA memory"),
    "flat CUDA tensor": (lambda: OnDevice(2), RuntimeError, "`grads` is in CUDA memory"),
}


def optimizer_under_way(flat):
    opt = fastadam.Adam({"w": np.ones((3, 4), F4), "b": np.ones((), F4)}, flat=flat)
    opt.step(gradients())
    return opt


def step_refuses(grads, options, error, message, flat):
    """A step of `grads` is refused, and the steps that follow are those of an optimizer that was not asked for it."""
    opt, other = optimizer_under_way(flat), optimizer_under_way(flat)
    refuses(lambda: opt.step(grads, **options), error, message, opt)
    other.step(gradients())
    assert opt.state_dict()["state"]["w"]["step"] == 2
    assert_same_bits(pmv(opt), pmv(other))


@both
@pytest.mark.parametrize(("make", "error", "message"), table(GRADIENTS))
def test_gradients(make, error, message, flat):
    step_refuses(make(), {}, error, message, flat)


ONE_FOR_EACH = "`grads` must have an entry for every parameter, got none for "
MISNAMED = {
    "ww": (("w",), f"{ONE_FOR_EACH}'w', but one for 'ww', which is no parameter"),
    "layer1.wieght": (
        ("Layer1.bias", "Layer1.weight"),
        f"{ONE_FOR_EACH}'Layer1.weight', but one for 'layer1.wieght', which is no parameter",
    ),
    "x": ((("a", 0), "w"), f"{ONE_FOR_EACH}('a', 0), but one for 'x', which is no parameter"),
    ("b", 0): ((("a", 0), ("b", 1)), f"{ONE_FOR_EACH}('b', 1), but one for ('b', 0), which is no parameter"),
    None: (("w",), f"{ONE_FOR_EACH}'w': None is that of a parameter without a gradient"),
}


@pytest.mark.parametrize("name", MISNAMED, ids=str)
def test_a_name_that_is_misspelt(name):
    names, message = MISNAMED[name]
    opt = fastadam.Adam({"other": np.ones(3), **{each: np.ones(3) for each in names}})
    grads = {"other": np.ones(3)} | ({} if name is None else {name: np.ones(3)})
    refuses(lambda: opt.step(grads), ValueError, exactly(message), opt)


@both
@pytest.mark.parametrize("stored", [np.float16, bfloat16], ids=["float16", "bfloat16"])
def test_dtype_of_gradients_is_that_of_grad_dtype(stored, flat):
    name = np.dtype(stored).name
    opt = fastadam.Adam({"w": np.ones((3, 4), F4)}, grad_dtype=name, flat=flat)
    for other in (np.float32, np.float64, np.uint16):
        wrong, ones = np.dtype(other).name, np.ones((3, 4), other)
        refuses(lambda: opt.step({"w": ones}), TypeError, rf"`grads\['w'\]` must be {name} .*got {wrong}", opt)  # noqa: B023
        refuses(lambda: opt.step(ones.ravel()), TypeError, f"`grads` must be {name} like .*, got {wrong}", opt)  # noqa: B023


@both
@pytest.mark.parametrize("flat_array", ["remainder", "m_exponent", "v_exponent"])
def test_flat_gradient_over_stored_arrays(flat_array, flat):
    opt = fastadam.Adam(np.ones(4096, bfloat16), master_weights=True, moment_dtype="float8", flat=flat)
    # A gradient that has the memory of the array is as large as it, and the rest of the memory is beyond.
    memory = np.zeros(8192, np.uint8)
    opt.buffers.flats[flat_array] = memory[: opt.buffers.flats[flat_array].nbytes].view(opt.buffers.dtype(flat_array))
    with pytest.raises(ValueError, match=f"`grads` must not overlap `buffers.{flat_array}`"):
        opt.step(memory.view(bfloat16))
    assert not memory.any()


@pytest.mark.parametrize("name", ["p", "m", "v", "v_max", "ema"])
def test_flat_gradient_over_a_buffer_that_a_step_writes(name):
    opt = fastadam.Adam(np.ones(20, F4), amsgrad=True, ema_decay=0.5)
    message = "`grads` must not " + ("share memory with a parameter" if name == "p" else f"overlap `buffers.{name}`")
    refuses(lambda: opt.step(opt.buffers.flats[name]), ValueError, message, opt)


def test_flat_gradient_over_an_array_that_trains_where_it_lies():
    memory = np.ones(40, F4)
    opt = fastadam.Adam([memory[:20]])
    message = "`grads` must not share memory with a parameter"
    refuses(lambda: opt.step(memory[10:30]), ValueError, message, opt, memory[20:])


@both
@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (-1.0, ValueError, r"`grad_scale` must be >= 0, got -1\.0"),
        (NAN, ValueError, "`grad_scale` must be finite, got nan"),
        (INF, ValueError, "`grad_scale` must be finite, got inf"),
        ("1", TypeError, "`grad_scale` must be a real number, got '1'"),
        (None, TypeError, "`grad_scale` must be a real number, got None"),
    ],
)
def test_gradient_scale(scale, error, message, flat):
    step_refuses(gradients(), {"grad_scale": scale}, error, message, flat)
    adam_step_refuses({"grad_scale": scale}, error, message)


@both
@pytest.mark.parametrize(
    "gradient",
    [read_only(np.ones((3, 4), F4)), np.broadcast_to(np.ones(4, F4), (3, 4))],
    ids=["read-only", "broadcast"],
)
def test_gradient_that_cannot_be_zeroed(gradient, flat):
    opt = fastadam.Adam({"w": np.ones((3, 4), F4), "b": np.ones((), F4)}, zero_grad=True, flat=flat)
    ones = np.ones((), F4)
    message = r"`grads\['w'\]` must be a writable array with `zero_grad`"
    refuses(lambda: opt.step({"w": gradient, "b": ones}), ValueError, message, opt, gradient, ones)
    refuses(
        lambda: opt.step([np.ones((3, 4), F4), np.float32(1)]), ValueError, r"`grads\['b'\]` must be a writable", opt
    )


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("w", np.ones((4, 3)), ValueError, r"`w` must have shape \(3, 4\), got \(4, 3\)"),
        ("w", np.ones(4), ValueError, r"`w` must have shape \(3, 4\), got \(4,\)"),
        ("w", 1j, TypeError, "`w` must be real, got complex numbers"),
        ("w", np.ones((3, 4), complex), TypeError, "`w` must be real, got complex numbers"),
        ("c", 1.0, KeyError, "'c'"),
    ],
)
@both
def test_assignment_to_a_view(name, value, error, message, flat):
    opt = fastadam.Adam({"w": np.ones((3, 4), F4)}, flat=flat)
    for views in (opt.grads, opt.params):
        refuses(lambda: views.__setitem__(name, value), error, message, opt)  # noqa: B023
