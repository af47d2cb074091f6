"""What part of training a text classifier of Thinc the optimizer takes, with Thinc's own Adam and with ours.

    python -m fastadam.bench.thinc_classifier docs/thinc.json

saves it for docs/publish.py. It needs Thinc, which `make test-hosts` installs into .venv-hosts. Words of a text are
drawn at random, more of some for each class; their vectors are averaged, and go through two layers. Ours takes all
threads, as it does by default, and Thinc's one.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from fastadam.bench.machine import facts
from fastadam.bench.tables import duration

# Rows of the table of word vectors -> their width.
SIZES = {2_000: 96, 20_000: 128, 100_000: 300}
# Steps after which weights are compared: training carries differences of rounding on, and they grow.
CHECKED = 10
STEPS, BATCH, WORDS, HIDDEN, CLASSES = 100, 32, 40, 256, 4
COLUMNS = ("table", "optimizer", "whole run", "calls of the optimizer", "their share", "calls, times as fast")


def optimizers() -> dict[str, Any]:
    """Name -> class."""
    from thinc.api import Adam

    import fastadam.thinc

    return {"thinc": Adam, "fastadam.thinc": fastadam.thinc.Adam}


def classifier(rows: int, width: int) -> Any:
    """A model of word numbers, with the same weights at each call."""
    from thinc.api import Embed, Relu, Softmax, chain, fix_random_seed, list2ragged, reduce_mean, with_array

    fix_random_seed(0)
    vectors = chain(list2ragged(), with_array(Embed(width, rows, column=0)), reduce_mean())
    model = chain(vectors, Relu(HIDDEN, width), Softmax(CLASSES, HIDDEN))
    return model.initialize()


def batches(rows: int, steps: int) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """Texts and their classes, as rows of the identity."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        classes = rng.integers(0, CLASSES, BATCH)
        texts = [
            np.where(rng.random(WORDS) < 0.2, rng.integers(0, 50, WORDS) * CLASSES + each, rng.integers(0, rows, WORDS))
            for each in classes
        ]
        yield [text.astype(np.int64).reshape(-1, 1) for text in texts], np.eye(CLASSES, dtype=np.float32)[classes]


def trained(make: Any, rows: int, width: int, steps: int) -> tuple[float, float, Any]:
    """Seconds of a whole run and of the calls of its optimizer, and the model."""
    model, optimizer, spent = classifier(rows, width), make(0.001), 0.0
    data = list(batches(rows, steps))

    def timed(key, weights, gradient):
        nonlocal spent
        start = perf_counter()
        try:
            return optimizer(key, weights, gradient)
        finally:
            spent += perf_counter() - start

    start = perf_counter()
    for texts, targets in data:
        outputs, backprop = model.begin_update(texts)
        backprop((outputs - targets) / BATCH)
        model.finish_update(timed)
        optimizer.step_schedules()
    return perf_counter() - start, spent, model


def measured(rounds: int = 3, steps: int = STEPS) -> dict[str, dict[str, list[float]]]:
    """Table -> optimizer -> median seconds of the run and of the calls; the optimizers take turns."""
    results = {}
    for rows, width in SIZES.items():
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in optimizers()}
        # This compiles, too.
        _check_alike([trained(make, rows, width, CHECKED)[2] for make in optimizers().values()])
        for _ in range(rounds):
            for name, make in optimizers().items():
                runs[name].append(trained(make, rows, width, steps)[:2])
        title = f"{rows:,} x {width}"
        results[title] = {name: [median(column) for column in zip(*each, strict=True)] for name, each in runs.items()}
        print(title, results[title], flush=True)
    return results


def _check_alike(models):
    """Raise unless two models have the same weights to rounding."""
    for node, other in zip(*(model.walk() for model in models), strict=True):
        for name in node.param_names:
            np.testing.assert_allclose(node.get_param(name), other.get_param(name), rtol=1e-5, atol=1e-6)


def rows(seconds: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    """The rows of a table of what was measured."""
    for title, found in seconds.items():
        first = found["thinc"][1]
        for name, (run, calls) in found.items():
            yield [title, name, duration(run), duration(calls), f"{calls / run:.1%}", f"{first / calls:.2f}"]


def main(path: str) -> None:
    """Save what is measured."""
    results = {"machine": facts(), "seconds": measured()}
    Path(path).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
