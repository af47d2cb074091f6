"""Buffers in memory that the caller provides: files and shared memory, which may be larger than memory."""

from multiprocessing import shared_memory

import numpy as np
import pytest
from new_process import run
from oracle import bits
from training import both, make, pmv

import fastadam

SHAPES = {"w": (40, 128), "b": (7,)}
OPTIONS = {"moment_dtype": "float8", "ema_decay": 0.9, "sparse": "lazy", "max_grad_norm": 1.0}


def files(folder, asked=None):
    """Memory maps in `folder`; `asked` collects their names."""

    def memory(name, size, dtype):
        if asked is not None:
            asked[name] = (size, dtype)
        return np.memmap(folder / name, dtype, "w+", shape=(size,))

    return memory


def train(opt, first=1, shapes=SHAPES):
    for seed in range(first, first + 3):
        gradients = make(shapes, seed)
        opt.step(gradients)
        rows = fastadam.SparseRows([0, 3, 3], gradients["w"][:3])
        opt.step({**gradients, "w": rows})
        for name, gradient in gradients.items():
            opt.grads[name] = gradient
        opt.step()


@both
def test_the_bits_are_those_of_an_optimizer_that_allocates(tmp_path, flat):
    asked = {}
    opt = fastadam.Adam(make(SHAPES), flat=flat, memory=files(tmp_path, asked), **OPTIONS)
    other = fastadam.Adam(make(SHAPES), flat=flat, **OPTIONS)
    for each in (opt, other):
        train(each)
        each.add_param_group({"params": make({"c": (9,)}), "lr": 0.1})
        train(each, 10, {**SHAPES, "c": (9,)})
    assert bits(opt.params) == bits(other.params)
    for name, entry in opt.state_dict()["state"].items():
        for key, value in entry.items():
            np.testing.assert_array_equal(value, other.state_dict()["state"][name][key])
    found = {f"{number}.{name}": each for number, one in enumerate(opt.all_buffers) for name, each in one.flats.items()}
    assert asked == {name: (each.size, each.dtype) for name, each in found.items()}
    assert ("0.p" in asked) == flat
    for name, each in found.items():
        assert (tmp_path / name).read_bytes() == each.tobytes()


def test_a_state_is_resumed_into_other_files(tmp_path):
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    first = fastadam.Adam(make(SHAPES), memory=files(tmp_path / "one"))
    train(first)
    first.save(tmp_path / "run.safetensors")
    second = fastadam.Adam(make(SHAPES, 5), memory=files(tmp_path / "two"))
    second.load(tmp_path / "run.safetensors")
    third = fastadam.Adam({name: p.copy() for name, p in first.params.items()}, memory=files(tmp_path / "three"))
    third.load_state_dict(first.state_dict())
    for opt in (first, second, third):
        train(opt, 10)
    for opt in (second, third):
        assert bits(opt.params) == bits(first.params)
    assert (tmp_path / "two" / "0.m").read_bytes() == (tmp_path / "one" / "0.m").read_bytes()


def test_shared_memory_for_moments_and_nothing_else():
    held = []

    def memory(name, size, dtype):
        if name not in ("0.m", "0.v"):
            return None
        held.append(shared_memory.SharedMemory(create=True, size=size * dtype.itemsize))
        return np.ndarray((size,), dtype, held[-1].buf)

    opt, other = fastadam.Adam(make(SHAPES), memory=memory), fastadam.Adam(make(SHAPES))
    train(opt)
    train(other)
    for expected, found in zip(pmv(other), pmv(opt), strict=True):
        np.testing.assert_array_equal(found, expected)
    m, v = (np.frombuffer(each.buf, np.float32, opt.buffers.size).copy() for each in held)
    np.testing.assert_array_equal(m, other.buffers.m)
    np.testing.assert_array_equal(v, other.buffers.v)
    del opt
    for each in held:
        each.close()
        each.unlink()


