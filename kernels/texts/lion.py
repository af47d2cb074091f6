"""Lion of Chen et al., arXiv 2302.06675: steps of one size, by the sign of a momentum.

p -= lr * signum(beta1 * m + (1 - beta1) * g);  m += (1 - beta2) * (g - m)
"""

from fastadam.kernels.texts import shared
from fastadam.kernels.texts.member import Buffer, Convention, Member
from fastadam.kernels.texts.text import signum


def size(lr):
    step_size = lr


def descend_by_sign(p, g, m, beta1, blend1, step_size):
    # A sum of products: the sign of m + blend1 * (g - m) is lost in rounding where g is small beside m.
    p -= step_size * signum(beta1 * m + blend1 * g)


def momentum(g, m, blend2):
    m += blend2 * (g - m)


def small_momentum(g, m, beta2):
    m = g + beta2 * (m - g)


def element(recipe):
    """The stages of the element: the step is by the momentum before it takes in the gradient."""
    last = small_momentum if 2 in recipe.small_betas else momentum
    return (*shared.decay_stages(recipe), descend_by_sign, last)


def fold(recipe):
    """The stages of the fold."""
    return (size,)


MEMBER = Member(
    "lion",
    buffers={"m": Buffer("exp_avg", signed=True, speed="fast")},
    element=element,
    fold=fold,
    conventions={name: Convention(decoupled=True) for name in ("torch", "optax", "keras")},
    lr=1e-4,
    betas=(0.9, 0.99),
    small_betas=(2,),
    has_eps=False,
    has_root=False,
)
