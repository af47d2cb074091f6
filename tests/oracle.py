"""An Adam that shares nothing with the package, in float64 and in the textbook's form; and states to start from."""

import numpy as np


def exact_adam(p, g, m, v, *, step, lr, betas, eps, l2=0.0, decoupled=0.0, grad_scale=1.0):
    """New (p, m, v) in float64 by Algorithm 1 of arXiv 1412.6980, line by line."""
    p, g, m, v = (np.asarray(x, np.float64) for x in (p, g, m, v))
    beta1, beta2 = betas
    g = g * grad_scale + l2 * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    return p - lr * decoupled * p - lr * m_hat / (np.sqrt(v_hat) + eps), m, v


def exact_member(
    member,
    p,
    g,
    m,
    v,
    v_max=None,
    *,
    step,
    lr,
    betas,
    eps,
    convention="torch",
    eps_root=0.0,
    momentum_decay=0.0,
    l2=0.0,
    decoupled=0.0,
    alpha=5.0,
    alpha_warmup=0,
    beta3_warmup=0,
):
    """New (p, m, v, v_max) of a member of the family in float64, by the formulas of its paper and its conventions.

    Lion has no `v`; the slow moment of AdEMAMix stands in the place of `v_max`.
    """
    p, g, m, v = (np.asarray(x, np.float64) for x in (p, g, m, v))
    beta1, beta2 = betas[:2]
    unbias1, unbias2 = 1 / (1 - beta1**step), 1 / (1 - beta2**step)
    g = g + l2 * p
    if member == "lion":
        change = np.sign(beta1 * m + (1 - beta1) * g) + decoupled * p
        return p - lr * change, beta2 * m + (1 - beta2) * g, v, v_max
    m = beta1 * m + (1 - beta1) * g
    if member == "ademamix":
        alpha *= min(1.0, step / alpha_warmup) if alpha_warmup else 1.0
        beta3 = warm_beta(step, beta1, betas[2], beta3_warmup)
        slow, v = beta3 * v_max + (1 - beta3) * g, beta2 * v + (1 - beta2) * g**2
        change = (m * unbias1 + alpha * slow) / (np.sqrt(v * unbias2 + eps_root) + eps)
        return p - lr * (change + decoupled * p), m, v, slow
    if member == "adamax":
        outside = convention == "keras"
        v = np.maximum(beta2 * v, np.abs(g) + (0.0 if outside else eps))
        return p - lr * (decoupled * p + m * unbias1 / (v + outside * eps)), m, v, v_max
    v = beta2 * v + (1 - beta2) * g**2
    v_hat = v * unbias2
    if v_max is not None:
        v_max = np.maximum(v_max, v_hat if convention == "optax" else v)
        v_hat = v_max if convention == "optax" else v_max * unbias2
    unbiased_eps = (member, convention) in {("adam", "keras"), ("adam", "sklearn"), ("radam", "torch")}
    root = np.sqrt(v_hat + eps_root) + eps * (unbias2**0.5 if unbiased_eps else 1.0)
    m_hat = m * unbias1
    if member == "nadam":
        momenta = beta1 * (1 - 0.5 * 0.96 ** (np.arange(1.0, step + 2) * momentum_decay))
        products = np.cumprod(momenta)
        m_hat = (1 - momenta[-2]) / (1 - products[-2]) * g + momenta[-1] / (1 - products[-1]) * m
    if member == "radam":
        limit = 2 / (1 - beta2) - 1
        length = limit - 2 * step * beta2**step / (1 - beta2**step)
        rectifier = ((length - 4) * (length - 2) * limit) / ((limit - 4) * (limit - 2) * length)
        root = root / np.sqrt(rectifier) if length > 5 else 1.0
    return p - lr * (decoupled * p + m_hat / root), m, v, v_max


def warm_beta(step, first, last, warmup):
    """beta3 of Algorithm 2 of arXiv 2409.03137 at a step, from `first` on."""
    if step >= warmup or last == 0.0:
        return last
    logs, part = np.log(max(first, 1e-300)) * np.log(last), step / warmup
    return min(last, np.exp(logs / ((1 - part) * np.log(last) + part * np.log(max(first, 1e-300)))))


# 65,536 by the golden ratio.
TURN = round(2**16 * (np.sqrt(5) - 1) / 2)


def turn(step):
    """What the thresholds of slow changes have gone round by, in 65,536ths."""
    return TURN * step % 2**16


def toss(step):
    """The same of fast changes: the turns of 2,048 steps in another order each time."""
    block, place = divmod(step, 2_048)
    bits = f"{_triangular(place) % 2_048:011b}"
    swapped = int(bits[6:] + bits[:6], 2)
    return turn(2_048 * block + _triangular((swapped + 677 * block) % 2_048) % 2_048)


