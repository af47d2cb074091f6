"""AdaMax, Algorithm 2 of Kingma and Ba, arXiv 1412.6980: Adam with the largest gradient in the place of the root.

v = maximum(beta2 * v, abs(g));  p -= step_size * m / (v + eps)
"""

from numpy import maximum

from fastadam.kernels.texts import shared
from fastadam.kernels.texts.member import Buffer, Convention, Member


def size(lr, bias1):
    step_size = lr / bias1


def eps_inside_maximum(eps):
    inner_eps = eps
    eps = 0.0


def eps_outside_maximum(eps):
    inner_eps = 0.0


def infinity_moment(g, v, beta2, inner_eps):
    v = maximum(beta2 * v, abs(g) + inner_eps)


def descend_infinity(p, m, v, step_size, eps):
    p -= step_size * m / (v + eps)


def element(recipe):
    """The stages of the element."""
    moments = shared.first_moment_stage(recipe), infinity_moment
    return (*moments, *shared.decay_stages(recipe), descend_infinity)


def fold(recipe):
    """The stages of the fold."""
    return (size, *shared.eps_stages(recipe, CONVENTIONS))


CONVENTIONS = {
    "torch": Convention(eps_stages=(eps_inside_maximum,)),
    "optax": Convention(decoupled=True, eps_stages=(eps_inside_maximum,)),
    "keras": Convention(eps=1e-7, decoupled=True, eps_stages=(eps_outside_maximum,)),
}
MEMBER = Member(
    "adamax",
    buffers={
        "m": Buffer("exp_avg", signed=True, speed="fast"),
        "v": Buffer("exp_inf", signed=False, speed="slow"),
    },
    element=element,
    fold=fold,
    conventions=CONVENTIONS,
    lr=2e-3,
    small_betas=(1,),
    has_root=False,
)
