"""What the demo trains: two small models with hand-written gradients, and the data sets for them.

A model is a loss over a dictionary of parameters, and the gradient of that loss as a dictionary with the same names.
They are written with array operators and NumPy functions that dispatch to CuPy, so that one text runs on both.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from sklearn.datasets import load_diabetes, load_digits
from sklearn.model_selection import train_test_split


class Model(ABC):
    """A loss over parameters, its gradient, and parameters to start from."""

    loss_name: str

    @abstractmethod
    def initial(self, rng: np.random.Generator, features: int, outputs: int) -> dict[str, Any]:
        """Starting parameters for that many columns of x and of y, float32."""

    @abstractmethod
    def loss(self, params: dict[str, Any], x: Any, y: Any) -> Any:
        """The mean loss of a batch."""

    @abstractmethod
    def write_gradients(self, params: dict[str, Any], x: Any, y: Any, out: dict[str, Any]) -> None:
        """Write the gradient of `loss` with respect to every parameter into `out`: name -> array of its shape."""

    def gradients(self, params: dict[str, Any], x: Any, y: Any) -> dict[str, Any]:
        """The gradient of `loss` with respect to every parameter, in new arrays."""
        out = {name: p.copy() for name, p in params.items()}
        self.write_gradients(params, x, y, out)
        return out

    def accuracy(self, params: dict[str, Any], x: Any, y: Any) -> float:
        """Share of rows for which the model's first choice is the right one."""
        raise NotImplementedError(f"{type(self).__name__} makes no choice")


class LinearRegression(Model):
    """Predictions x @ weights + bias, trained on their mean squared error."""

    loss_name = "mean squared error"

    def initial(self, rng: np.random.Generator, features: int, outputs: int) -> dict[str, Any]:
        """Starting parameters: `weights`, shape (features,), and `bias`, 0-d."""
        return {"weights": rng.normal(0.0, 0.1, features).astype(np.float32), "bias": np.zeros((), np.float32)}

    def loss(self, params: dict[str, Any], x: Any, y: Any) -> Any:
        """Mean of (x @ weights + bias - y)**2, for x of shape (n, features) and y of shape (n,)."""
        return (self._error(params, x, y) ** 2).mean()

    def write_gradients(self, params: dict[str, Any], x: Any, y: Any, out: dict[str, Any]) -> None:
        """Gradient of `loss` with respect to `weights` and `bias`."""
        error = self._error(params, x, y)
        out["weights"][...] = 2 * (x.T @ error) / len(x)
        out["bias"][...] = 2 * error.mean()

    def _error(self, params, x, y):
        return x @ params["weights"] + params["bias"] - y


class Classifier(Model):
    """Two hidden layers of 64 rectified units and a softmax, trained on the cross-entropy."""

    loss_name = "cross-entropy"
    hidden = (64, 64)

    def initial(self, rng: np.random.Generator, features: int, outputs: int) -> dict[str, Any]:
        """Starting parameters: `weights1`, `bias1`, ... `bias3`, with weights after He et al., arXiv 1502.01852."""
        sizes = (features, *self.hidden, outputs)
        params = {}
        for layer, (inputs, units) in enumerate(pairwise(sizes), start=1):
            params[f"weights{layer}"] = rng.normal(0.0, np.sqrt(2 / inputs), (inputs, units)).astype(np.float32)
            params[f"bias{layer}"] = np.zeros(units, np.float32)
        return params

    def loss(self, params: dict[str, Any], x: Any, y: Any) -> Any:
        """Mean cross-entropy, for x of shape (n, features) and one-hot rows y of shape (n, classes)."""
        logits = self._layers(params, x)[-1]
        shifted = logits - logits.max(axis=1, keepdims=True)
        return (np.log(np.exp(shifted).sum(axis=1)) - (shifted * y).sum(axis=1)).mean()

    def write_gradients(self, params: dict[str, Any], x: Any, y: Any, out: dict[str, Any]) -> None:
        """Gradient of `loss` with respect to every parameter, by backpropagation."""
        first, second, logits = self._layers(params, x)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        at_logits = (exponentials / exponentials.sum(axis=1, keepdims=True) - y) / len(x)
        at_second = (at_logits @ params["weights3"].T) * (second > 0)
        at_first = (at_second @ params["weights2"].T) * (first > 0)
        layers = ((x, at_first), (first, at_second), (second, at_logits))
        for layer, (inputs, at_outputs) in enumerate(layers, start=1):
            out[f"weights{layer}"][...] = inputs.T @ at_outputs
            out[f"bias{layer}"][...] = at_outputs.sum(axis=0)

    def accuracy(self, params: dict[str, Any], x: Any, y: Any) -> float:
        """Share of rows whose largest output is the right class."""
        predicted = self._layers(params, x)[-1].argmax(axis=1)
        return float((predicted == y.argmax(axis=1)).mean())

    def _layers(self, params, x):
        first = np.maximum(x @ params["weights1"] + params["bias1"], 0)
        second = np.maximum(first @ params["weights2"] + params["bias2"], 0)
        return first, second, second @ params["weights3"] + params["bias3"]


