"""What the study of storage formats trains: a classifier of digits, and a small language model of characters."""

import pydoc_data.topics
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastadam.demo.models import digits

CHARACTERS = 1_000_000
CONTEXT, EMBEDDING, HIDDEN = 16, 32, 512


class Problem(NamedTuple):
    """A training problem.

    Attributes:
        name: For titles.
        initial: `initial(rng)` gives starting parameters, float32.
        batch: `batch(rng)` draws inputs and targets.
        gradients: `gradients(params, x, y)` gives the loss and its gradients; parameters are float32.
        held_out: Inputs and targets of the loss that is reported.
        lr: Peak learning rate; it falls to a hundredth along a cosine.
    """

    name: str
    initial: Callable[[np.random.Generator], dict[str, np.ndarray]]
    batch: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]
    gradients: Callable[[dict[str, np.ndarray], Any, Any], tuple[float, dict[str, np.ndarray]]]
    held_out: tuple[np.ndarray, np.ndarray]
    lr: float


def digits_problem() -> Problem:
    """The classifier of the demo, on mini-batches of scikit-learn's digits."""
    task = digits(seed=0)
    model = task.model

    def batch(rng):
        rows = rng.integers(0, len(task.x), 128)
        return task.x[rows], task.y[rows]

    def gradients(params, x, y):
        return float(model.loss(params, x, y)), model.gradients(params, x, y)

    def initial(rng):
        return model.initial(rng, task.x.shape[1], task.y.shape[1])

    return Problem("digits classifier", initial, batch, gradients, (task.test_x, task.test_y), lr=3e-3)


def text() -> str:
    """Real text that every Python has: its reference documentation, and the sources of its standard library."""
    parts = [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)]
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        parts.append(path.read_text(encoding="utf-8", errors="replace"))
        if sum(map(len, parts)) > CHARACTERS:
            break
    return "\n".join(parts)[:CHARACTERS]


def characters_problem() -> Problem:
    """The next character after 16: embeddings, a hidden layer of 512 and a softmax (Bengio et al., JMLR 3, 2003)."""
    codes = np.clip(np.frombuffer(text().encode("ascii", "replace"), np.uint8), 31, 127).astype(np.int64) - 31
    assert codes.size >= 500_000
    vocabulary, split = 97, codes.size * 19 // 20

    def initial(rng):
        def weights(inputs, outputs):
            return (rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)).astype(np.float32)

        return {
            "embedding": 0.1 * rng.standard_normal((vocabulary, EMBEDDING), np.float32),
            "hidden": weights(CONTEXT * EMBEDDING, HIDDEN),
            "hidden_bias": np.zeros(HIDDEN, np.float32),
            "output": weights(HIDDEN, vocabulary),
            "output_bias": np.zeros(vocabulary, np.float32),
        }

    def windows(ends):
        return codes[ends[:, None] - np.arange(CONTEXT, 0, -1)], codes[ends]

    def batch(rng):
        return windows(rng.integers(CONTEXT, split, 128))

    held_out = windows(np.arange(split + CONTEXT, codes.size, 7))
    return Problem("language model of characters", initial, batch, _character_gradients, held_out, lr=3e-3)


def _character_gradients(params, x, y):
    count = len(y)
    embedded = params["embedding"][x].reshape(count, -1)
    hidden = np.maximum(embedded @ params["hidden"] + params["hidden_bias"], 0)
    logits = hidden @ params["output"] + params["output_bias"]
    logits -= logits.max(axis=1, keepdims=True)
    likelihoods = np.exp(logits)
    totals = likelihoods.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(totals[:, 0]) - logits[np.arange(count), y]))
    d_logits = likelihoods / totals
    d_logits[np.arange(count), y] -= 1
    d_logits /= count
    d_hidden = (d_logits @ params["output"].T) * (hidden > 0)
    d_embedding = np.zeros_like(params["embedding"])
    np.add.at(d_embedding, x, (d_hidden @ params["hidden"].T).reshape(count, CONTEXT, EMBEDDING))
    return loss, {
        "embedding": d_embedding,
        "hidden": embedded.T @ d_hidden,
        "hidden_bias": d_hidden.sum(axis=0),
        "output": hidden.T @ d_logits,
        "output_bias": d_logits.sum(axis=0),
    }
