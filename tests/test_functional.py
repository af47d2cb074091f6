"""`fastadam.adam_step`: one pass over four flat arrays of any library."""

import inspect
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from oracle import assert_same_bits, exact_adam, misaligned, random_state
from refusal import adam_step_refuses

import fastadam
from fastadam.kernels import cpu

HYPER = {"lr": 3e-3, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.05}
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
sizes = pytest.mark.parametrize("size", [0, 1, 77, cpu.PARALLEL_FROM + 3])


@dtypes
@sizes
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_equals_the_optimizer_bit_for_bit(dtype, size, decoupled, maximize):
    p, _, m, v = random_state(size, dtype)
    m[:], v[:] = 0, 0
    flat = p.copy()
    options = {"decoupled_weight_decay": decoupled, "maximize": maximize}
    optimizer = fastadam.Adam(flat, **HYPER, **options)
    for step in (1, 2, 3):
        g = random_state(size, dtype, seed=step)[1]
        kept = g.copy()
        assert fastadam.adam_step(p, g, m, v, step=step, grad_scale=0.3, **HYPER, **options) is None
        np.testing.assert_array_equal(g, kept)
        optimizer.step(g, grad_scale=0.3)
    assert_same_bits((flat, optimizer.buffers.m, optimizer.buffers.v), (p, m, v))


@pytest.mark.parametrize("step", [1, 7, np.int64(7), np.uint8(200), 10**9])
def test_any_integer_is_a_step(step):
    p, g, m, v = random_state(50, np.float64)
    expected = exact_adam(p, g, m, v, step=int(step), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    fastadam.adam_step(p, g, m, v, step=step)
    for actual, exact in zip((p, m, v), expected, strict=True):
        np.testing.assert_allclose(actual, exact, rtol=1e-13, atol=1e-15)


@sizes
def test_read_only_gradient_is_accepted(size):
    state, other = random_state(size), random_state(size)
    fastadam.adam_step(*other, step=1)
    state[1].flags.writeable = False
    fastadam.adam_step(*state, step=1)
    assert_same_bits((state[0], *state[2:]), (other[0], *other[2:]))


def test_slices_of_larger_arrays_are_updated_and_their_surroundings_are_not():
    state = random_state(1_000)
    expected = [buffer.copy() for buffer in state]
    fastadam.adam_step(*(buffer[101:900] for buffer in state), step=2)
    inner = [buffer[101:900].copy() for buffer in expected]
    fastadam.adam_step(*inner, step=2)
    for buffer, part in zip(expected, inner, strict=True):
        buffer[101:900] = part
    assert_same_bits((state[0], *state[2:]), (expected[0], *expected[2:]))


def test_starts_need_no_alignment_beyond_the_element():
    state = random_state(1_001)
    shifted = [misaligned(buffer, elements) for elements, buffer in enumerate(state, start=1)]
    for each in (state, shifted):
        fastadam.adam_step(*each, step=2)
    assert_same_bits((shifted[0], *shifted[2:]), (state[0], *state[2:]))


def test_neighbouring_parts_of_one_array_do_not_overlap():
    arena = np.ones((4, 50), np.float32)
    fastadam.adam_step(*arena, step=1)
    assert (arena[0] < 1).all()


@dtypes
def test_torch_tensors_are_updated_where_they_lie(dtype):
    torch = pytest.importorskip("torch")
    state = random_state(77, dtype)
    tensors = [torch.tensor(buffer) for buffer in state]
    fastadam.adam_step(*tensors, step=5, **HYPER)
    fastadam.adam_step(*state, step=5, **HYPER)
    numpy = [tensor.numpy() for tensor in tensors]
    assert_same_bits((numpy[0], *numpy[2:]), (state[0], *state[2:]))


def test_defaults_are_those_of_the_optimizer():
    ours = {name: parameter.default for name, parameter in inspect.signature(fastadam.adam_step).parameters.items()}
    group = fastadam.Adam(np.ones(1)).param_groups[0]
    assert {key: ours[key] for key in group if key != "params"} == {k: v for k, v in group.items() if k != "params"}


FLAGS = ["amsgrad", "maximize", "decoupled_weight_decay", "zero_grad", "decouple_lr"]


@pytest.mark.parametrize("key", FLAGS)
@pytest.mark.parametrize("value", [0, 0.0, np.int8(0), 1, "no"], ids=repr)
def test_a_flag_is_checked_again_after_one_that_is_equal_to_it(key, value):
    fastadam.adam_step(*random_state(5), step=1, **{key: False})
    adam_step_refuses({key: value}, TypeError, f"`{key}` must be True or False")


def test_settings_that_have_no_hash_are_taken_too():
    state, other = random_state(50), random_state(50)
    fastadam.adam_step(*state, step=1, betas=[0.8, 0.99], eps=np.array(1e-6))
    fastadam.adam_step(*other, step=1, betas=(0.8, 0.99), eps=1e-6)
    assert_same_bits((state[0], *state[2:]), (other[0], *other[2:]))


def test_calls_of_any_sizes_dtypes_and_settings_do_not_meet():
    def steps(of):
        # More sizes than are kept ready, each again after all the others.
        for step in (1, 2):
            for size in range(1, 80):
                for dtype in (np.float32, np.float64):
                    p, _, m, v = of[size, dtype]
                    g = random_state(size, dtype, seed=step)[1]
                    fastadam.adam_step(
                        p, g, m, v, step=step, lr=size / 1e4, betas=(0.8, 0.9 + size / 1e3), grad_scale=size
                    )

    mixed = {(size, dtype): random_state(size, dtype) for size in range(1, 80) for dtype in (np.float32, np.float64)}
    steps(mixed)
    for (size, dtype), (p, _, m, v) in mixed.items():
        flat = random_state(size, dtype)[0]
        optimizer = fastadam.Adam(flat, lr=size / 1e4, betas=(0.8, 0.9 + size / 1e3))
        optimizer.buffers.m[...], optimizer.buffers.v[...] = random_state(size, dtype)[2:]
        for step in (1, 2):
            optimizer.step(random_state(size, dtype, seed=step)[1], grad_scale=size)
        assert_same_bits((p, m, v), (flat, optimizer.buffers.m, optimizer.buffers.v))


def test_threads_that_take_many_sizes_get_what_one_gets():
    def stepped(seed):
        states = [random_state(size, seed=seed) for size in range(1, 100)]
        for step in (1, 2, 3):
            for state in states:
                fastadam.adam_step(*state, step=step)
        return states

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(stepped, range(8)))
    for seed, states in enumerate(together):
        for state, other in zip(states, stepped(seed), strict=True):
            assert_same_bits((state[0], *state[2:]), (other[0], *other[2:]))


@pytest.mark.parametrize("options", [{"maximize": True}, {"zero_grad": True}, {"clip_value": 0.5}], ids=str)
def test_equal_settings_with_other_options_do_not_meet(options):
    plain, other = random_state(50), random_state(50)
    fastadam.adam_step(*plain, step=1)
    fastadam.adam_step(*other, step=1, **options)
    again = random_state(50)
    fastadam.adam_step(*again, step=1)
    assert_same_bits((again[0], *again[2:]), (plain[0], *plain[2:]))
    assert not np.array_equal(other[0], plain[0]) or not other[1].any()
