"""Online learning: one step for each reading of a stream that drifts and is sometimes broken.

    python examples/online_learning.py    predict 6,000 readings before their labels are known, and learn from each

Each reading is seen once: it is predicted, then its label comes, then one step is taken. What it takes:

- gradients that are written into `opt.grads`, where a step without arguments reads them;
- `nonfinite="skip"`, since sensors fail: a gradient with NaN leaves parameters, moments and the count of steps alone;
- a second moment that forgets, `betas=(0.9, 0.99)`, because what is right changes;
- a file to go on from: `save` after any step, `load` in the next process, and the bits are those of one process.
"""

import tempfile
from pathlib import Path

import numpy as np

import fastadam

READINGS, SENSORS, BROKEN = 6_000, 8, 0.02


def stream(seed=0):
    """Readings, float32 [SENSORS], some with a NaN, and labels: the boundary between them turns once around."""
    rng = np.random.default_rng(seed)
    for number in range(READINGS):
        turn = 2 * np.pi * number / READINGS
        reading = rng.standard_normal(SENSORS).astype(np.float32)
        label = float(np.cos(turn) * reading[0] + np.sin(turn) * reading[1] > 0)
        if rng.random() < BROKEN:
            reading[rng.integers(SENSORS)] = np.nan
        yield reading, label


class OnlineClassifier:
    """Logistic regression that learns from each reading."""

    def __init__(self, lr=0.05):
        self.params = {"weights": np.zeros(SENSORS, np.float32), "bias": np.zeros((), np.float32)}
        self.opt = fastadam.AdamW(self.params, lr, betas=(0.9, 0.99), weight_decay=0.01, nonfinite="skip")

    def probability(self, reading):
        return 1 / (1 + np.exp(-(self.params["weights"] @ reading + self.params["bias"])))

    def learn(self, reading, label):
        error = self.probability(reading) - label
        self.opt.grads["weights"] = error * reading
        self.opt.grads["bias"] = error
        self.opt.step()


def learn(model, readings):
    """Predict each reading, then learn from it; return which predictions were right, of those that could be made."""
    right = []
    for reading, label in readings:
        if np.isfinite(reading).all():
            right.append((model.probability(reading) > 0.5) == label)
        model.learn(reading, label)
    return right


def main():
    readings = list(stream())
    half = READINGS // 2
    model = OnlineClassifier()
    first = learn(model, readings[:half])
    then = {name: p.copy() for name, p in model.params.items()}
    with tempfile.TemporaryDirectory() as folder:
        model.opt.save(Path(folder, "online.safetensors"))
        model = OnlineClassifier()  # in another process, say
        model.opt.load(Path(folder, "online.safetensors"))
    second = learn(model, readings[half:])
    print(f"right before the label was known: {np.mean(first):.1%}, and after a restart {np.mean(second):.1%}")
    print(f"broken readings, whose steps were skipped: {model.opt.skipped_steps} of {READINGS}")
    stopped = OnlineClassifier()
    stopped.params["weights"][...], stopped.params["bias"][...] = then["weights"], then["bias"]
    later = [(stopped.probability(r) > 0.5) == label for r, label in readings[half:] if np.isfinite(r).all()]
    print(f"a model that learned nothing after the restart: {np.mean(later):.1%}")


if __name__ == "__main__":
    main()
