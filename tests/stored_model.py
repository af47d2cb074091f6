"""The family in NumPy, one step at a time in float32 from what is stored, and what each format may store of a result.

It shares nothing with the package: formats are decoded and rounded by the dtypes of NumPy and ml_dtypes, and codes by
arithmetic on their exponents.
"""

import math

import numpy as np
from ml_dtypes import bfloat16
from oracle import buffers_of, raw, warm_beta

F4 = np.float32
GROUP = 128  # elements that share an exponent
OCTAVES = {"m": 14, "m_slow": 14, "v": 30}
MOMENTS = ("m", "m_slow", "v")


# --- what is stored


def values(stored):
    """Buffer -> what is stored in it, in float32."""
    held = {name: decoded(stored, name) for name in ("p", *MOMENTS, "v_max", "ema") if name in stored}
    if "remainder" in stored:
        upper = stored["p"].view(np.uint16).astype(np.int64) << 16
        held["p"] = (upper + stored["remainder"].view(np.int16)).astype(np.uint32).view(F4)
    return held


def decoded(stored, name):
    array = stored[name]
    if array.dtype != np.uint8:
        return array.astype(F4)
    size = array if name == "v" else array & 0x7F
    sign = 1.0 if name == "v" else np.where(array & 0x80, -1.0, 1.0)
    exponent = np.repeat(stored[f"{name}_exponent"].astype(int), GROUP)[: array.size]
    # Exact in float64, and rounded once.
    return (sign * (sum_of(size, exponent) - sum_of(0, exponent))).astype(F4)


def sum_of(size, exponent):
    """What a code is and the lowest of its group, together: 8 in an octave, and in that of the subnormals."""
    octave = exponent + size // 8
    return np.ldexp((octave > 0) + size % 8 / 8.0, np.maximum(octave, 1) - 127)


# --- a step


def scalars(member, group, step, mu_product):
    """What does not depend on the element, in float64; and NAdam's product of momenta after the step."""
    lr, (beta1, beta2) = group["lr"], group["betas"][:2]
    bias1, root2 = 1.0 - beta1**step, math.sqrt(1.0 - beta2**step)
    eps, size, nesterov, rectified = group["eps"], lr * root2 / bias1, 0.0, True
    if member == "RAdam":
        limit = 2.0 / (1.0 - beta2) - 1.0
        length = limit - 2.0 * step * beta2**step / (1.0 - beta2**step)
        rectified = length > 5.0
        variance = (length - 4.0) * (length - 2.0) * limit / ((limit - 4.0) * (limit - 2.0) * length)
        size = lr / bias1 * (math.sqrt(variance) * root2 if rectified else 1.0)
    elif member == "Adamax":
        size = lr / bias1
    else:
        eps *= root2
    if member == "NAdam":
        now, after = (beta1 * (1.0 - 0.5 * 0.96 ** (t * group["momentum_decay"])) for t in (step, step + 1))
        mu_product *= now
        nesterov = lr * root2 * (1.0 - now) / (1.0 - mu_product)
        size = lr * root2 * after / (1.0 - mu_product * after)
    return F4(size), F4(eps), F4(nesterov), rectified, mu_product


def stepped(member, held, g, group, step, mu_product=1.0, ema_decay=0.0):
    """Buffer -> its values after the step, as yet unrounded, from what was `held`; and NAdam's product."""
    p, decay = held["p"], group["weight_decay"]
    if decay and not group["decoupled_weight_decay"]:
        g = g + F4(decay) * p
    if group["decoupled_weight_decay"]:
        p = p * F4(1.0 - group["lr"] * decay)
    if member == "Lion":
        new = lion(held, p, g, group)
    else:
        new, mu_product = by_root(member, held, p, g, group, step, mu_product)
    if "ema" in held:
        new["ema"] = held["ema"] + F4(1.0 - ema_decay) * (new["p"] - held["ema"])
    return new, mu_product


def lion(held, p, g, group):
    beta1, beta2 = group["betas"]
    m = held["m"]
    sign = np.sign(F4(beta1) * m + F4(1.0 - beta1) * g)
    return {"m": m + F4(1.0 - beta2) * (g - m), "p": p - F4(group["lr"]) * sign}


def by_root(member, held, p, g, group, step, mu_product):
    size, eps, nesterov, rectified, mu_product = scalars(member, group, step, mu_product)
    (beta1, beta2), m, v = group["betas"][:2], held["m"], held["v"]
    m = m + F4(1.0 - beta1) * (g - m)
    new = {"m": m, "v": v + F4(1.0 - beta2) * (g * g - v)}
    if member == "Adamax":
        new["v"] = np.maximum(F4(beta2) * v, np.abs(g) + eps)
    if "v_max" in held:
        new["v_max"] = np.maximum(held["v_max"], new["v"])
    root = new["v"] if member == "Adamax" else np.sqrt(new.get("v_max", new["v"])) + eps
    if not rectified:
        root = F4(1.0)
    change = nesterov * g + size * m if member == "NAdam" else size * m
    if member == "AdEMAMix":
        slow, beta3 = held["m_slow"], warm_beta(step, beta1, group["betas"][2], group["beta3_warmup"])
        new["m_slow"] = slow = slow + F4(1.0 - beta3) * (g - slow)
        warm = min(1.0, step / group["alpha_warmup"]) if group["alpha_warmup"] else 1.0
        change = change + F4(group["lr"] * math.sqrt(1.0 - beta2**step) * (group["alpha"] * warm)) * slow
    new["p"] = p - change / root
    return new, mu_product


