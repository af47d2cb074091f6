"""fastadam with one thing more in the step: the members of the family, and each part of a training loop."""

from functools import partial

from fastadam.bench.contender import (
    CLIP_VALUE,
    EMA_DECAY,
    LR,
    MAX_NORM,
    WEIGHT_DECAY,
    Built,
    Contender,
    Formula,
    with_averages,
)
from fastadam.bench.contenders.fastadam_adam import fill, packed


def build(params, grads, kind, member="Adam", **options):
    """`step()` on gradients in `opt.grads`, which are restored if it zeroes them."""
    optimizer = fill(packed(params, member, lr=LR, **options), grads)

    def values():
        return with_averages(params, dict(optimizer.ema)) if "ema_decay" in options else params

    feed = partial(fill, optimizer)
    return Built(optimizer.step, values, feed, partial(feed, grads) if "zero_grad" in options else None)


def _contender(name, formula, layout="float32", steps=3, **options):
    return Contender(
        f"fastadam, {name}", partial(build, **options), (), ("extras",), layout, formula=formula, steps=steps
    )


_ADAM, _CLIPPED = Formula(), Formula(clip_norm=True)
CONTENDERS = (
    _contender("AdamW", Formula("AdamW"), member="AdamW", weight_decay=WEIGHT_DECAY),
    _contender("NAdam", Formula("NAdam"), member="NAdam"),
    _contender("Adamax", Formula("Adamax"), member="Adamax"),
    # RAdam takes a root from its sixth step on.
    _contender("RAdam", Formula("RAdam"), member="RAdam", steps=7),
    _contender("AMSGrad", Formula("AMSGrad"), "one buffer more", amsgrad=True),
    _contender("clip by value", Formula(clip_value=True), clip_value=CLIP_VALUE),
    _contender("zero the gradients", _ADAM, "g zeroed", zero_grad=True),
    _contender("bfloat16 copy of p", _ADAM, "16-bit copy", copy_dtype="bfloat16"),
    _contender("float16 copy of p", _ADAM, "16-bit copy", copy_dtype="float16"),
    _contender("average of p", Formula(average=True), "one buffer more", ema_decay=EMA_DECAY),
    _contender("clip by norm", _CLIPPED, "g twice", max_grad_norm=MAX_NORM),
    _contender("finite check", _ADAM, "g twice", nonfinite="skip"),
    _contender("clip by norm, finite check", _CLIPPED, "g twice", max_grad_norm=MAX_NORM, nonfinite="skip"),
    _contender(
        "all of it, AdamW",
        Formula("AdamW", clip_norm=True, average=True),
        "all",
        member="AdamW",
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_NORM,
        nonfinite="skip",
        ema_decay=EMA_DECAY,
        copy_dtype="bfloat16",
        zero_grad=True,
    ),
)
