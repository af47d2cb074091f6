"""fastadam: gradients in a mapping or written where it keeps them, every kind of step, on fewer threads."""

from functools import partial

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


def fill(optimizer, grads):
    """`optimizer`, with gradients written where it keeps them."""
    for name, grad in grads.items():
        optimizer.grads[name] = grad.astype(optimizer.grads[name].dtype, copy=False)
    return optimizer


def of_mapping(params, grads, kind):
    """`step(grads)` with a mapping of separately allocated gradients."""
    optimizer = fastadam.Adam(params)
    return Built(lambda: optimizer.step(grads), lambda: params, grads.update)


def full_step(params, **options):
    """The optimizer that does all of a full step, and its step."""
    optimizer = fastadam.AdamW(
        params,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_NORM,
        nonfinite="skip",
        ema_decay=EMA_DECAY,
        zero_grad=True,
        **options,
    )
    return optimizer, partial(optimizer.step, grad_scale=SCALE)


def written(params, grads, kind):
    """`step()` with gradients that have been written into `grads`."""
    if kind == "full":
        optimizer, step = full_step(params)
        feed = partial(fill, fill(optimizer, grads))
        return Built(step, lambda: with_averages(params, dict(optimizer.ema)), feed, partial(feed, grads))
    optimizer = fill(fastadam.Adam(params, max_grad_norm=MAX_NORM if kind == "clip" else None), grads)
    return Built(optimizer.step, lambda: params, partial(fill, optimizer))


def on_threads(params, grads, kind, threads):
    """`written`, on fewer threads than there are."""
    import numba

    # This contender and its limit have a process for themselves.
    numba.set_num_threads(threads)
    return written(params, grads, kind)


CONTENDERS = (
    Contender("fastadam, step(grads)", of_mapping),
    Contender("fastadam", written, kinds=("plain", "clip", "full", "extras")),
    *(
        Contender(f"fastadam, {counted(count)}", partial(on_threads, threads=count), thread_count=count)
        for count in fewer_threads()
    ),
)
