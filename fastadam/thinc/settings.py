"""The settings of Thinc's Adam as a recipe and its hyperparameters."""

from typing import NamedTuple

import numpy as np

from fastadam.kernels.texts.members import MEMBERS
from fastadam.kernels.texts.update import Recipe, update_of
from fastadam.settings.checks import flag, fraction, nonnegative

# Thinc's average forgets by min((1 + t) / (10 + t), MAX_DECAY) at step t.
MAX_DECAY = 0.9999


class Settings(NamedTuple):
    """What holds for a call of the optimizer.

    Attributes:
        recipe: Of the update.
        hyper: float64: the hyperparameters, in the order of the update's.
        l2: What of the parameters is added to the gradient before it is clipped; 0 if the decay is decoupled.
        grad_clip: The limit of the norm of the gradient, 0 for none.
    """

    recipe: Recipe
    hyper: np.ndarray
    l2: float
    grad_clip: float


def settings_of(
    learn_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    l2: float,
    grad_clip: float,
    l2_is_weight_decay: bool,
    averages: bool,
    lr_scale: float,
) -> Settings:
    """The settings, checked."""
    betas = fraction(beta1, "beta1"), fraction(beta2, "beta2")
    lr = nonnegative(learn_rate, "learn_rate") * nonnegative(lr_scale, "lr_scale")
    l2, grad_clip = nonnegative(l2, "L2"), nonnegative(grad_clip, "grad_clip")
    decays = flag(l2_is_weight_decay, "L2_is_weight_decay") and l2 > 0.0
    # Thinc's decay comes after the step and shrinks it too: w' = (w - step) * (1 - lr * L2).
    decay = lr * l2 if decays else 0.0
    recipe = Recipe(
        convention="sklearn",  # eps is added to the root of the uncorrected moment
        decay="free" if decays else "none",
        clip_norm=grad_clip > 0.0,
        ema=averages,
        ema_warmup=averages,
        zero_grad=True,
        small_betas=MEMBERS["adam"].small(betas),
    )
    values = {
        "lr": lr * (1.0 - decay),
        "beta1": betas[0],
        "beta2": betas[1],
        "eps": nonnegative(eps, "eps"),
        "weight_decay": decay,
        "sign": 1.0,
        "ema_decay": MAX_DECAY,
        "clip": 1.0,
    }
    hyper = np.array([values.get(name, 0.0) for name in update_of(recipe).hyper])
    return Settings(recipe, hyper, 0.0 if decays else l2, grad_clip)