@dataclass(frozen=True)
class Task:
    """A model, its data, and how to train it.

    Attributes:
        batch_size: Rows of a batch; None is the full batch.
        batches: How many random batches an epoch has; None: as many as hold every row once.
        loss_is_held_out: Whether the loss is noted on the test data, where that of all training data takes too long.
    """

    title: str
    model: Model
    x: Any
    y: Any
    lr: float
    epochs: int
    batch_size: int | None = None
    batches: int | None = None
    test_x: Any = None
    test_y: Any = None
    loss_is_held_out: bool = False

    @property
    def rows(self) -> int:
        """Rows of a batch."""
        return self.batch_size or len(self.x)

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.epochs * (self.batches or -(-len(self.x) // self.rows))

    @property
    def judged(self) -> tuple[Any, Any]:
        """X and y of the data on which the loss is noted."""
        return (self.test_x, self.test_y) if self.loss_is_held_out else (self.x, self.y)

    def initial(self, seed: int) -> dict[str, Any]:
        """Starting parameters, as NumPy arrays."""
        outputs = self.y.shape[1] if self.y.ndim == 2 else 1
        return self.model.initial(np.random.default_rng(seed), self.x.shape[1], outputs)

    def moved(self, move: Any) -> "Task":
        """This task with `move(array)` for each of its arrays."""
        arrays = {name: getattr(self, name) for name in ("x", "y", "test_x", "test_y")}
        return replace(self, **{name: move(array) for name, array in arrays.items() if array is not None})


def diabetes() -> Task:
    """Disease progression of 442 patients from 10 measurements: linear regression on the full batch."""
    x, y = load_diabetes(return_X_y=True)
    title = "Linear regression on diabetes"
    return Task(title, LinearRegression(), _standardised(x), _standardised(y), lr=0.02, epochs=1500)


def digits(seed: int) -> Task:
    """Handwritten digits of 8 by 8 pixels in 10 classes, a quarter held out: the classifier on mini-batches."""
    pixels, labels = load_digits(return_X_y=True)
    x, test_x, y, test_y = train_test_split(pixels / 16, labels, test_size=0.25, stratify=labels, random_state=seed)
    one_hot = np.eye(10, dtype=np.float32)
    # After 30 epochs, first moments of units that no longer fire have decayed to subnormal numbers. With these a step
    # takes 1.6 (textbook) to 3 times (fastadam) as long, so one run would mix two kinds of times.
    return Task(
        "64-64 classifier on digits",
        Classifier(),
        x.astype(np.float32),
        one_hot[y],
        lr=2e-3,
        epochs=30,
        batch_size=64,
        test_x=test_x.astype(np.float32),
        test_y=one_hot[test_y],
    )


def _standardised(values):
    return ((values - values.mean(axis=0)) / values.std(axis=0)).astype(np.float32)
