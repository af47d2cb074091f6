"""The demo: its models' gradients, the textbook Adam, and the command line in processes of its own."""

import sys
from dataclasses import replace
from subprocess import run as run_process
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.lib.mixins import NDArrayOperatorsMixin

from fastadam.cli import versions
from fastadam.demo import run as demo
from fastadam.demo import training as demo_training
from fastadam.demo.language import ByteModel, language
from fastadam.demo.models import Classifier, LinearRegression, diabetes, digits
from fastadam.demo.textbook import TextbookAdam

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def data(model, samples=40, features=6, classes=4, dtype=np.float64):
    """A model's random parameters and a batch for it."""
    rng = np.random.default_rng(7)
    params = {name: np.asarray(p, dtype) for name, p in model.initial(rng, features, classes).items()}
    for p in params.values():
        p += rng.normal(0.0, 0.1, p.shape)
    x = rng.normal(size=(samples, features)).astype(dtype)
    if isinstance(model, LinearRegression):
        return params, x, rng.normal(size=samples).astype(dtype)
    if isinstance(model, ByteModel):
        # Few different bytes, so that some are read many times.
        return params, *(rng.integers(90, 120, shape).astype(np.uint8) for shape in ((samples, features), samples))
    return params, x, np.eye(classes, dtype=dtype)[rng.integers(classes, size=samples)]


MODELS = pytest.mark.parametrize(
    "model", [LinearRegression(), Classifier(), ByteModel(2, 7)], ids=["regression", "classifier", "bytes"]
)


@MODELS
def test_gradients_equal_central_differences_of_the_loss(model):
    params, x, y = data(model)
    gradients = model.gradients(params, x, y)
    assert gradients.keys() == params.keys()
    shift = 1e-6
    for name, p in params.items():
        differences = np.empty_like(p)
        for place in np.ndindex(p.shape):
            losses = []
            for sign in (1, -1):
                moved = p.copy()
                moved[place] += sign * shift
                losses.append(model.loss({**params, name: moved}, x, y))
            differences[place] = (losses[0] - losses[1]) / (2 * shift)
        np.testing.assert_allclose(gradients[name], differences, rtol=1e-5, atol=1e-8, err_msg=name)


@MODELS
def test_gradients_are_written_over_whatever_is_there(model):
    params, x, y = data(model)
    out = {name: np.full(p.shape, np.nan) for name, p in params.items()}
    model.write_gradients(params, x, y, out)
    for name, gradient in model.gradients(params, x, y).items():
        np.testing.assert_array_equal(out[name], gradient, err_msg=name)
        assert not np.shares_memory(gradient, params[name])


@MODELS
def test_gradients_have_shape_and_dtype_of_the_parameters(model):
    params, x, y = data(model, dtype=np.float32)
    for name, gradient in model.gradients(params, x, y).items():
        assert (gradient.shape, gradient.dtype) == (params[name].shape, np.float32), name


def test_the_bias_of_the_regression_has_no_dimensions():
    assert diabetes().initial(seed=0)["bias"].shape == ()


def test_accuracy_is_the_share_of_rows_whose_largest_output_is_the_label():
    model = Classifier()
    params, x, y = data(model)
    logits = model._layers(params, x)[-1]
    assert model.accuracy(params, x, np.eye(4)[logits.argmax(axis=1)]) == 1.0
    assert model.accuracy(params, x, y) == np.mean(
        [row.argmax() == want.argmax() for row, want in zip(logits, y, strict=True)]
    )


