"""Keras on torch: `fit` beside Keras' own optimizers, saved models, and what is refused."""

import doctest
import importlib
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("keras")

import keras

import fastadam.keras
from fastadam.bench import keras_fit
from fastadam.hosts import LEAST
from fastadam.keras import host

OURS, THEIRS = fastadam.keras, keras.optimizers
INPUTS = np.random.default_rng(0).normal(size=(96, 3)).astype("float32")
TARGETS = np.sin(INPUTS.sum(1, keepdims=True))
# Both round differently, and a training carries the differences on.
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def made(optimizer, *, frozen=(), dtype="float32", **options):
    keras.utils.set_random_seed(0)
    dense = [keras.layers.Dense(64, "relu", dtype=dtype), keras.layers.Dense(64, "relu", dtype=dtype)]
    model = keras.Sequential([keras.layers.Input((3,)), *dense, keras.layers.Dense(1, dtype=dtype)])
    for index in frozen:
        model.layers[index].trainable = False
    model.compile(optimizer=optimizer, loss="mse", **options)
    return model


def fitted(model, epochs=3):
    model.fit(INPUTS, TARGETS, epochs=epochs, batch_size=16, shuffle=False, verbose=0)
    return model


def assert_close(mine, other, **tolerance):
    assert len(mine) == len(other) > 0
    for one, another in zip(mine, other, strict=True):
        np.testing.assert_allclose(one, another, **(tolerance or CLOSE))


def values(variables):
    return [keras.ops.convert_to_numpy(variable.value) for variable in variables]


def assert_trains_alike(name, excluded=None, made_by=made, **settings):
    models = []
    for classes in (OURS, THEIRS):
        optimizer = getattr(classes, name)(**settings)
        if excluded:
            optimizer.exclude_from_weight_decay(var_names=excluded)
        models.append(fitted(made_by(optimizer)))
    ours, theirs = models
    assert_close(ours.get_weights(), theirs.get_weights())
    assert_close(values(ours.optimizer.variables), values(theirs.optimizer.variables))
    assert (
        max(np.abs(one - other).max() for one, other in zip(*map(weights_of, (ours, made("sgd"))), strict=True)) > 1e-3
    )
    return ours


def weights_of(model):
    return model.get_weights()


