"""fastadam with a group and a learning rate for each tensor, and with rates that are assigned before each step."""

from functools import partial
from itertools import cycle

from fastadam.bench.contender import WEIGHT_DECAY, Built, Contender, Formula, rate
from fastadam.bench.contenders.fastadam_adam import fill, packed


def build(params, grads, kind, assigned=False):
    # Nobody else holds the arrays that are packed.
    entries = [{name: params.pop(name)} for name in list(params)]
    rates = [rate(index) for index in range(len(entries))]
    turns = cycle([rates])
    groups = [{"params": entry, "lr": lr} for entry, lr in zip(entries, rates, strict=True)]
    optimizer = fill(packed(groups, "AdamW", weight_decay=WEIGHT_DECAY), grads)

    def step():
        for group, lr in zip(optimizer.param_groups, next(turns), strict=True):
            group["lr"] = lr
        optimizer.step()

    def settle():
        nonlocal turns
        # Each step has other rates than the one before.
        turns = cycle([[2 * lr for lr in rates], rates])

    def values():
        return {name: p for entry in entries for name, p in entry.items()}

    return Built(step if assigned else optimizer.step, values, partial(fill, optimizer), settle=settle)


def _one_group(params, grads, kind):
    optimizer = fill(packed(params, "AdamW", weight_decay=WEIGHT_DECAY), grads)
    return Built(optimizer.step, lambda: params, partial(fill, optimizer))


_RATES = Formula("AdamW", rates=True)
CONTENDERS = (
    Contender("fastadam, one group", _one_group, kinds=("groups",), formula=Formula("AdamW")),
    Contender("fastadam, a group each", build, kinds=("groups",), formula=_RATES),
    Contender("fastadam, rates assigned", partial(build, assigned=True), kinds=("groups",), formula=_RATES),
)
