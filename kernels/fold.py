"""The host-side fold: every quantity of a step that is the same for all elements, in float64, from an integer step.

The fold is exactly Algorithm 1 of arXiv 1412.6980, with eps after the root of the bias-corrected second moment:

    lr * (m / bias1) / (sqrt(v / bias2) + eps)  =  step_size * m / (sqrt(v) + eps * root2)

where bias1 = 1 - beta1**step, bias2 = 1 - beta2**step, root2 = sqrt(bias2) and step_size = lr * root2 / bias1.

Each fold takes the hyperparameters and returns `scalars(step, grad_scale)`, which gives the scalars of one update in
the order of its text. What does not depend on the step is computed once. `sign` is -1 to ascend instead of descend.
"""

from math import sqrt


def fold(lr, beta1, beta2, eps, weight_decay, sign=1.0):
    """Scalars of `ADAM`; `weight_decay` is decoupled."""
    decay, blend1, blend2 = 1.0 - lr * weight_decay, 1.0 - beta1, 1.0 - beta2

    def scalars(step, grad_scale):
        root2 = sqrt(1.0 - beta2**step)
        return sign * grad_scale, decay, blend1, blend2, lr * root2 / (1.0 - beta1**step), eps * root2

    return scalars


def fold_l2(lr, beta1, beta2, eps, weight_decay, sign=1.0):
    """Scalars of `ADAM_L2`; `weight_decay` is coupled to the gradient."""
    undecayed = fold(lr, beta1, beta2, eps, 0.0, sign)

    def scalars(step, grad_scale):
        grad_scale, *rest = undecayed(step, grad_scale)
        return grad_scale, weight_decay, *rest

    return scalars