# --- what may be stored of a result


def assert_stored(stored, new, stochastic):
    """`stored` holds `new`, rounded as its dtypes say: the names in `stochastic` to one of the two neighbours."""
    held = values(stored)
    for name, exact in new.items():
        if stored[name].dtype == np.uint8:
            assert_exponents(stored[f"{name}_exponent"], exact, OCTAVES[name])
            expected = neighbours_of_codes(stored, name, exact)
        elif name == "p" and "remainder" in stored:
            expected = [exact]
        elif name in stochastic:
            expected = neighbours(exact)
        else:
            expected = [exact.astype(stored[name].dtype).astype(F4)]
        good = np.any([held[name] == each for each in expected], axis=0)
        assert good.all(), (name, held[name][~good][:3], [each[~good][:3] for each in expected], exact[~good][:3])


def neighbours(exact):
    """The bfloat16 below and above in size, which are one where it is exact."""
    below = (exact.view(np.uint32) & np.uint32(0xFFFF0000)).view(F4)
    above = np.nextafter(below.astype(bfloat16), np.copysign(F4(np.inf), exact).astype(bfloat16)).astype(F4)
    return below, np.where(below == exact, exact, above)


def assert_exponents(exponents, exact, octaves):
    largest = [np.abs(exact[start : start + GROUP]).max() for start in range(0, exact.size, GROUP)]
    expected = [max(0, math.frexp(value)[1] - 1 + 127 - octaves) if value else 0 for value in largest]
    np.testing.assert_array_equal(exponents, expected)


def neighbours_of_codes(stored, name, exact):
    """The numbers of the codes below and above in size."""
    exponent = np.repeat(stored[f"{name}_exponent"].astype(int), GROUP)[: exact.size]
    lowest = sum_of(0, exponent)
    # The one operation that is rounded: of float32.
    summed = (np.abs(exact) + lowest.astype(F4)).astype(float)
    quantum = np.ldexp(1.0, np.maximum(np.frexp(summed)[1] - 4, -129))  # 3 bits of the fraction
    sizes = [way(summed / quantum) * quantum - lowest for way in (np.floor, np.ceil)]
    if name == "v":
        first = sum_of(1, exponent) - lowest
        sizes = [np.where(exact > 0.0, np.maximum(size, first), size) for size in sizes]
    return [np.copysign(size, exact).astype(F4) for size in sizes]


class Followed:
    """An optimizer beside the model, which checks every step of every parameter, whatever the storage."""

    def __init__(self, opt, **options):
        self.opt, self.member = opt, type(opt).__name__.replace("AdamW", "Adam")
        self.ema_decay = options.get("ema_decay") or 0.0
        self.copy_dtype = options.get("copy_dtype")
        self.nearest = options.get("rounding") == "nearest"
        self.steps = dict.fromkeys(opt.params, 0)
        self.products = dict.fromkeys(opt.params, 1.0)

    def step(self, grads, hand_over=None, grad_scale=1.0, rows=None):
        """A step by `hand_over`, checked; `rows` are those of each parameter that it may write, if not all."""
        before = {name: raw(self.opt, name) for name in self.opt.params}
        gradients = {name: in_memory(self.opt, name, gradient).astype(F4) for name, gradient in grads.items()}
        (hand_over or type(self.opt).step)(self.opt, grads, grad_scale=grad_scale)
        for group in self.opt.param_groups:
            for name in group["params"]:
                self._check(name, before[name], F4(grad_scale) * gradients[name], group, (rows or {}).get(name))

    def _check(self, name, before, g, group, rows):
        self.steps[name] = self.steps.get(name, 0) + 1
        product = self.products.get(name, 1.0)
        with np.errstate(all="ignore"):
            new, product = stepped(self.member, values(before), g, group, self.steps[name], product, self.ema_decay)
        self.products[name], after = product, raw(self.opt, name)
        if rows is not None:
            before, after, new = self._only(name, rows, before, after, new)
        assert_stored(after, new, () if self.nearest else self._stochastic(after))
        if self.copy_dtype:
            assert_copied(after["copy"], new["p"], self.copy_dtype)

    @staticmethod
    def _stochastic(stored):
        return [name for name in ("p", *MOMENTS) if name in stored and stored[name].dtype == bfloat16]

    def _only(self, name, rows, before, after, new):
        """Of all these, the elements in `rows`; the others are as they were."""
        shape = self.opt.params[name].shape
        inside = np.zeros(shape, bool)
        inside[rows] = True
        inside = inside.reshape(-1)
        masks = {flat: inside[::GROUP] if flat.endswith("_exponent") else inside for flat in after}
        for flat, mask in masks.items():
            assert after[flat][~mask].tobytes() == before[flat][~mask].tobytes(), (name, flat)
        cut = [{flat: held[flat][mask] for flat, mask in masks.items()} for held in (before, after)]
        return *cut, {key: value[inside] for key, value in new.items()}


def in_memory(opt, name, array):
    """An array of a parameter's shape, flat, in the order in which the parameter lies."""
    return buffers_of(opt, name).segments[name].layout.flat(np.asarray(array))


def assert_copied(copy, p, copy_dtype):
    with np.errstate(over="ignore"):
        expected = p.astype(bfloat16 if copy_dtype == "bfloat16" else np.float16)
    assert copy.tobytes() == expected.tobytes()
