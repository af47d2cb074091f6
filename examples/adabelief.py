"""AdaBelief of Zhuang et al., arXiv 2010.07468, added to the family: a member is its stages and one declaration.

m += (1 - beta1) * (g - m);  v += (1 - beta2) * ((g - m) * (g - m) - v) + eps;  p -= step_size * m / (sqrt(v) + eps)

v is how far gradients are from what m expects, where Adam's is how large they are. In kernels/texts/ this file would be
a member like the others, with one line in kernels/texts/members.py and its class in fastadam/family.py.
"""

from fastadam.kernels.texts import shared
from fastadam.kernels.texts.member import Buffer, Convention, Member
from fastadam.kernels.texts.members import MEMBERS
from fastadam.optimizer import Optimizer

# --- the stages: plain statements, which NumPy runs, Numba compiles and CUDA takes as they are


def sizes(lr, root2, bias1, eps):
    step_size = lr * root2 / bias1
    inner_eps = eps
    eps = eps * root2


def second_moment_of_surprise(g, m, v, blend2, inner_eps):
    v += blend2 * ((g - m) * (g - m) - v) + inner_eps


def descend(p, m, root, step_size, eps):
    p -= step_size * m / (root + eps)


def element(recipe):
    """The stages of the element."""
    moments = shared.first_moment_stage(recipe), second_moment_of_surprise
    return (*moments, *shared.decay_stages(recipe), shared.root_of_v, descend)


def fold(recipe):
    """The stages of what is the same for all elements, after those that every member has."""
    return (sizes,)


MEMBER = Member(
    "adabelief",
    buffers={
        "m": Buffer("exp_avg", signed=True, speed="fast"),
        "v": Buffer("exp_avg_sq", signed=False, speed="slow"),
    },
    element=element,
    fold=fold,
    conventions={"torch": Convention(eps=1e-16)},
    small_betas=(1,),
)
MEMBERS[MEMBER.name] = MEMBER


class AdaBelief(Optimizer):
    """AdaBelief, with the arguments and options of `fastadam.Adam`."""

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=None,
        weight_decay=0.0,
        *,
        maximize=False,
        decoupled_weight_decay=None,
        **options,
    ):
        settings = {"maximize": maximize, "decoupled_weight_decay": decoupled_weight_decay}
        super().__init__(
            params, MEMBER.name, options, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **settings
        )
