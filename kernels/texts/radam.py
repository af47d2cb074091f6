"""RAdam of Liu et al., arXiv 1908.03265: Adam whose step is rectified while the second moment is of a few gradients."""

from numpy import maximum, minimum, sqrt

from fastadam.kernels.texts import shared
from fastadam.kernels.texts.member import Buffer, Convention, Member
from fastadam.kernels.texts.power import power


def sizes(lr, root2, bias1, bias2, step, beta2):
    # Length of the approximated moving average, and its limit; below 5 the step is not rectified.
    limit = 2.0 / (1.0 - beta2) - 1.0
    length = limit - 2.0 * step * power(beta2, step) / bias2
    rectified = 1.0 * (length > 5.0)
    length = maximum(length, 5.0)
    limit = maximum(limit, 5.0)
    variance = (length - 4.0) * (length - 2.0) * limit / ((limit - 4.0) * (limit - 2.0) * length)
    step_size = lr / bias1 * (1.0 - rectified + rectified * sqrt(variance) * root2)
    least = 1.0 - rectified
    most = 1.0 + rectified * 1e300


def descend_rectified(p, m, root, step_size, eps, least, most):
    # Not rectified, with least = most = 1: by the first moment alone.
    p -= step_size * m / maximum(minimum(root + eps, most), least)


def element(recipe):
    """The stages of the element."""
    moments = shared.first_moment_stage(recipe), shared.second_moment_stage(recipe)
    return (*moments, *shared.decay_stages(recipe), shared.root_stage(recipe), descend_rectified)


def fold(recipe):
    """The stages of the fold."""
    return (sizes, *shared.eps_stages(recipe, CONVENTIONS))


CONVENTIONS = {
    # torch adds eps to the root of the uncorrected moment.
    "torch": Convention(),
    "optax": Convention(decoupled=True, eps_root=True, eps_stages=(shared.eps_after_root,)),
}
MEMBER = Member(
    "radam",
    buffers={
        "m": Buffer("exp_avg", signed=True, speed="fast"),
        "v": Buffer("exp_avg_sq", signed=False, speed="slow"),
    },
    element=element,
    fold=fold,
    conventions=CONVENTIONS,
)
