"""NAdam of Dozat (ICLR 2016 workshop): Adam with Nesterov's momentum.

p -= (gradient_size * g + step_size * m) / (sqrt(v) + eps)
"""

from math import inf, pow

from fastadam.kernels.texts import shared
from fastadam.kernels.texts.member import Buffer, Carried, Convention, Hyper, Member


def sizes(lr, root2, step, beta1, momentum_decay, momentum_product):
    momentum = beta1 * (1.0 - 0.5 * pow(0.96, step * momentum_decay))
    next_momentum = beta1 * (1.0 - 0.5 * pow(0.96, (step + 1.0) * momentum_decay))
    momentum_product *= momentum
    gradient_size = lr * root2 * (1.0 - momentum) / (1.0 - momentum_product)
    step_size = lr * root2 * next_momentum / (1.0 - momentum_product * next_momentum)


def descend_nesterov(p, g, m, root, gradient_size, step_size, eps):
    p -= (gradient_size * g + step_size * m) / (root + eps)


def element(recipe):
    """The stages of the element."""
    moments = shared.first_moment_stage(recipe), shared.second_moment_stage(recipe)
    return (*moments, *shared.decay_stages(recipe), shared.root_stage(recipe), descend_nesterov)


def fold(recipe):
    """The stages of the fold."""
    return (sizes, *shared.eps_stages(recipe, CONVENTIONS))


_AFTER = (shared.eps_after_root,)
CONVENTIONS = {
    "torch": Convention(eps_stages=_AFTER),
    # A momentum that is beta1 from the first step on.
    "optax": Convention(decoupled=True, eps_root=True, eps_stages=_AFTER, hyper={"momentum_decay": inf}),
    "keras": Convention(eps=1e-7, decoupled=True, eps_stages=_AFTER, hyper={"momentum_decay": 1.0}),
}
MEMBER = Member(
    "nadam",
    buffers={
        "m": Buffer("exp_avg", signed=True, speed="fast"),
        "v": Buffer("exp_avg_sq", signed=False, speed="slow"),
    },
    element=element,
    fold=fold,
    conventions=CONVENTIONS,
    lr=2e-3,
    hyper={"momentum_decay": Hyper(4e-3, unbounded=True)},
    # The product of the momenta so far.
    carried={"momentum_product": Carried(1.0, "mu_product")},
    exact_rows=True,
)
