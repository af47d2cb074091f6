"""From the settings of a group and the options of an optimizer to an update text and the hyperparameters of a clock."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastadam.kernels.texts.formats import NATIVE, Formats
from fastadam.kernels.texts.member import SHARED_HYPER
from fastadam.kernels.texts.update import Recipe
from fastadam.settings.options import SMALLEST_FLOAT16_ROOT, Options

# Columns of the tables of hyperparameters, and of what clocks carry.
LR = SHARED_HYPER.index("lr")
STEP = 0


def recipe_of(
    settings: Mapping[str, Any], options: Options, formats: Formats = NATIVE, *, decays: bool = True
) -> Recipe:
    """The recipe for the update of a group's parameters; `decays` says whether weight decay applies to them."""
    return Recipe(
        member=options.member,
        convention=options.convention,
        amsgrad=settings.get("amsgrad", False),
        decay=_decay(settings, options, decays),
        eps_root=options.eps_root > 0.0,
        clip_value=options.clip_value is not None,
        clip_norm=options.max_grad_norm_per_param is not None,
        ema=options.ema_decay is not None,
        ema_warmup=options.ema_warmup,
        zero_grad=options.zero_grad,
        small_betas=options.family_member.small(settings["betas"]),
        storage=formats,
    )


def _decay(settings, options, decays):
    if settings["decoupled_weight_decay"]:
        return "free" if options.decouple_lr else "decoupled"
    return "coupled" if decays and settings["weight_decay"] > 0.0 else "none"


def hyper_of(
    settings: Mapping[str, Any], options: Options, names: Sequence[str], lr: float, *, decays: bool = True
) -> list[float]:
    """The hyperparameters of a clock, in the order of `names`."""
    values = {
        **{name: settings[name] for name in options.family_member.hyper},
        **{f"beta{number}": beta for number, beta in enumerate(settings["betas"], 1)},
        "lr": lr,
        "eps": settings.get("eps", 0.0),
        "weight_decay": settings["weight_decay"] if decays else 0.0,
        "sign": -1.0 if settings["maximize"] else 1.0,
        "eps_root": options.eps_root,
        "clip_value": options.clip_value or 0.0,
        "ema_decay": options.ema_decay or 0.0,
        "clip": 1.0,
    }
    return [values[name] for name in names]


def check_together(settings: Mapping[str, Any], options: Options, formats: Iterable[Formats] = ()) -> None:
    """Raise if the settings of a group, the options of the optimizer and the formats do not go together."""
    if options.decouple_lr and not settings["decoupled_weight_decay"]:
        raise ValueError(
            "`decouple_lr` needs `decoupled_weight_decay`: L2 is a part of the gradient, and so always multiplied by lr"
        )
    if settings.get("amsgrad") and not options.preset.amsgrad:
        raise ValueError(
            f"`amsgrad` must be False for this optimizer with `convention` {options.convention!r}, which has none, "
            "got True"
        )
    formats = list(formats)
    if options.family_member.has_root and any(each["v"] == "float16" for each in formats):
        check_eps(settings["eps"])
    if options.sparse == "exact":
        _check_exact(settings, options, formats)


def check_eps(eps: float) -> None:
    """Raise if second moments that float16 cannot hold would leave `eps` alone to divide by."""
    if eps < SMALLEST_FLOAT16_ROOT:
        raise ValueError(
            f"`eps` must be >= {SMALLEST_FLOAT16_ROOT} (2**-12) with second moments in float16, got {eps}: those below "
            "its square become zero. Use bfloat16 for the second moment: `moment_dtype` ('float16', 'bfloat16')"
        )


def _check_exact(settings, options, formats):
    """Raise unless missed steps can be made up for: `fastadam.kernels.texts.catch_up` knows only Adam's own form."""
    recipe = recipe_of(settings, options)
    beside = recipe.amsgrad or recipe.eps_root or recipe.ema or options.stores_otherwise
    plain = options.family_member.exact_rows and recipe.decay != "coupled"
    if not plain or beside or any(each != NATIVE for each in formats):
        raise ValueError(
            "`sparse` must be 'lazy' unless the optimizer is Adam, AdamW or NAdam without amsgrad, eps_root, L2 decay, "
            "ema_decay, copy_dtype, and storage in other dtypes than that of the arithmetic, got 'exact'"
        )
    beta1, beta2 = settings["betas"]
    if beta1 > 0.999 * beta2**0.5:
        raise ValueError(
            f"`betas` must have beta1 <= 0.999 * sqrt(beta2) with `sparse` 'exact', got {settings['betas']}: what "
            "a row has missed would not fade"
        )
