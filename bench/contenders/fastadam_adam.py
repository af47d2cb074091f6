"""fastadam: packed or where arrays lie, gradients in a mapping or written where it keeps them, on fewer threads."""

from collections.abc import Callable
from functools import partial
from typing import Any

import fastadam
from fastadam.bench.contender import (
    EMA_DECAY,
    MAX_NORM,
    SCALE,
    WEIGHT_DECAY,
    Built,
    Contender,
    counted,
    fewer_threads,
    with_averages,
)

ALL = ("plain", "clip", "full")


def packed(params, member: str = "Adam", **options: Any) -> Any:
    """The optimizer of a class that packs its parameters into flat buffers."""
    return getattr(fastadam, member)(params, flat=True, **options)


def lying(params, member: str = "Adam", **options: Any) -> Any:
    """The optimizer of a class that leaves its parameters where they lie."""
    return getattr(fastadam, member)(params, **options)


def fill(optimizer, grads):
    """`optimizer`, with gradients written where it keeps them."""
    for name, grad in grads.items():
        optimizer.grads[name] = grad.astype(optimizer.grads[name].dtype, copy=False)
    return optimizer


def of_mapping(params, grads, kind, make: Callable = packed):
    """`step(grads)` with a mapping of separately allocated gradients."""
    optimizer = make(params)
    return Built(lambda: optimizer.step(grads), lambda: params, grads.update)


def full_step(params, make: Callable = packed, **options):
    """The optimizer that does all of a full step, and its step."""
    more = {"max_grad_norm": MAX_NORM, "nonfinite": "skip", "ema_decay": EMA_DECAY, "zero_grad": True}
    optimizer = make(params, "AdamW", weight_decay=WEIGHT_DECAY, **more, **options)
    return optimizer, partial(optimizer.step, grad_scale=SCALE)


def written(params, grads, kind, make: Callable = packed):
    """`step()` with gradients that have been written into `grads`."""
    if kind == "full":
        optimizer, step = full_step(params, make)
        feed = partial(fill, fill(optimizer, grads))
        return Built(step, lambda: with_averages(params, dict(optimizer.ema)), feed, partial(feed, grads))
    optimizer = fill(make(params, max_grad_norm=MAX_NORM if kind == "clip" else None), grads)
    return Built(optimizer.step, lambda: params, partial(fill, optimizer))


def on_threads(params, grads, kind, threads):
    """`written`, on fewer threads than there are."""
    import numba

    # This contender and its limit have a process for themselves.
    numba.set_num_threads(threads)
    return written(params, grads, kind)


CONTENDERS = (
    Contender("fastadam, step(grads)", of_mapping, kinds=("plain", "calls")),
    Contender("fastadam", written, kinds=(*ALL, "extras", "calls", "rows")),
    Contender("fastadam, where they lie, step(grads)", partial(of_mapping, make=lying), kinds=("plain", "calls")),
    Contender("fastadam, where they lie", partial(written, make=lying), kinds=(*ALL, "calls")),
    *(
        Contender(f"fastadam, {counted(count)}", partial(on_threads, threads=count), thread_count=count)
        for count in fewer_threads()
    ),
)
