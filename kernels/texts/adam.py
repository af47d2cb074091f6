"""Adam, Algorithm 1 of Kingma and Ba, arXiv 1412.6980; and AMSGrad of Reddi, Kale and Kumar, arXiv 1904.09237.

m += (1 - beta1) * (g - m);  v += (1 - beta2) * (g * g - v);  p -= step_size * m / (sqrt(v) + eps)
"""

from numpy import maximum, sqrt

from fastadam.kernels.texts import shared
from fastadam.kernels.texts.member import Buffer, Convention, Member


def size(lr, root2, bias1):
    step_size = lr * root2 / bias1


def descend(p, m, root, step_size, eps):
    p -= step_size * m / (root + eps)


def largest_of_v(beta2):
    correction2 = 1.0


def largest_of_corrected_v(bias2):
    correction2 = 1.0 / bias2


def corrected_size(lr, bias1):
    # For a second moment that is bias-corrected already.
    step_size = lr / bias1


def root_of_largest_v(v, v_max, correction2):
    v_max = maximum(v_max, correction2 * v)
    root = sqrt(v_max)


def root_of_shifted_largest_v(v, v_max, correction2, eps_root):
    v_max = maximum(v_max, correction2 * v)
    root = sqrt(v_max + eps_root)


def element(recipe):
    """The stages of the element."""
    root = shared.root_stage(recipe)
    if recipe.amsgrad:
        root = root_of_shifted_largest_v if recipe.eps_root else root_of_largest_v
    moments = shared.first_moment_stage(recipe), shared.second_moment_stage(recipe)
    return (*moments, *shared.decay_stages(recipe), root, descend)


def fold(recipe):
    """The stages of the fold; optax compares second moments that are bias-corrected."""
    if recipe.amsgrad and recipe.convention == "optax":
        return largest_of_corrected_v, corrected_size
    largest = (largest_of_v,) if recipe.amsgrad else ()
    return (*largest, size, *shared.eps_stages(recipe, CONVENTIONS))


CONVENTIONS = {
    "torch": Convention(amsgrad=True, eps_stages=(shared.eps_after_root,)),
    "optax": Convention(decoupled=True, amsgrad=True, eps_root=True, eps_stages=(shared.eps_after_root,)),
    # Keras and scikit-learn add eps to the root of the uncorrected moment, as in section 2 of the paper.
    "keras": Convention(eps=1e-7, decoupled=True, amsgrad=True),
    "sklearn": Convention(),
    "apex": Convention(decoupled=True, eps_stages=(shared.eps_after_root,)),
}
MEMBER = Member(
    "adam",
    buffers={
        "m": Buffer("exp_avg", signed=True, speed="fast"),
        "v": Buffer("exp_avg_sq", signed=False, speed="slow"),
        "v_max": Buffer("max_exp_avg_sq", signed=False, speed=None),
    },
    element=element,
    fold=fold,
    conventions=CONVENTIONS,
    exact_rows=True,
)
