"""scikit-learn's multilayer perceptrons, trained in the place of their own Adam, as examples/sklearn_mlp.py does it."""

import pickle
import warnings

import numpy as np
import pytest
from training import LARGE

pytest.importorskip("sklearn")

from sklearn.datasets import load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn_mlp import FastMLPClassifier, FastMLPRegressor

EPOCHS = 12


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return images[:600] / 16.0, labels[:600]


def fitted(kind, data, hidden, **options):
    model = kind(hidden_layer_sizes=hidden, random_state=0, **{"max_iter": EPOCHS, **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(*data)


def assert_same_training(ours, theirs):
    assert len(ours.loss_curve_) == len(theirs.loss_curve_) > 1
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-14)
    for mine, other in zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-12)


OTHERWISE = {"batch_size": 32, "learning_rate_init": 0.01, "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-4}


@pytest.mark.parametrize(
    ("hidden", "options"),
    [((30, 20), {}), ((30, 20), OTHERWISE), ((600,), {"max_iter": 3})],
    ids=["small", "otherwise", "large"],
)
def test_classifier_has_the_same_loss_curve(digits, hidden, options):
    ours, theirs = (fitted(kind, digits, hidden, **options) for kind in (FastMLPClassifier, MLPClassifier))
    assert_same_training(ours, theirs)
    assert (ours.predict(digits[0]) == theirs.predict(digits[0])).all()


def test_regressor_has_the_same_loss_curve():
    data = load_diabetes(return_X_y=True)
    assert_same_training(*(fitted(kind, data, (20,)) for kind in (FastMLPRegressor, MLPRegressor)))


def test_early_stopping_restores_the_best_weights(digits):
    ours, theirs = (
        fitted(kind, digits, (30,), early_stopping=True, n_iter_no_change=2, tol=0.05)
        for kind in (FastMLPClassifier, MLPClassifier)
    )
    assert ours.n_iter_ < EPOCHS
    assert ours.validation_scores_ == theirs.validation_scores_
    assert_same_training(ours, theirs)


def test_training_in_float32_stays_in_float32(digits):
    data = digits[0].astype(np.float32), digits[1]
    ours, theirs = (fitted(kind, data, (30,)) for kind in (FastMLPClassifier, MLPClassifier))
    assert {array.dtype for array in ours.coefs_ + ours.intercepts_} == {np.dtype(np.float32)}
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-4)


def test_parameters_and_large_gradients_are_not_copied(digits):
    model = FastMLPClassifier((600,), random_state=0)
    model.partial_fit(*digits, classes=range(10))
    arrays, adam = model.coefs_ + model.intercepts_, model._optimizer.adam
    assert arrays[0].size >= LARGE
    assert all(adam.params[position] is array for position, array in enumerate(arrays))
    assert "p" not in adam.buffers.flats
    before = [array.copy() for array in arrays]
    model.partial_fit(*digits)
    assert model._optimizer.adam is adam
    for position, (array, earlier) in enumerate(zip(model.coefs_ + model.intercepts_, before, strict=True)):
        assert array is arrays[position]
        assert not np.array_equal(array, earlier)
    # Only small gradients are gathered into a buffer.
    written = [gradient.any() for gradient in adam.grads.values()]
    assert written == [array.size < LARGE for array in arrays]


def test_partial_fits_are_the_same(digits):
    models = FastMLPClassifier((30,), random_state=0), MLPClassifier((30,), random_state=0)
    for model in models:
        for _ in range(EPOCHS):
            model.partial_fit(*digits, classes=range(10))
    assert_same_training(*models)


def test_a_pickled_model_predicts(digits):
    model = fitted(FastMLPClassifier, digits, (30,))
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.predict_proba(digits[0]), model.predict_proba(digits[0]))
    copy.partial_fit(*digits)


def test_options_that_only_fastadam_has(digits):
    class Averaged(FastMLPClassifier):
        adam_options = {"ema_decay": 0.9}  # noqa: RUF012 (only read)

    model = fitted(Averaged, digits, (30,))
    averages = model._optimizer.adam.ema
    assert list(averages) == [0, 1, 2, 3]
    assert not np.array_equal(averages[0], model.coefs_[0])