def _triangular(count):
    return sum(range(count + 1))


def random_state(size, dtype=np.float32, seed=0):
    """Non-zero (p, g, m, v) of a run under way."""
    rng = np.random.default_rng(seed)
    p, g, m = (rng.standard_normal(size).astype(dtype) for _ in range(3))
    return p, g, m * dtype(0.1), (rng.random(size) * 0.01).astype(dtype)


def special_state(dtype=np.float32):
    """(p, g, m, v) with every combination of ordinary, denormal, huge, zero and non-finite values."""
    info = np.finfo(dtype)
    values = [0.0, -0.0, 1.5, -2.5e-3, info.smallest_subnormal, -info.tiny / 3, info.max, -info.max / 7]
    values = np.array([*values, info.max**0.5, 1e-25, np.inf, -np.inf, np.nan], dtype)
    grids = np.meshgrid(values, values, values, np.abs(values), indexing="ij")
    return tuple(grid.ravel().copy() for grid in grids)


def misaligned(array, elements):
    """A copy of `array` that starts `elements` elements past a 64-byte boundary."""
    memory = np.zeros(array.nbytes + 64 + elements * array.itemsize, np.uint8)
    start = -memory.ctypes.data % 64 + elements * array.itemsize
    copy = memory[start : start + array.nbytes].view(array.dtype)
    copy[...] = array
    return copy


class Home:
    """A place for a copy of `array`, which starts `shift` elements past a 64-byte boundary, with canaries around it."""

    CANARIES, CANARY = 256, 0xA5

    def __init__(self, array, shift=0):
        self.array, before = array, self.CANARIES + shift * array.itemsize
        memory = np.full(64 + before + array.nbytes + self.CANARIES, self.CANARY, np.uint8)
        start = -memory.ctypes.data % 64 + before
        self.parts = memory[:start], memory[start : start + array.nbytes], memory[start + array.nbytes :]
        self.copy = self.parts[1].view(array.dtype)
        self.copy[...] = array
        self.address = self.copy.ctypes.data

    def leave(self):
        """Copy back what has become of the copy; nothing beside it was written."""
        assert (self.parts[0] == self.CANARY).all(), "written before the beginning of an array"
        assert (self.parts[2] == self.CANARY).all(), "written past the end of an array"
        self.array[...] = self.copy


def assert_same_bits(actual, expected):
    """Three arrays p, m and v are equal to the last bit, zeros by sign too; NaN where NaN."""
    for name, left, right in zip("pmv", actual, expected, strict=True):
        assert_same_array(left, right, name)


def assert_same_array(actual, expected, label, numbers=None):
    """Equal to the last bit, zeros by sign too; NaN where NaN: not in `numbers` of each, if its dtype cannot say it."""
    number, other = numbers or (~np.isnan(actual), ~np.isnan(expected))
    np.testing.assert_array_equal(number, other, err_msg=f"NaN in {label}")
    unsigned = np.dtype(f"u{actual.itemsize}")
    np.testing.assert_array_equal(actual[number].view(unsigned), expected[number].view(unsigned), err_msg=label)


def bits(arrays):
    """Name -> the bytes of the array."""
    return {name: np.asarray(array).tobytes() for name, array in arrays.items()}


def buffers_of(opt, name):
    """The buffers of a parameter."""
    return next(buffers for buffers in opt.all_buffers if name in buffers.segments)


def raw(opt, name):
    """Flat array -> what it has of a parameter, as a copy: all that a step writes except gradients, in one order."""
    buffers = buffers_of(opt, name)
    flats = {"p": buffers.segments[name].layout.flat(opt.params.arrays[name])}
    flats |= {flat: buffers.cut(name, flat) for flat in buffers.flats if flat not in ("p", "g")}
    return {flat: np.array(part) for flat, part in flats.items()}


def memory(opt):
    """The bytes of all that a step of `opt` writes except gradients, and its counts of steps. Gaps must be zero."""
    assert_gaps_are_zero(opt)
    counts = [(entry["step"], entry.get("mu_product")) for entry in opt.state_dict()["state"].values()]
    return {name: bits(raw(opt, name)) for name in opt.params}, counts


def assert_gaps_are_zero(opt):
    """Between the parameters, flat buffers are as they were made."""
    for buffers in opt.all_buffers:
        gaps = np.ones(buffers.size, bool)
        for segment in buffers.segments.values():
            gaps[segment.start : segment.stop] = False
        for name, flat in buffers.flats.items():
            if not name.endswith("_exponent"):
                assert not np.any(flat[gaps]), f"written into a gap of {name}"
