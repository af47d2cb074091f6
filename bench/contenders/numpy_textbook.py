"""The NumPy Adam of a textbook: moments in dictionaries, a fresh array for every operation."""

from fastadam.bench.contender import Built, Contender
from fastadam.demo.textbook import TextbookAdam


def build(params, grads, kind):
    optimizer = TextbookAdam()

    def step():
        params.update(optimizer.step(params, grads))

    return Built(step, lambda: params, grads.update)


CONTENDERS = (Contender("NumPy, textbook", build, kinds=("plain", "calls")),)