def test_digits_are_split_alike_by_the_same_seed_and_in_even_classes():
    one, same, other = digits(3), digits(3), digits(4)
    np.testing.assert_array_equal(one.test_x, same.test_x)
    assert not np.array_equal(one.test_x, other.test_x)
    shares = one.y.mean(axis=0), one.test_y.mean(axis=0)
    np.testing.assert_allclose(*shares, atol=0.005)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_textbook_adam_equals_the_sums_over_all_past_gradients(weight_decay):
    lr, beta1, beta2, eps = 0.05, 0.8, 0.95, 1e-3
    rng = np.random.default_rng(5)
    adam = TextbookAdam(lr, (beta1, beta2), eps, weight_decay)
    params = {"w": rng.normal(size=(3, 2)), "b": np.array(0.5)}
    expected, past = dict(params), []
    for step in range(1, 8):
        grads = {name: rng.normal(size=np.shape(p)) for name, p in params.items()}
        params = adam.step(params, grads)
        past.append({name: grads[name] + weight_decay * expected[name] for name in expected})
        for name in expected:
            ages = np.arange(step)[::-1]
            gradients = [old[name] for old in past]
            mean = np.average(gradients, axis=0, weights=beta1**ages)
            mean_square = np.average(np.square(gradients), axis=0, weights=beta2**ages)
            expected[name] = expected[name] - lr * mean / (mean_square**0.5 + eps)
            np.testing.assert_allclose(params[name], expected[name], rtol=1e-12, err_msg=f"{name}, step {step}")
    assert adam.steps == 7


def test_textbook_adam_returns_new_arrays_of_the_same_dtype_and_leaves_its_inputs():
    params = {"w": np.ones((2, 3), np.float32), "b": np.zeros((), np.float32)}
    grads = {"w": np.full((2, 3), 0.5, np.float32), "b": np.float32(2.0)}
    adam = TextbookAdam(lr=0.1, weight_decay=0.1)
    updated = adam.step(params, grads)
    again = adam.step(updated, grads)
    for name, p in params.items():
        assert not np.shares_memory(updated[name], p)
        assert not np.shares_memory(updated[name], again[name])
        assert (updated[name].dtype, again[name].dtype, np.shape(updated[name])) == (np.float32, np.float32, p.shape)
        assert adam.first_moments[name].dtype == adam.second_moments[name].dtype == np.float32
    assert np.all(params["w"] == 1)
    assert params["b"] == 0
    assert np.all(grads["w"] == 0.5)


def test_every_contender_ends_at_the_least_squares_solution():
    task = diabetes()
    runs = demo_training.contenders(task, demo_training.CPU, seed=0)
    demo_training.train(runs, 0, lambda steps: None)
    columns = np.c_[task.x, np.ones(len(task.x))].astype(np.float64)
    best = columns @ np.linalg.lstsq(columns, task.y.astype(np.float64))[0]
    for one in runs:
        assert len(one.step_seconds) == task.steps
        np.testing.assert_allclose(one.losses[-1], np.mean((best - task.y) ** 2), rtol=1e-4, err_msg=one.name)


class StrictArray(NDArrayOperatorsMixin):
    """A stand-in for a CuPy array: NumPy's ufuncs dispatch to it, and it refuses to become a NumPy array."""

    def __init__(self, array):
        self.array = array

    def __array__(self, *arguments, **settings):
        raise TypeError("implicit conversion to a NumPy array")

    def __array_ufunc__(self, ufunc, method, *inputs, **settings):
        inputs = [self._inside(value) for value in inputs]
        return StrictArray(getattr(ufunc, method)(*inputs, **settings))

    @staticmethod
    def _inside(value):
        if isinstance(value, np.ndarray):
            raise TypeError("a NumPy array and an array on the device in one operation")
        return value.array if isinstance(value, StrictArray) else value

    def __getattr__(self, name):
        found = getattr(self.array, name)
        if callable(found):
            return lambda *arguments, **settings: StrictArray(found(*arguments, **settings))
        return StrictArray(found) if isinstance(found, np.ndarray) else found

    def __setitem__(self, place, value):
        self.array[place] = self._inside(value)

    def __len__(self):
        return len(self.array)

    def __float__(self):
        return float(self.array)


