"""Stages that members of the family share: each of the element beside that of the fold which makes its scalars.

The fold has every quantity of a step that is the same for all elements of a clock, in float64, from an integer step.
That of Adam is exactly Algorithm 1 of Kingma and Ba, arXiv 1412.6980, with eps after the root of the bias-corrected
moment:

    lr * (m / bias1) / (sqrt(v / bias2) + eps)  =  step_size * m / (sqrt(v) + eps * root2)

where bias1 = 1 - beta1**step, bias2 = 1 - beta2**step, root2 = sqrt(bias2) and step_size = lr * root2 / bias1. The
decoupled decay is that of Loshchilov and Hutter, arXiv 1711.05101.
"""

from numpy import floor, maximum, minimum, sqrt

from fastadam.kernels.texts.power import power

# --- the step: its scale, its decay


def begin(step, grad_scale, sign, beta1, beta2):
    step += 1.0
    grad_scale = sign * grad_scale
    bias1 = 1.0 - power(beta1, step)
    bias2 = 1.0 - power(beta2, step)
    root2 = sqrt(bias2)
    blend1 = 1.0 - beta1
    blend2 = 1.0 - beta2


def clip_scale(grad_scale, clip):
    grad_scale = grad_scale * clip


def scale_gradient(g, grad_scale):
    g = grad_scale * g


def clip_gradient(g, clip_value):
    g = minimum(maximum(g, -clip_value), clip_value)


def couple_decay(p, g, weight_decay):
    # L2: the decay is part of the gradient.
    g = g + weight_decay * p


def decay_by_lr(lr, weight_decay):
    decay = 1.0 - lr * weight_decay


def decay_alone(weight_decay):
    decay = 1.0 - weight_decay


def decouple_decay(p, decay):
    # A factor, so that a mask of infinities stays one.
    p *= decay


# --- moments


def first_moment(g, m, blend1):
    m += blend1 * (g - m)


def small_first_moment(g, m, beta1):
    # With beta1 < 0.5 the form above would subtract m from itself.
    m = g + beta1 * (m - g)


def second_moment(g, v, blend2):
    v += blend2 * (g * g - v)


def small_second_moment(g, v, beta2):
    v = g * g + beta2 * (v - g * g)


# --- the divisor


def eps_after_root(eps, root2):
    eps = eps * root2


def eps_inside_root(eps_root, bias2):
    eps_root = eps_root * bias2


def root_of_v(v):
    root = sqrt(v)


def root_of_shifted_v(v, eps_root):
    root = sqrt(v + eps_root)


# --- after the update


def ema_scalars(ema_decay):
    ema_blend = 1.0 - ema_decay


def warm_ema_scalars(ema_decay, step):
    ema_blend = 1.0 - minimum(ema_decay, (1.0 + step) / (10.0 + step))


def average(p, ema, ema_blend):
    ema += ema_blend * (p - ema)


def copy(p, copy):
    copy = p


def zero_scalars():
    zero = 0.0


def zero_gradient(g, zero):
    g = zero


def next_turn(step):
    # Thresholds go round by the golden ratio, so that over many steps they are spread evenly: for slow changes.
    turn = 40503.0 * step
    turn -= 65536.0 * floor(turn / 65536.0)
    # Or so in every 2,048 steps, but in an order without a pattern: for fast ones. The sums 1 + 2 + ... take every
    # value modulo 2,048. So they do again after the upper 6 and lower 5 bits have changed places, and been moved on.
    within = step - 2048.0 * floor(step / 2048.0)
    once = within * (within + 1.0) * 0.5
    once -= 2048.0 * floor(once / 2048.0)
    upper = floor(once / 32.0)
    swapped = 64.0 * (once - 32.0 * upper) + upper + 677.0 * floor(step / 2048.0)
    swapped -= 2048.0 * floor(swapped / 2048.0)
    shuffled = swapped * (swapped + 1.0) * 0.5
    shuffled -= 2048.0 * floor(shuffled / 2048.0)
    toss = 40503.0 * (step - within + shuffled)
    toss -= 65536.0 * floor(toss / 65536.0)


# --- the stages of a recipe


def first_moment_stage(recipe):
    return small_first_moment if 1 in recipe.small_betas else first_moment


def second_moment_stage(recipe):
    return small_second_moment if 2 in recipe.small_betas else second_moment


def decay_stages(recipe):
    return (decouple_decay,) if recipe.decay in ("decoupled", "free") else ()


def root_stage(recipe):
    return root_of_shifted_v if recipe.eps_root else root_of_v


def eps_stages(recipe, conventions):
    """Stages of the fold that put eps, and what is added inside of the root, where the convention has them."""
    stages = conventions[recipe.convention].eps_stages
    return (*stages, eps_inside_root) if recipe.eps_root else stages
