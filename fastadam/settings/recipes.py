"""From the settings of a group and the options of an optimizer to an update text and a row of hyperparameters."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fastadam.kernels.texts import fold
from fastadam.kernels.texts.formats import NATIVE, Storage
from fastadam.kernels.texts.update import Recipe, Update, update_of
from fastadam.settings.options import CONVENTIONS, SMALLEST_FLOAT16_ROOT, Options

# Seeds of flat buffers are integers below this, which every dtype holds exactly.
SEEDS = 2**24
LR = fold.HYPER.index("lr")
STEP = fold.CARRIED.index("step")
MOMENTUM_PRODUCT = fold.CARRIED.index("momentum_product")


def recipe_of(settings: Mapping[str, Any], options: Options, storage: Storage = NATIVE) -> Recipe:
    """What the update of a group is joined from."""
    if not settings.get("amsgrad"):
        storage = replace(storage, v_max="native")
    return Recipe(
        member=options.member,
        convention=options.convention,
        amsgrad=settings.get("amsgrad", False),
        decay=_decay(settings, options),
        eps_root=options.eps_root > 0.0,
        clip_value=options.clip_value is not None,
        ema=options.ema_decay is not None,
        storage=storage,
        zero_grad=options.zero_grad,
        short1=settings["betas"][0] < 0.5,
        short2=settings["betas"][1] < 0.5 and options.member != "adamax",
    )


def _decay(settings, options):
    if settings["decoupled_weight_decay"]:
        return "free" if options.decouple_lr else "decoupled"
    return "coupled" if settings["weight_decay"] > 0.0 else "none"


def hyper_of(settings: Mapping[str, Any], options: Options, lr: float, seed: int = 0) -> list[float]:
    """The row of hyperparameters of a group, in the order of `fold.HYPER`."""
    values = {
        "lr": lr,
        "beta1": settings["betas"][0],
        "beta2": settings["betas"][1],
        "eps": settings["eps"],
        "weight_decay": settings["weight_decay"],
        "sign": -1.0 if settings["maximize"] else 1.0,
        "eps_root": options.eps_root,
        "momentum_decay": settings.get("momentum_decay", 0.0),
        "clip_value": options.clip_value or 0.0,
        "ema_decay": options.ema_decay or 0.0,
        "seed": seed,
    }
    return [values[name] for name in fold.HYPER]


def update_for(
    settings: Mapping[str, Any], options: Options | None = None, storage: Storage = NATIVE
) -> tuple[Update, np.ndarray]:
    """The update of a group with a number for its learning rate, and its row of hyperparameters."""
    options = options or Options("adam")
    hyper = hyper_of(settings, options, settings["lr"], derived_seed(options.seed, 0))
    return update_of(recipe_of(settings, options, storage)), np.array(hyper)


def derived_seed(seed: int, position: int) -> int:
    """The seed of the flat buffers at a position."""
    return int(np.random.SeedSequence([seed, position]).generate_state(1)[0]) % SEEDS


def check_settings(settings: Mapping[str, Any], options: Options) -> None:
    """Raise if the settings of a group contradict the options of the optimizer."""
    if options.decouple_lr and not settings["decoupled_weight_decay"]:
        raise ValueError(
            "`decouple_lr` needs `decoupled_weight_decay`: L2 is a part of the gradient, and so always multiplied by lr"
        )
    if options.moment_dtypes[1] == "float16" and options.member != "adamax":
        check_eps(settings["eps"])
    if settings.get("amsgrad") and options.member != "adam":
        raise ValueError("`amsgrad` must be False for this optimizer, which has none, got True")
    if options.sparse == "exact" and not _is_exactly_sparse(settings, options):
        raise ValueError(
            "`sparse` must be 'lazy' unless the optimizer is Adam, AdamW or NAdam without amsgrad, eps_root, L2 decay, "
            "ema_decay, copy_dtype, and storage in other dtypes, got 'exact'"
        )
    beta1, beta2 = settings["betas"]
    if options.sparse == "exact" and beta1 > 0.999 * beta2**0.5:
        raise ValueError(
            f"`betas` must have beta1 <= 0.999 * sqrt(beta2) with `sparse` 'exact', got {settings['betas']}: what "
            "a row has missed would not fade"
        )
    if settings.get("amsgrad") and not CONVENTIONS[options.convention].amsgrad:
        raise ValueError(f"`amsgrad` must be False with `convention` {options.convention!r}, which has none, got True")


def check_eps(eps: float) -> None:
    """Raise if second moments that float16 cannot hold would leave `eps` alone to divide by."""
    if eps < SMALLEST_FLOAT16_ROOT:
        raise ValueError(
            f"`eps` must be >= {SMALLEST_FLOAT16_ROOT} (2**-12) with second moments in float16, got {eps}: those below "
            "its square become zero. Use bfloat16 for the second moment: `moment_dtype` ('float16', 'bfloat16')"
        )


def _is_exactly_sparse(settings, options):
    """Whether missed steps can be made up for: `fastadam.kernels.texts.catch_up` knows only Adam's own form."""
    recipe = recipe_of(settings, options)
    plain = recipe.member in ("adam", "nadam") and recipe.decay != "coupled"
    return plain and not (recipe.amsgrad or recipe.eps_root or recipe.ema or options.stores_otherwise)