@pytest.mark.parametrize("model", [LinearRegression(), Classifier()], ids=["regression", "classifier"])
def test_models_and_textbook_adam_keep_arrays_of_another_library(model):
    params, x, y = data(model, dtype=np.float32)
    there = {name: StrictArray(p) for name, p in params.items()}
    gradients = model.gradients(there, StrictArray(x), StrictArray(y))
    assert float(model.loss(there, StrictArray(x), StrictArray(y))) == model.loss(params, x, y)
    updated = TextbookAdam().step(there, gradients)
    expected = TextbookAdam().step(params, model.gradients(params, x, y))
    for name, p in updated.items():
        np.testing.assert_array_equal(p.array, expected[name])
    if isinstance(model, Classifier):
        assert model.accuracy(there, StrictArray(x), StrictArray(y)) == model.accuracy(params, x, y)


def short_language():
    """The task of the language model with a small model and six small batches."""
    return replace(language(), model=ByteModel(4, 40), batch_size=24, epochs=2, batches=3)


@pytest.fixture
def short(monkeypatch):
    """The demo with few steps."""
    monkeypatch.setattr(demo, "diabetes", lambda: replace(diabetes(), epochs=5))
    monkeypatch.setattr(demo, "digits", lambda seed: replace(digits(seed), epochs=1))
    monkeypatch.setattr(demo, "language", lambda: short_language())


@pytest.mark.parametrize("error", [1e-7, np.nan])
def test_a_difference_to_the_reference_is_an_error(short, monkeypatch, tmp_path, capsys, error):
    right = demo_training.FastRun.step

    def wrong(self):
        right(self)
        next(iter(self.params.values()))[0] += np.float32(error)

    monkeypatch.setattr(demo_training.FastRun, "step", wrong)
    assert demo.run("cpu", 0, tmp_path) == 1
    printed = capsys.readouterr()
    assert "away from its in-place NumPy reference" in " ".join(printed.err.split())
    assert "exactly the same parameters" not in printed.out


def test_a_run_that_is_not_resumed_to_the_last_bit_is_an_error(short, monkeypatch, tmp_path, capsys):
    right = demo_training.fastadam.Adam.load

    def wrong(self, path):
        right(self, path)
        self.buffers.v[0] = np.nextafter(self.buffers.v[0], np.float32(1))

    monkeypatch.setattr(demo_training.fastadam.Adam, "load", wrong)
    assert demo.run("cpu", 0, tmp_path) == 1
    assert "saved and resumed in the middle ended with other parameters" in " ".join(capsys.readouterr().err.split())


def test_on_cuda_the_reference_takes_copies_of_the_gradients_from_the_device(short, monkeypatch, tmp_path, capsys):
    waits = []
    stream = SimpleNamespace(synchronize=lambda: waits.append(1))
    runtime = SimpleNamespace(getDeviceCount=lambda: 1)
    cuda = SimpleNamespace(runtime=runtime, get_current_stream=lambda: stream)
    copy = np.array
    stand_in = SimpleNamespace(asarray=copy, asnumpy=copy, zeros=np.zeros, ndarray=type(None), cuda=cuda)
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    followed = []
    find = demo_training.ReferenceRun.find_gradients

    def find_and_compare(self, rows):
        find(self, rows)
        followed.append(all(np.array_equal(self.gradients[name], g) for name, g in self._leader.gradients.items()))

    monkeypatch.setattr(demo_training.ReferenceRun, "find_gradients", find_and_compare)
    assert demo.run("cuda", 0, tmp_path) == 0
    steps = 5 + 22
    assert followed == [True] * steps
    assert len(waits) >= 2 * 2 * steps
    printed = " ".join(capsys.readouterr().out.split())
    assert "Fed with the gradients from the GPU" in printed
    assert "exactly the same" not in printed


# The whole demo, but for a language model that takes seconds on a busy machine.
SHORT = """
from dataclasses import replace
from fastadam.demo import language, run
task = replace(language.language(), model=language.ByteModel(4, 40), epochs=2, batches=3)
run.language = lambda: task
"""


def command_line(*arguments, directory, blocked=(), prepare=""):
    """The finished process of `fastadam`, after the code `prepare`; `blocked` packages cannot be imported in it."""
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n{prepare}\n"
    command = [sys.executable, "-c", code + "from fastadam.cli import main; main()", *arguments]
    if not blocked and not prepare:
        command[1:3] = ["-m", "fastadam"]
    return run_process(command, cwd=directory, capture_output=True, text=True, timeout=120)


