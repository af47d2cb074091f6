"""AdEMAMix of Pagliardini, Ablin and Grangier, arXiv 2409.03137: Adam with a second, much slower first moment.

m_slow += (1 - beta3) * (g - m_slow);  p -= (step_size * m + slow_size * m_slow) / (sqrt(v) + eps)

The slow moment is not bias-corrected, and is multiplied by alpha. Over the first `alpha_warmup` steps alpha grows from
0, and over the first `beta3_warmup` the half-life of beta3 from that of beta1, both evenly (Algorithm 2 of the paper).
"""

from math import log, pow

from numpy import maximum, minimum

from fastadam.kernels.texts import shared
from fastadam.kernels.texts.member import Buffer, Convention, Hyper, Member


def sizes(lr, root2, bias1, step, alpha, alpha_warmup):
    step_size = lr * root2 / bias1
    slow_size = lr * root2 * (alpha * minimum(step / alpha_warmup, 1.0))


def slow_blend(step, beta1, beta3, beta3_warmup):
    # A beta of zero has a half-life that is next to none. At the end of the warm-up beta3 is exactly what was asked.
    ramp = minimum(step / beta3_warmup, 1.0)
    first_half = log(0.5) / log(maximum(beta1, 1e-300))
    last_half = log(0.5) / log(maximum(beta3, 1e-300))
    half = first_half + ramp * (last_half - first_half)
    warm = 1.0 * (ramp < 1.0)
    beta3 = beta3 + warm * (minimum(pow(0.5, 1.0 / half), beta3) - beta3)
    blend3 = 1.0 - beta3


def slow_moment(g, m_slow, blend3):
    m_slow += blend3 * (g - m_slow)


def small_slow_moment(g, m_slow, beta3):
    m_slow = g + beta3 * (m_slow - g)


def descend_by_both(p, m, m_slow, root, step_size, slow_size, eps):
    p -= (step_size * m + slow_size * m_slow) / (root + eps)


def element(recipe):
    """The stages of the element."""
    slow = small_slow_moment if 3 in recipe.small_betas else slow_moment
    moments = shared.first_moment_stage(recipe), slow, shared.second_moment_stage(recipe)
    return (*moments, *shared.decay_stages(recipe), shared.root_stage(recipe), descend_by_both)


def fold(recipe):
    """The stages of the fold."""
    return (sizes, slow_blend, *shared.eps_stages(recipe, CONVENTIONS))


CONVENTIONS = {
    "torch": Convention(decoupled=True, eps_stages=(shared.eps_after_root,)),
    "optax": Convention(decoupled=True, eps_root=True, eps_stages=(shared.eps_after_root,)),
}
MEMBER = Member(
    "ademamix",
    buffers={
        "m": Buffer("exp_avg", signed=True, speed="fast"),
        "m_slow": Buffer("exp_avg_slow", signed=True, speed="slowest"),
        "v": Buffer("exp_avg_sq", signed=False, speed="slow"),
    },
    element=element,
    fold=fold,
    conventions=CONVENTIONS,
    betas=(0.9, 0.999, 0.9999),
    small_betas=(1, 2, 3),
    hyper={
        "alpha": Hyper(5.0),
        "alpha_warmup": Hyper(0.0, unbounded=True),
        "beta3_warmup": Hyper(0.0, unbounded=True),
    },
)
