"""A language model of bytes in NumPy, with millions of parameters: large enough that the optimizer matters.

It reads Python's own documentation, which comes with Python, and predicts the byte that follows eight others.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastadam.demo.models import Model, Task

BYTES = 256
CONTEXT = 8
LEARNING_RATE = 1e-3
# What gradients and steps cost. Both grow with the parameters, of which WIDTH and HIDDEN make 4.8 million: the step
# must reach main memory. Gradients alone grow with BATCH. As many rows as make the gradients as slow as the textbook's
# step show what a faster step is worth; with thousands of rows no optimizer would matter.
WIDTH, HIDDEN, BATCH = 256, 2048, 128
# The optimizers take turns of so many batches, since each finds its arrays out of the cache after a turn of another.
TURNS, BATCHES_IN_TURN = 10, 16
# At the end of the text: bytes that no batch has, and of how many of them the loss is noted.
HELD_OUT_BYTES, HELD_OUT = 16_384, 1_024


@dataclass(frozen=True)
class ByteModel(Model):
    """An embedding of each byte that is read, one layer of rectified units, and a softmax over the next byte.

    Attributes:
        width: Numbers in the embedding of a byte.
        hidden: Rectified units.

    References:
        Bengio et al., "A Neural Probabilistic Language Model", 2003, with bytes for words.
    """

    width: int = WIDTH
    hidden: int = HIDDEN
    loss_name = "cross-entropy of held-out bytes"

    def initial(self, rng: np.random.Generator, features: int, outputs: int) -> dict[str, Any]:
        """Starting parameters to read `features` bytes: `embedding`, `weights1`, `bias1`, `weights2` and `bias2`."""
        inputs = features * self.width

        def normal(deviation, *shape):
            return np.float32(deviation) * rng.standard_normal(shape, np.float32)

        return {
            "embedding": normal(1.0, BYTES, self.width),
            "weights1": normal(np.sqrt(2 / inputs), inputs, self.hidden),
            "bias1": np.zeros(self.hidden, np.float32),
            "weights2": normal(np.sqrt(1 / self.hidden), self.hidden, BYTES),
            "bias2": np.zeros(BYTES, np.float32),
        }

    def loss(self, params: dict[str, Any], x: np.ndarray, y: np.ndarray) -> Any:
        """Mean cross-entropy in nats, for bytes x of shape (n, features) and the bytes y, shape (n,), that follow."""
        probabilities = _softmax(self._layers(params, x)[-1])
        return -np.log(probabilities[np.arange(len(y)), y]).mean()

    def write_gradients(self, params: dict[str, Any], x: np.ndarray, y: np.ndarray, out: dict[str, Any]) -> None:
        """Gradient of `loss` with respect to every parameter, by backpropagation."""
        inputs, hidden, logits = self._layers(params, x)
        at_logits = _softmax(logits)
        at_logits[np.arange(len(y)), y] -= 1
        at_logits /= len(y)
        np.matmul(hidden.T, at_logits, out=out["weights2"])
        np.sum(at_logits, axis=0, out=out["bias2"])
        at_hidden = at_logits @ params["weights2"].T
        at_hidden *= hidden > 0
        np.matmul(inputs.T, at_hidden, out=out["weights1"])
        np.sum(at_hidden, axis=0, out=out["bias1"])
        at_inputs = (at_hidden @ params["weights1"].T).reshape(x.size, self.width)
        # Row b of the embedding has the sum over all places where byte b was read.
        is_read = x.reshape(1, -1) == np.arange(BYTES, dtype=np.uint8)[:, np.newaxis]
        np.matmul(is_read.astype(at_inputs.dtype), at_inputs, out=out["embedding"])

    def accuracy(self, params: dict[str, Any], x: np.ndarray, y: np.ndarray) -> float:
        """Share of bytes that the model holds for the likeliest."""
        return float((self._layers(params, x)[-1].argmax(axis=1) == y).mean())

    def sample(self, params: dict[str, Any], prompt: bytes, length: int, seed: int) -> str:
        """`length` bytes that follow `prompt`, drawn by the squares of the model's probabilities."""
        context = len(params["weights1"]) // self.width
        rng, text = np.random.default_rng(seed), list(prompt.rjust(context))
        for _ in range(length):
            logits = self._layers(params, np.array([text[-context:]], np.uint8))[-1]
            text.append(int(rng.choice(BYTES, p=_softmax(2 * logits.astype(np.float64))[0])))
        return bytes(text[-length:]).decode(errors="replace")

    def _layers(self, params, x):
        inputs = params["embedding"][x].reshape(len(x), -1)
        hidden = inputs @ params["weights1"]
        hidden += params["bias1"]
        np.maximum(hidden, 0, out=hidden)
        logits = hidden @ params["weights2"]
        logits += params["bias2"]
        return inputs, hidden, logits


def _softmax(logits):
    """The softmax of each row, in the place of `logits`."""
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


def language() -> Task:
    """The bytes of Python's documentation, its end held out: the model on random batches.

    Raises:
        ModuleNotFoundError: This Python has no documentation.
    """
    text = documentation()
    x, y = _windows(text[:-HELD_OUT_BYTES])
    test_x, test_y = _windows(text[-HELD_OUT_BYTES:])
    judged = np.linspace(0, len(test_y) - 1, HELD_OUT).astype(int)
    return Task(
        "Language model of bytes",
        ByteModel(),
        x,
        y,
        lr=LEARNING_RATE,
        epochs=TURNS,
        batch_size=BATCH,
        batches=BATCHES_IN_TURN,
        test_x=test_x[judged],
        test_y=test_y[judged],
        loss_is_held_out=True,
    )


def documentation() -> np.ndarray:
    """The texts that `help("topics")` lists, in the order of their names, as bytes, uint8.

    Line breaks and runs of spaces are single spaces: else they are what a model learns first.
    """
    from pydoc_data.topics import topics

    words = (word for name in sorted(topics) for word in topics[name].split())
    return np.frombuffer(" ".join(words).encode(), np.uint8)


def _windows(text):
    """Each run of CONTEXT bytes of `text`, shape (n, CONTEXT), and the byte after each, shape (n,)."""
    return np.lib.stride_tricks.sliding_window_view(text[:-1], CONTEXT), text[CONTEXT:]