SETTINGS = {
    "Adam": ("Adam", {}),
    "amsgrad": ("Adam", {"amsgrad": True, "epsilon": 1e-4, "beta_1": 0.4, "beta_2": 0.95}),
    "AdamW": ("AdamW", {"weight_decay": 0.1}),
    "Lion": ("Lion", {"weight_decay": 0.1, "learning_rate": 1e-4}),
    "global_clipnorm": ("Adam", {"global_clipnorm": 0.1, "epsilon": 1e-3}),
    "clipnorm": ("Adam", {"clipnorm": 0.02, "epsilon": 1e-3}),
    "clipvalue": ("Adam", {"clipvalue": 0.01, "epsilon": 1e-3}),
    "loss_scale_factor": ("Adam", {"loss_scale_factor": 1000.0, "epsilon": 1e-3}),
    "loss_scale_factor, clipvalue": ("Adam", {"loss_scale_factor": 1000.0, "clipvalue": 0.01, "epsilon": 1e-3}),
    "loss_scale_factor, clipnorm": ("Adam", {"loss_scale_factor": 1000.0, "clipnorm": 0.02, "epsilon": 1e-3}),
    "ema": ("Adam", {"use_ema": True, "ema_momentum": 0.9}),
    "ema, overwrite": ("AdamW", {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 4}),
    "accumulation": (
        "AdamW",
        {"gradient_accumulation_steps": 3, "use_ema": True, "global_clipnorm": 0.1, "loss_scale_factor": 8.0},
    ),
    "schedule": ("AdamW", {"learning_rate": THEIRS.schedules.CosineDecay(1e-2, 10)}),
    "function": ("Adam", {"learning_rate": lambda: 2e-3}),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_fit_trains_as_keras_own(case):
    name, settings = SETTINGS[case]
    assert_trains_alike(name, **settings)


@pytest.mark.parametrize("clip", ["clipnorm", "clipvalue", "global_clipnorm"])
def test_clipping_is_in_the_pass(clip, monkeypatch):
    """None of Keras' own passes over gradients and averages runs."""
    optimizer = OURS.AdamW(**{clip: 0.02}, loss_scale_factor=2.0)
    monkeypatch.setattr("keras.src.optimizers.base_optimizer.BaseOptimizer._clip_gradients", None)
    assert not np.array_equal(fitted(made(optimizer), epochs=1).get_weights()[0], made("sgd").get_weights()[0])


@pytest.mark.parametrize("settings", [{}, {"loss_scale_factor": 8.0}], ids=["plain", "scaled"])
def test_clipping_of_each_where_the_pass_does_not(settings, monkeypatch):
    """What CUDA memory gets, on the CPU: by Keras' own pass."""
    monkeypatch.setattr(OURS.Adam, "_clips_in_pass", lambda self: not self.clipnorm)
    assert_trains_alike("Adam", clipnorm=0.02, epsilon=1e-3, **settings)


def test_exclusions_from_weight_decay():
    model = assert_trains_alike("AdamW", excluded=["bias"], weight_decay=5.0, learning_rate=1e-2)
    decayed = fitted(made(OURS.AdamW(weight_decay=5.0, learning_rate=1e-2)))
    assert np.abs(model.get_weights()[1] - decayed.get_weights()[1]).max() > 1e-3


def test_frozen_layers():
    ours = assert_trains_alike("AdamW", made_by=partial(made, frozen=[1]), use_ema=True, ema_momentum=0.5)
    for mine, other in zip(ours.layers[1].get_weights(), made("sgd").layers[1].get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_constraints_are_kept():
    def constrained(optimizer):
        model = made(optimizer)
        model.layers[0].kernel.constraint = keras.constraints.MaxNorm(0.5)
        return model

    assert_trains_alike("Adam", made_by=constrained)


def test_float64():
    ours, theirs = (fitted(made(classes.Adam(use_ema=True), dtype="float64")) for classes in (OURS, THEIRS))
    # Keras multiplies by its learning rate, 0.001, and powers of its betas in float32.
    assert_close(ours.get_weights(), theirs.get_weights(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_rounded_once(dtype):
    name = str(dtype).removeprefix("torch.")
    before, gradient = torch.linspace(-2, 2, 99).to(dtype), torch.linspace(1, -3, 99).to(dtype)
    variable = keras.Variable(before.clone(), dtype=name)
    optimizer = OURS.AdamW(2**-6, weight_decay=0.25, epsilon=2**-10, use_ema=True)
    optimizer.apply([gradient], [variable])
    p, g = before.double(), gradient.double()
    p = p * (1 - 2**-6 * 0.25) - 2**-6 * 0.001**0.5 / 0.1 * (0.1 * g) / ((0.001 * g * g).sqrt() + 2**-10)
    for found, exact in zip(optimizer.variables[2:], (p, 0.1 * g, 0.001 * g * g), strict=True):
        assert found.value.dtype is dtype
        torch.testing.assert_close(
            found.value.double(), exact.to(dtype).double(), rtol=torch.finfo(dtype).eps, atol=1e-7
        )
    assert torch.equal(variable.value, p.to(dtype))


def test_the_scaler_of_mixed_precision():
    def scaled(optimizer):
        return made(THEIRS.LossScaleOptimizer(optimizer), dtype="mixed_float16")

    for settings in ({"epsilon": 1e-4}, {"epsilon": 1e-4, "global_clipnorm": 0.1, "loss_scale_factor": 8.0}):
        ours, theirs = (fitted(scaled(classes.Adam(**settings))) for classes in (OURS, THEIRS))
        assert_close(ours.get_weights(), theirs.get_weights(), rtol=1e-3, atol=1e-4)


def test_averages_are_not_written_before_the_first_step():  # keras#18949
    plain, scaled = OURS.Adam(use_ema=True), THEIRS.LossScaleOptimizer(OURS.Adam(use_ema=True))
    for optimizer, gradients in ((plain, []), (scaled, [np.inf, np.inf])):
        variable = keras.Variable([3.0])
        optimizer.build([variable])
        for gradient in gradients:
            optimizer.apply([torch.tensor([gradient])], [variable])
        optimizer.finalize_variable_values([variable])
        assert variable.value.tolist() == [3.0]
        optimizer.apply([torch.ones(1)], [variable])
        stepped = variable.value.tolist()
        optimizer.finalize_variable_values([variable])
        assert variable.value.tolist() == stepped != [3.0]


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_scale_factor": 4.0},
        {"loss_scale_factor": 4.0, "global_clipnorm": 0.5, "use_ema": True},
        {"gradient_accumulation_steps": 2, "clipvalue": 0.5},
    ],
    ids=str,
)
def test_variables_that_are_overwritten_with_their_gradients(settings):  # keras#19534, #21193
    found = []
    for classes in (OURS, THEIRS):
        plain, overwritten = keras.Variable([3.0]), keras.Variable([1.0])
        overwritten.overwrite_with_gradient = True
        optimizer = classes.AdamW(0.1, **settings)
        for gradient in (7.0, 5.0, 9.0, 6.0):
            optimizer.apply([torch.tensor([gradient / 3.0]), torch.tensor([gradient])], [plain, overwritten])
        found.append([plain.value.item(), overwritten.value.item()])
    np.testing.assert_allclose(*found, **CLOSE)


@pytest.mark.parametrize("case", ["AdamW", "amsgrad", "ema, overwrite", "accumulation", "schedule", "Lion"])
def test_a_saved_model_goes_on_with_the_same_bits(case, tmp_path):
    name, settings = SETTINGS[case]
    straight = fitted(made(getattr(OURS, name)(**settings)), epochs=1)
    straight.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is getattr(OURS, name)
    for model in (straight, loaded):
        fitted(model)
    for mine, other in zip(straight.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)
    for mine, other in zip(*(values(model.optimizer.variables) for model in (straight, loaded)), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_states_go_between_the_classes():
    kinds = [OURS.AdamW, THEIRS.AdamW]
    models = [fitted(made(kind(use_ema=True)), epochs=1) for kind in kinds]
    results = [fitted(each).get_weights() for each in models]
    for before, after, expected in zip(kinds, kinds[::-1], results[::-1], strict=True):
        first, second = fitted(made(before(use_ema=True)), epochs=1), made(after(use_ema=True))
        second.set_weights(first.get_weights())
        second.optimizer.build(second.trainable_variables)
        second.optimizer.set_weights(values(first.optimizer.variables))
        assert_close(fitted(second).get_weights(), expected)


@pytest.mark.parametrize("name", OURS.__all__)
def test_configs(name):
    schedule = THEIRS.schedules.ExponentialDecay(1e-2, 5, 0.9)
    optimizer = getattr(OURS, name)(schedule, beta_1=0.8, weight_decay=0.25, clipvalue=0.5, use_ema=True, name="mine")
    config = optimizer.get_config()
    assert config.keys() == getattr(THEIRS, name)().get_config().keys()
    assert type(optimizer).from_config(optimizer.get_config()).get_config() == config
    again = THEIRS.deserialize(THEIRS.serialize(optimizer))
    assert type(again) is type(optimizer)
    assert again.get_config() == config


def test_settings_may_be_changed_between_steps():
    trained = []
    for classes in (OURS, THEIRS):
        model = fitted(made(classes.AdamW(clipvalue=0.1, use_ema=True)), epochs=1)
        model.optimizer.learning_rate = 5e-3
        model.optimizer.weight_decay, model.optimizer.clipvalue, model.optimizer.ema_momentum = 0.5, 0.01, 0.5
        trained.append(fitted(model).get_weights())
    assert_close(*trained)


def test_gradients_by_hand_leave_those_of_the_variables_alone():
    """Variables without a gradient stand, but for their average; casts are Keras'."""
    trained = []
    for classes in (OURS, THEIRS):
        variables = [keras.Variable(np.ones(shape, "float32"), name=name) for name, shape in (("a", 3), ("b", (2, 2)))]
        kept = torch.full((3,), 7.0)
        variables[0].value.grad = kept
        optimizer = classes.Adam(0.1, use_ema=True, ema_momentum=0.5)
        first, second = np.arange(3.0), torch.ones(2, 2, dtype=torch.float64)
        optimizer.build(variables)
        optimizer.apply([keras.ops.convert_to_tensor(first, "float32"), second.float()], variables)
        optimizer.apply([keras.ops.convert_to_tensor(first, "float32"), second.float()])
        optimizer.apply([second if classes is OURS else second.float()], variables[1:])
        optimizer.apply([keras.ops.convert_to_tensor(first, "float32"), second.float()])
        assert variables[0].value.grad is kept
        trained.append(values([*variables, *optimizer.variables]))
    assert_close(*trained)


def test_variables_in_another_order_of_memory():
    """The moments follow, and are Keras' variables still."""
    states = []
    for classes in (OURS, THEIRS):
        variable = keras.Variable(torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T))
        variable._value.data = torch.arange(6.0).reshape(2, 3).T
        assert not variable.value.is_contiguous()
        optimizer = classes.Adam(0.1)
        for step in range(3):
            optimizer.apply([torch.arange(6.0).reshape(3, 2) - step], [variable])
        states.append(values([variable, *optimizer.variables]))
    assert_close(*states)


def test_a_compiled_train_step(monkeypatch):
    """Dynamo traces it, with no compiler behind."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, compiled = (fitted(made(OURS.AdamW(use_ema=True), jit_compile=jit), epochs=1) for jit in (False, True))
    assert_close(compiled.get_weights(), plain.get_weights())


# --- what is refused


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("Adam", {"lr": 0.1}, TypeError, r"Adam\(\) got .* 'lr'. Did you mean 'learning_rate'\?"),
        ("AdamW", {"weight_deacy": 0.1}, TypeError, r"AdamW\(\) got .* 'weight_deacy'. Did you mean 'weight_decay'\?"),
        ("Lion", {"amsgrad": True}, TypeError, r"Lion\(\) got an unexpected keyword argument 'amsgrad'$"),
        ("Adam", {"decay": 0.1}, TypeError, "Did you mean 'weight_decay'"),
        ("Adam", {"moment_dtype": "float8"}, TypeError, "'moment_dtype'"),
        ("Adam", {"beta_1": 1.0}, ValueError, r"`beta_1` must be in \[0, 1\), got 1.0"),
        ("Adam", {"epsilon": "x"}, TypeError, "`epsilon` must be a real number, got 'x'"),
        ("AdamW", {"weight_decay": -1.0}, ValueError, "`weight_decay` must be >= 0, got -1.0"),
        ("Adam", {"learning_rate": -1.0}, ValueError, "`learning_rate` must be >= 0, got -1.0"),
        ("Adam", {"global_clipnorm": -1.0}, ValueError, "`global_clipnorm` must be >= 0, got -1.0"),
        ("Adam", {"use_ema": True, "ema_momentum": 1.0}, ValueError, r"`ema_momentum` must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_settings(name, settings, error, message):
    with pytest.raises(error, match=message):
        getattr(OURS, name)(**settings)


def test_attributes_that_would_do_nothing():
    with pytest.raises(AttributeError, match=r"`lr` would do nothing here.* `learning_rate`"):
        OURS.Adam().lr = 0.1


def test_bad_variables():
    with keras.device("meta"):
        meta = keras.Variable(np.zeros(2, "float32"), name="far")
    whole = keras.Variable(np.zeros(2, "int32"), name="whole", trainable=False)
    for variables, message in (
        ([meta], "`far` must be in CPU or CUDA memory, got meta"),
        ([whole], "`whole` must be float32, float64, bfloat16 or float16, got int32"),
        ([np.zeros(2)], r"`variables\[0\]` must be a keras.Variable of the torch backend, got numpy.ndarray"),
        ([torch.nn.Parameter(torch.zeros(2))], r"`variables\[0\]` must be a keras.Variable .* got torch.nn.*Parameter"),
    ):
        optimizer = OURS.Adam()
        with pytest.raises(TypeError, match=message):
            optimizer.build(variables)
        assert not optimizer.built


def test_bad_gradients_write_nothing():
    first, second = keras.Variable(np.ones(2, "float32")), keras.Variable(np.ones(3, "float32"), name="second")
    optimizer = OURS.Adam(loss_scale_factor=2.0)
    for gradient, message in (
        (torch.ones(2), r"the gradient of `second` must have shape \(3,\), got \(2,\)"),
        (torch.ones(3, device="meta"), "the gradient of `second` must be on cpu, got meta"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.apply([torch.ones(2), gradient], [first, second])
    assert first.value.tolist() == [1.0, 1.0]
    assert int(optimizer.iterations.value) == 0
    assert optimizer.loss_scale_factor == 2.0


# --- where it cannot work


def imported(prelude="", **environment):
    """What is said by a new process that imports fastadam.keras."""
    command = [sys.executable, "-c", f"{prelude}\nimport fastadam.keras"]
    path = {"PATH": "", "HOME": "/nonexistent", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env={**path, **environment}, capture_output=True, text=True)
    assert done.returncode, "nothing was raised"
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("backend", ["jax", "tensorflow", "numpy"])
def test_other_backends_are_named(backend):
    """Whether or not the backend is installed."""
    said = imported(KERAS_BACKEND=backend)
    assert said.startswith("ImportError: fastadam.keras needs Keras 3.8 or newer on torch, got")
    assert backend in said
    assert "KERAS_BACKEND=torch" in said
    assert "keras.optimizers" in said


@pytest.mark.parametrize("package", [keras, torch])
def test_an_older_version_is_named(package, monkeypatch):
    name = package.__name__
    monkeypatch.setattr(package, "__version__", "0.9.1")
    message = f"fastadam.keras needs {name} {LEAST[name]} or newer, got 0.9.1: pip install '{name}>={LEAST[name]}'"
    with pytest.raises(ImportError, match=re.escape(message)):
        host.checked_keras()


def test_keras_is_not_imported_by_fastadam():
    command = "import fastadam, sys; raise SystemExit('keras' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0


def test_what_the_documentation_says_is_run():
    assert doctest.testmod(importlib.import_module("fastadam.keras.family")).failed == 0
    page = Path(__file__).parents[2] / "docs" / "keras.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), namespace)


def test_the_bench_of_fit_runs_small():
    (title, found), *others = keras_fit.measured(tuple(keras_fit.CASES)[1:2], rounds=1, part=0.0).items()
    assert not others
    assert found.keys() == set(keras_fit.NAMES)
    assert all(batch > step > 0 for batch, step in found.values())
    assert [row[:2] for row in keras_fit.rows({title: found})] == [[title, name] for name in keras_fit.NAMES]
