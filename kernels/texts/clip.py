"""What follows from the norm of the gradients: the factor on them, and whether the step is taken. Float64."""

from numpy import maximum, minimum, sqrt

from fastadam.kernels.texts.text import block, function, join


def clip_norm(grad_scale, squared_norm, max_grad_norm):
    norm = grad_scale * sqrt(squared_norm)
    grad_scale = grad_scale * minimum(1.0, max_grad_norm / (norm + 1e-6))


def check_finite(grad_scale, squared_norm, largest, propagate):
    # Not taken for NaN as well. The square of the clipped norm must not overflow where g * g would.
    taken = maximum(propagate, 1.0 * (grad_scale * grad_scale * squared_norm < largest))


def clip_each(grad_scale, squared_norm, max_grad_norm):
    clip = max_grad_norm / maximum(grad_scale * sqrt(squared_norm), max_grad_norm)


CLIP, CLIP_EACH = join(clip_norm, check_finite), join(clip_each)
# Returns (grad_scale, taken, norm), as they go into the record. `max_grad_norm` is infinite where nothing is clipped;
# `propagate` is 1 to take every step.
clip = function(
    block(
        "def clip(grad_scale, squared_norm, max_grad_norm, largest, propagate):",
        *CLIP.statements,
        "return grad_scale, taken, norm",
    )
)
# The factor on the gradients of one parameter, beside `grad_scale`: exactly 1 up to `max_grad_norm`.
clip_of_one = function(
    block(
        "def clip_of_one(grad_scale, squared_norm, max_grad_norm):",
        *CLIP_EACH.statements,
        "return clip",
    )
)
