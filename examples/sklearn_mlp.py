"""scikit-learn's multilayer perceptrons, trained by fastadam in the place of scikit-learn's own Adam.

    python examples/sklearn_mlp.py    train both on the handwritten digits, and compare losses and times

`coefs_` and `intercepts_` are stepped where they lie, and gradients are handed over as the list that scikit-learn has.
`FastMLPClassifier` and `FastMLPRegressor` take the arguments of their originals. Options of `fastadam.Adam` that
scikit-learn lacks go into the attribute `adam_options`: `{"max_grad_norm": 1.0}`, say.
"""

import time
import warnings

from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.neural_network._stochastic_optimizers import BaseOptimizer

import fastadam


class InPlace(BaseOptimizer):
    """What scikit-learn calls after each batch: a step of `fastadam.Adam` on its own arrays."""

    def __init__(self, params, theirs, **options):
        super().__init__(theirs.learning_rate_init)
        betas = theirs.beta_1, theirs.beta_2
        self.adam = fastadam.Adam(
            params, lr=theirs.learning_rate_init, betas=betas, eps=theirs.epsilon, convention="sklearn", **options
        )

    def update_params(self, params, grads):
        self.adam.step(grads)


class TrainedByFastadam:
    """A multilayer perceptron of scikit-learn whose Adam is fastadam's."""

    adam_options: dict = {}  # noqa: RUF012 (only read)

    @property
    def _optimizer(self):
        if "_in_place" not in vars(self):
            raise AttributeError("_optimizer")  # scikit-learn asks whether there is one
        return self._in_place

    @_optimizer.setter
    def _optimizer(self, theirs):
        # scikit-learn assigns its own optimizer when a training begins: its settings are taken over.
        self._in_place = InPlace(self.coefs_ + self.intercepts_, theirs, **self.adam_options)

    def __getstate__(self):
        # A pickled model predicts; the optimizer, which trains these very arrays, cannot be copied.
        return {key: value for key, value in super().__getstate__().items() if key != "_in_place"}


class FastMLPClassifier(TrainedByFastadam, MLPClassifier):
    """`MLPClassifier` with `solver="adam"` by fastadam."""


class FastMLPRegressor(TrainedByFastadam, MLPRegressor):
    """`MLPRegressor` with `solver="adam"` by fastadam."""


def main():
    images, labels = load_digits(return_X_y=True)
    warnings.simplefilter("ignore", ConvergenceWarning)  # twenty epochs are enough to see
    losses = []
    for kind in (MLPClassifier, FastMLPClassifier):
        model = kind((600,), max_iter=20, random_state=0)
        start = time.perf_counter()
        model.fit(images / 16.0, labels)
        losses.append(model.loss_curve_)
        print(f"{kind.__name__:20} {time.perf_counter() - start:5.1f} s, last loss {model.loss_:.15f}")
    difference = max(abs(ours - theirs) for ours, theirs in zip(*losses, strict=True))
    print(f"largest difference of a loss: {difference:.1e}")


if __name__ == "__main__":
    main()