KEPT = np.zeros(9999, np.float32)
BAD = [
    (lambda size, dtype: [0.0] * size, TypeError, "must be a NumPy or CuPy array"),
    (lambda size, dtype: np.zeros(size, np.float64), TypeError, "must be float32, got float64"),
    (lambda size, dtype: np.zeros(size - 1, dtype), ValueError, r"must have shape \(\d+,\), got"),
    (lambda size, dtype: np.zeros((1, size), dtype), ValueError, r"must have shape \(\d+,\), got \(1, "),
    (lambda size, dtype: np.zeros(2 * size, dtype)[::2], ValueError, "must be contiguous"),
    (lambda size, dtype: np.zeros(size * 4 + 1, np.uint8)[1:].view(dtype), ValueError, "must be aligned"),
    (lambda size, dtype: np.frombuffer(bytes(size * 4), dtype), ValueError, "must be writable"),
    (lambda size, dtype: np.full(size, 0.5, dtype), ValueError, "must be zeros, got other values: .*`load`"),
    (lambda size, dtype: KEPT[:size], ValueError, "must not share memory with"),
]


@both
@pytest.mark.parametrize(("give", "error", "message"), BAD)
@pytest.mark.filterwarnings("ignore:.*still held elsewhere")
def test_memory_that_will_not_do_is_refused_before_anything_is_written(give, error, message, flat):
    params = make(SHAPES)
    held, before = list(params.values()), bits(params)
    wrong = {"0.m", "0.v"}

    def memory(name, size, dtype):
        return give(size, dtype) if name in wrong else None

    with pytest.raises(error, match=rf"`memory\('0.[mv]', ...\)` {message}"):
        fastadam.Adam(params, flat=flat, memory=memory)
    assert all(found is one for found, one in zip(params.values(), held, strict=True))
    assert bits(params) == before
    wrong = {"1.v", "1.m"}
    opt, other = fastadam.Adam(params, flat=flat, memory=memory), fastadam.Adam(make(SHAPES), flat=flat)
    for _ in range(2):
        with pytest.raises(error, match=rf"`memory\('1.[mv]', ...\)` {message}"):
            opt.add_param_group({"params": make({"c": (9,)})})
    train(opt)
    train(other)
    for expected, found in zip(pmv(other), pmv(opt), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_memory_of_a_parameter_and_what_is_no_function_are_refused():
    p = np.zeros(64, np.float32)
    with pytest.raises(ValueError, match="must not share memory with a parameter or another buffer"):
        fastadam.Adam({"w": p}, memory=lambda name, size, dtype: p[:size])
    with pytest.raises(TypeError, match=r"`memory` must be a function \(name, size, dtype\) -> array, got 'file'"):
        fastadam.Adam({"w": p}, memory="file")


# What a process allocates for itself is limited to 24 MB more than it has; the moments take 32.
LARGER = """
import resource, sys
import numpy as np, fastadam
folder, size = sys.argv[1], 4_000_000
def mapped(name, size, dtype):
    return np.memmap(f"{folder}/{name}", dtype, "w+", shape=(size,))
def gradient():
    g = mapped("g", size, np.float32)
    g[...] = 0.5
    return g
small = fastadam.Adam({"w": np.ones(300_000, np.float32)})
small.step({"w": np.ones(300_000, np.float32)})  # compiled, and its threads begun
small.save(folder + "/small")
small.load(folder + "/small")
p, g = mapped("p", size, np.float32), gradient()
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + (24 << 20),) * 2)
try:
    fastadam.Adam({"w": p})
except MemoryError:
    print("too large")
opt = fastadam.Adam({"w": p}, lr=0.1, memory=mapped)
for _ in range(3):
    opt.step({"w": g})
opt.save(folder + "/run")
again = mapped("again", size, np.float32)
other = fastadam.Adam({"w": again}, lr=0.1, memory=lambda name, *of: mapped("other." + name, *of))
other.load(folder + "/run")
other.step({"w": g})
print(float(p[0]), float(p[-1]), float(again[-1]))
"""


def test_a_state_that_is_larger_than_memory(tmp_path):
    found = run(f"import sys; sys.argv[1:] = [{str(tmp_path)!r}]\n{LARGER}").split("\n")
    assert found[0] == "too large"
    np.testing.assert_allclose([float(number) for number in found[1].split()], [-0.3, -0.3, -0.4], rtol=1e-5)
