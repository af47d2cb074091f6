"""A language model of bytes in NumPy, with 2.4 million parameters: large enough that the optimizer matters.

It reads Python's own documentation, which is on every machine, and predicts the byte that follows 32 others.
"""

from typing import Any

import numpy as np

from fastadam.demo.models import Task

BYTES = 256
CONTEXT, WIDTH, HIDDEN = 32, 64, 1024
# Enough that a step of a textbook's Adam takes a good part of the time, as in models that people train on CPUs.
BATCH = 256
HELD_OUT = 4_096


class ByteModel:
    """An embedding of each of the last 32 bytes, one layer of 1,024 rectified units, and a softmax over the next byte.

    After Bengio et al., "A Neural Probabilistic Language Model", 2003, with bytes for words.
    """

    loss_name = "cross-entropy of held-out bytes"

    def initial(self, rng: np.random.Generator, features: int, outputs: int) -> dict[str, Any]:
        """Starting parameters: `embedding`, `weights1`, `bias1`, `weights2`, `bias2`, weights after He et al."""
        inputs = features * WIDTH
        return {
            "embedding": rng.normal(0.0, 1.0, (outputs, WIDTH)).astype(np.float32),
            "weights1": rng.normal(0.0, np.sqrt(2 / inputs), (inputs, HIDDEN)).astype(np.float32),
            "bias1": np.zeros(HIDDEN, np.float32),
            "weights2": rng.normal(0.0, np.sqrt(1 / HIDDEN), (HIDDEN, outputs)).astype(np.float32),
            "bias2": np.zeros(outputs, np.float32),
        }

    def loss(self, params: dict[str, Any], x: Any, y: Any) -> Any:
        """Mean cross-entropy in nats, for bytes x of shape (n, 32) and the bytes y, shape (n,), that follow them."""
        probabilities = _softmax(self._layers(params, x)[-1])
        return -np.log(probabilities[np.arange(len(y)), y]).mean()

    def gradients(self, params: dict[str, Any], x: Any, y: Any) -> dict[str, Any]:
        """Gradient of `loss` with respect to every parameter, by backpropagation."""
        inputs, hidden, logits = self._layers(params, x)
        at_logits = _softmax(logits)
        at_logits[np.arange(len(y)), y] -= 1
        at_logits /= len(y)
        at_hidden = (at_logits @ params["weights2"].T) * (hidden > 0)
        at_inputs = (at_hidden @ params["weights1"].T).reshape(x.size, WIDTH)
        # Row b of the embedding has the sum over all places where byte b was read.
        read = x.reshape(1, -1) == np.arange(BYTES, dtype=np.uint8)[:, np.newaxis]
        return {
            "embedding": read.astype(at_inputs.dtype) @ at_inputs,
            "weights1": inputs.T @ at_hidden,
            "bias1": at_hidden.sum(axis=0),
            "weights2": hidden.T @ at_logits,
            "bias2": at_logits.sum(axis=0),
        }

    def accuracy(self, params: dict[str, Any], x: Any, y: Any) -> float:
        """Share of bytes that the model holds for the likeliest."""
        return float((self._layers(params, x)[-1].argmax(axis=1) == y).mean())

    def sample(self, params: dict[str, Any], prompt: bytes, length: int, seed: int) -> str:
        """`length` bytes that follow `prompt`, each drawn from the probabilities of the model, sharpened a little."""
        rng, text = np.random.default_rng(seed), list(prompt.rjust(CONTEXT))
        for _ in range(length):
            logits = self._layers(params, np.array([text[-CONTEXT:]], np.uint8))[-1][0]
            text.append(int(rng.choice(BYTES, p=_softmax(logits[np.newaxis].astype(np.float64) / 0.7)[0])))
        return bytes(text[CONTEXT:]).decode(errors="replace")

    def _layers(self, params, x):
        inputs = params["embedding"][x].reshape(len(x), -1)
        hidden = np.maximum(inputs @ params["weights1"] + params["bias1"], 0)
        return inputs, hidden, hidden @ params["weights2"] + params["bias2"]


def _softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def language() -> Task:
    """The bytes of Python's documentation, the last of it held out: the model on random batches."""
    text = documentation()
    windows = np.lib.stride_tricks.sliding_window_view(text, CONTEXT)[:-1]
    following = text[CONTEXT:]
    return Task(
        "2.4 million parameters on Python's documentation",
        ByteModel(),
        windows[: -2 * HELD_OUT],
        following[: -2 * HELD_OUT],
        lr=1e-3,
        epochs=12,
        batch_size=BATCH,
        batches=20,
        test_x=windows[-HELD_OUT:],
        test_y=following[-HELD_OUT:],
        outputs=BYTES,
        loss_is_held_out=True,
    )


def documentation() -> np.ndarray:
    """The text that `help("topics")` shows, as bytes: some 700,000, uint8."""
    from pydoc_data.topics import topics

    return np.frombuffer("\n\n".join(topics[name] for name in sorted(topics)).encode(), np.uint8)