def test_the_demo_runs_from_start_to_end(tmp_path):
    finished = command_line("demo", "--output", "some/where", directory=tmp_path, prepare=SHORT)
    assert finished.returncode == 0, finished.stderr
    pictures = sorted(tmp_path.rglob("*.*"))
    assert pictures == [tmp_path / "some" / "where" / name for name in (demo.LANGUAGE_PICTURE, demo.PICTURE)]
    for picture in pictures:
        assert picture.read_bytes().startswith(PNG_SIGNATURE)
    rows = [line.split() for line in finished.stdout.splitlines()]
    rows = {name: [row for row in rows if row and row[0] == name] for name in ("textbook", "reference", "fastadam")}
    for name, (regression, classifier) in ((name, found[:2]) for name, found in rows.items()):
        assert float(regression[1]) == pytest.approx(0.48225, abs=1e-4), name
        assert float(classifier[2].rstrip("%")) >= 96, name
    assert [row[-1] for row in rows["reference"]] == ["0", "0"]
    assert all(0 < float(row[-1]) < 0.1 for row in rows["textbook"][:2])
    printed = " ".join(finished.stdout.split())
    for text in (
        "kernels compiled, or loaded from their cache, in",
        "exactly the same parameters",
        "times as long as",
        "ended the same to the last bit",
        "textbook writes: The statement is executed by",
        "fastadam writes: The statement is executed by",
    ):
        assert text in printed
    for picture in pictures:
        assert str(picture.relative_to(tmp_path)) in printed


def cuda_works():
    try:
        demo.cuda_device()
    except demo.DemoError:
        return False
    return True


def check_refused(finished, directory, *texts):
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.startswith("fastadam: ")
    assert len(finished.stderr.splitlines()) == 1
    for text in texts:
        assert text in finished.stderr
    assert not any(path.suffix for path in directory.rglob("*"))


def test_cuda_without_a_device_is_refused(tmp_path):
    if cuda_works():
        pytest.skip("a CUDA device works here")
    finished = command_line("demo", "--device", "cuda", directory=tmp_path)
    check_refused(finished, tmp_path, "--device cuda needs", 'pip install "fastadam[cuda12]"')
    assert list(tmp_path.iterdir()) == []


def test_cuda_without_cupy_is_refused(tmp_path):
    finished = command_line("demo", "--device", "cuda", directory=tmp_path, blocked=["cupy"])
    check_refused(finished, tmp_path, "--device cuda needs CuPy", 'pip install "fastadam[cuda12]"')
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    finished = command_line("demo", "--output", "file", directory=tmp_path)
    check_refused(finished, tmp_path, "--output file must be a directory that can be written")


@pytest.mark.parametrize(
    ("module", "package"),
    [("typer", "typer"), ("rich", "rich"), ("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")],
)
def test_a_missing_package_of_the_extra_is_named(tmp_path, module, package):
    finished = command_line("demo", directory=tmp_path, blocked=[module])
    check_refused(finished, tmp_path, f"{package} is not installed", 'pip install "fastadam[demo]"')


@pytest.mark.parametrize("command", ["bench", "checkpoint"])
def test_a_missing_package_of_another_command_is_named(tmp_path, command):
    finished = command_line(command, "x", directory=tmp_path, blocked=["typer"])
    check_refused(finished, tmp_path, "typer is not installed", f'pip install "fastadam[{command}]"')


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_without_typer_says_which_command_needs_which_extra(tmp_path, arguments):
    finished = command_line(*arguments, directory=tmp_path, blocked=["typer"])
    texts = ("`info` needs no extra", "`demo`, `bench` and `checkpoint`", 'pip install "fastadam[demo]"')
    check_refused(finished, tmp_path, *texts)
    assert finished.stderr.count("\n") == 1


def test_version(tmp_path):
    finished = command_line("--version", directory=tmp_path, blocked=["typer", "rich"])
    assert (finished.returncode, finished.stdout) == (0, f"{versions()}\n")
