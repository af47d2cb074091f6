"""What part of Keras' `fit` steps take on torch, with Keras' own optimizers and with ours.

    KERAS_BACKEND=torch python -m fastadam.bench.keras_fit docs/keras.json

saves it for docs/publish.py.
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

NAMES = ("keras.optimizers", "fastadam.keras")
# Title -> inputs, widths of the layers, class, settings, batches.
CASES: dict[str, tuple[int, tuple[int, ...], str, dict[str, Any], int]] = {
    "MLP 3-64-64-1: Adam": (3, (64, 64, 1), "Adam", {}, 500),
    "MLP 3-64-64-1: AdamW, clipped, averaged": (
        3,
        (64, 64, 1),
        "AdamW",
        {"global_clipnorm": 1.0, "use_ema": True},
        500,
    ),
    "MLP of 20 layers of 64: AdamW": (64, (64,) * 20, "AdamW", {}, 200),
    "MLP 784-2048-2048-10: Adam": (784, (2048, 2048, 10), "Adam", {}, 60),
    "MLP 784-2048-2048-10: AdamW, clipped, averaged, loss scaled": (
        784,
        (2048, 2048, 10),
        "AdamW",
        {"global_clipnorm": 1.0, "use_ema": True, "loss_scale_factor": 1024.0},
        60,
    ),
}
BATCH = 32
COLUMNS = ("model and optimizer", "of", "a batch of `fit`", "the step", "its share", "fit, times as fast")


def model_of(inputs: int, widths: tuple[int, ...], optimizer: Any) -> Any:
    """A compiled model, the same one at each call."""
    import keras

    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(width, "relu") for width in widths[:-1]]
    model = keras.Sequential([keras.layers.Input((inputs,)), *layers, keras.layers.Dense(widths[-1])])
    model.compile(optimizer=optimizer, loss="mse")
    return model


def timed(optimizer: Any) -> Any:
    """`optimizer`, whose `apply` adds the seconds that it takes to its `seconds`."""
    apply = optimizer.apply
    optimizer.seconds = 0.0

    def with_clock(*args, **kwargs):
        start = perf_counter()
        try:
            return apply(*args, **kwargs)
        finally:
            optimizer.seconds += perf_counter() - start

    optimizer.apply = with_clock
    return optimizer


def fitted(title: str, name: str, part: float = 1.0) -> tuple[float, float, list[np.ndarray]]:
    """Seconds that a batch of `fit` takes, and its step, after one epoch of warm-up; and the weights."""
    import keras

    import fastadam.keras

    classes = {"keras.optimizers": keras.optimizers, "fastadam.keras": fastadam.keras}
    inputs, widths, kind, settings, batches = CASES[title]
    batches = max(2, round(batches * part))
    optimizer = timed(getattr(classes[name], kind)(**settings))
    model = model_of(inputs, widths, optimizer)
    x = np.random.default_rng(0).normal(size=(batches * BATCH, inputs)).astype(np.float32)
    y = np.tanh(x[:, :1] + x[:, 1:2]) * np.ones(widths[-1], np.float32)
    model.fit(x[:BATCH], y[:BATCH], batch_size=BATCH, shuffle=False, verbose=0)
    optimizer.seconds = 0.0
    start = perf_counter()
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    return (perf_counter() - start) / batches, optimizer.seconds / batches, model.get_weights()


def measured(titles: tuple[str, ...] = tuple(CASES), rounds: int = 5, part: float = 1.0) -> dict[str, dict[str, Any]]:
    """Title -> optimizer -> median seconds of a batch and of its step; the optimizers take turns."""
    results = {}
    for title in titles:
        _compare(title)
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}
        for _ in range(rounds):
            for name in NAMES:
                runs[name].append(fitted(title, name, part)[:2])
        results[title] = {name: [median(column) for column in zip(*each, strict=True)] for name, each in runs.items()}
        print(title, results[title], flush=True)
    return results


def _compare(title):
    """Raise unless both train alike: no time is taken of another result."""
    theirs, ours = (fitted(title, name, part=0.0)[2] for name in NAMES)
    for one, other in zip(ours, theirs, strict=True):
        # Of the whole: where a gradient is next to nothing, its last bit decides on the size of the step.
        assert np.linalg.norm(one - other) <= 1e-2 * np.linalg.norm(other), f"not close: {title}"


def rows(seconds: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    """The rows of a table of what was measured."""
    for title, found in seconds.items():
        first = found[NAMES[0]][0]
        for name, (batch, step) in found.items():
            yield [title, name, duration(batch), duration(step), f"{step / batch:.1%}", f"{first / batch:.2f}"]


def main(path: str) -> None:
    """Save what is measured."""
    results = {"machine": facts(), "seconds": measured()}
    Path(path).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
