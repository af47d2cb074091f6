"""The fold: every quantity of a step that is the same for all elements of a group, in float64, from an integer step.

The fold of Adam is exactly Algorithm 1 of arXiv 1412.6980, with eps after the root of the bias-corrected moment:

    lr * (m / bias1) / (sqrt(v / bias2) + eps)  =  step_size * m / (sqrt(v) + eps * root2)

where bias1 = 1 - beta1**step, bias2 = 1 - beta2**step, root2 = sqrt(bias2) and step_size = lr * root2 / bias1.

Each group has a row of hyperparameters (`HYPER`), a row of what is carried from step to step (`CARRIED`), and gets a
row of the table with the scalars of the element text, rounded once to the dtype of the parameters.
"""

from collections.abc import Callable
from math import pow

from numpy import floor, maximum, sqrt

# `sign` is -1 to ascend instead of descend.
HYPER = (
    "lr",
    "beta1",
    "beta2",
    "eps",
    "weight_decay",
    "sign",
    "eps_root",
    "momentum_decay",
    "clip_value",
    "ema_decay",
)
# `step` counts the steps taken; `momentum_product` is the product of NAdam's momenta so far.
CARRIED = ("step", "momentum_product")
FIRST_CARRIED = (0.0, 1.0)


def begin(step, grad_scale, sign, beta1, beta2):
    step += 1.0
    grad_scale = sign * grad_scale
    bias1 = 1.0 - pow(beta1, step)
    bias2 = 1.0 - pow(beta2, step)
    root2 = sqrt(bias2)
    blend1 = 1.0 - beta1
    blend2 = 1.0 - beta2


def decoupled(lr, weight_decay):
    decay = 1.0 - lr * weight_decay


def free(weight_decay):
    decay = 1.0 - weight_decay


def adam(lr, root2, bias1):
    step_size = lr * root2 / bias1


def nadam(lr, root2, step, beta1, momentum_decay, momentum_product):
    momentum = beta1 * (1.0 - 0.5 * pow(0.96, step * momentum_decay))
    next_momentum = beta1 * (1.0 - 0.5 * pow(0.96, (step + 1.0) * momentum_decay))
    momentum_product *= momentum
    gradient_size = lr * root2 * (1.0 - momentum) / (1.0 - momentum_product)
    step_size = lr * root2 * next_momentum / (1.0 - momentum_product * next_momentum)


def radam(lr, root2, bias1, bias2, step, beta2):
    # Length of the approximated moving average, and its limit; below 5 the step is not rectified.
    limit = 2.0 / (1.0 - beta2) - 1.0
    length = limit - 2.0 * step * pow(beta2, step) / bias2
    rectified = 1.0 * (length > 5.0)
    length = maximum(length, 5.0)
    limit = maximum(limit, 5.0)
    variance = (length - 4.0) * (length - 2.0) * limit / ((limit - 4.0) * (limit - 2.0) * length)
    step_size = lr / bias1 * (1.0 - rectified + rectified * sqrt(variance) * root2)
    least = 1.0 - rectified
    most = 1.0 + rectified * 1e300


def adamax(lr, bias1):
    step_size = lr / bias1


def corrected_size(lr, bias1):
    # For a second moment that is bias-corrected already.
    step_size = lr / bias1


def largest_of_v(beta2):
    correction2 = 1.0


def largest_of_corrected_v(bias2):
    correction2 = 1.0 / bias2


def eps_after_root(eps, root2):
    eps = eps * root2


def eps_inside_root(eps_root, bias2):
    eps_root = eps_root * bias2


def eps_inside_maximum(eps):
    inner_eps = eps
    eps = 0.0


def eps_outside_maximum(eps):
    inner_eps = 0.0


def average(ema_decay):
    ema_blend = 1.0 - ema_decay


def zero_gradient():
    zero = 0.0


def next_turn(step):
    # Thresholds go round by the golden ratio, so that over many steps they are spread evenly: for slow changes.
    turn = 40503.0 * step
    turn -= 65536.0 * floor(turn / 65536.0)
    # Or by more at each step, so that no two steps of an element are alike: for fast ones. 1 + 2 + ... + step takes
    # every value modulo a power of two.
    within = step - 131072.0 * floor(step / 131072.0)
    toss = 40503.0 * (within * (within + 1.0) * 0.5)
    toss -= 65536.0 * floor(toss / 65536.0)


_DECAYS: dict[str, list[Callable]] = {"decoupled": [decoupled], "free": [free]}
_SIZES: dict[str, Callable] = {"adam": adam, "nadam": nadam, "radam": radam, "adamax": adamax}


def stages(recipe):
    """The fold stages of a `Recipe`."""
    chosen: list[Callable] = [begin]
    chosen += _DECAYS.get(recipe.decay, [])
    corrected = recipe.amsgrad and recipe.convention == "optax"
    if recipe.amsgrad:
        chosen += [largest_of_corrected_v if corrected else largest_of_v]
    if corrected:
        chosen += [corrected_size]
    else:
        chosen += [_SIZES[recipe.member]]
        chosen += _eps_stages(recipe)
    chosen += [average] * recipe.ema + [zero_gradient] * recipe.zero_grad + [next_turn] * recipe.storage.dithers
    return tuple(chosen)


def _eps_stages(recipe):
    if recipe.member == "adamax":
        return [eps_outside_maximum if recipe.convention == "keras" else eps_inside_maximum]
    eps_hat = {"adam": ("keras", "sklearn"), "nadam": (), "radam": ("torch", "apex")}[recipe.member]
    return [eps_after_root] * (recipe.convention not in eps_hat) + [eps_inside_root] * recipe.eps_root
