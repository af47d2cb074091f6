"""The demo's language model: its text, its training in turns, and what is reported of it."""

import signal
import sys
from dataclasses import replace
from subprocess import PIPE, Popen

import numpy as np
import pytest

import fastadam
from fastadam.demo import language_report as report
from fastadam.demo import run as demo
from fastadam.demo.language import CONTEXT, HELD_OUT, HELD_OUT_BYTES, ByteModel, documentation, language
from fastadam.demo.language_run import language_contenders, train_in_turns, warm_up_language
from fastadam.demo.training import CPU, FastRun, TextbookRun


@pytest.fixture
def task():
    """The language model, but small, on six small batches."""
    return replace(language(), model=ByteModel(4, 40), batch_size=24, epochs=2, batches=3)


def test_the_model_has_millions_of_parameters_and_starts_alike_from_the_same_seed():
    task = language()
    one, same, other = task.initial(3), task.initial(3), task.initial(4)
    assert 2_000_000 <= sum(p.size for p in one.values()) <= 5_000_000
    assert all(p.dtype == np.float32 for p in one.values())
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["weights1"], other["weights1"])
    # Nothing is known at the start: the loss is near that of equal probabilities for 256 bytes.
    assert abs(float(task.model.loss(one, *task.judged)) - np.log(256)) < 1


def test_the_text_is_pythons_documentation_in_the_order_of_its_topics():
    from pydoc_data.topics import topics

    text = documentation()
    assert text.dtype == np.uint8
    assert text.size > 300_000
    assert bytes(text).decode().split() == [word for _, page in sorted(topics.items()) for word in page.split()]
    assert not {b"  ", b"\n"} & {bytes(text[at : at + size]) for size in (1, 2) for at in range(len(text))}


def test_windows_are_followed_by_their_bytes_and_none_that_is_held_out_is_trained_on():
    task, text = language(), documentation()
    for row in (0, 1234, len(task.x) - 1):
        assert bytes(task.x[row]) == bytes(text[row : row + CONTEXT])
        assert task.y[row] == text[row + CONTEXT]
    assert len(task.x) == len(task.y) == len(text) - HELD_OUT_BYTES - CONTEXT
    end = bytes(text[-HELD_OUT_BYTES:])
    assert task.test_x.shape == (HELD_OUT, CONTEXT)
    for window, following in zip(task.test_x, task.test_y, strict=True):
        assert bytes(window) + bytes([following]) in end
    assert bytes(task.test_x[-1]) + bytes([task.test_y[-1]]) == end[-CONTEXT - 1 :]


@pytest.mark.parametrize("module", ["pydoc_data", "pydoc_data.topics"])
def test_a_python_without_documentation_is_refused_before_training(monkeypatch, tmp_path, capsys, module):
    monkeypatch.delitem(sys.modules, "pydoc_data.topics", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(demo.DemoError, match=r"pydoc_data\.topics.*whole standard library"):
        demo.run("cpu", 0, tmp_path)
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_samples_go_on_from_the_prompt_by_the_probabilities_of_the_model():
    model = ByteModel(4, 8)
    params = model.initial(np.random.default_rng(0), 5, 1)
    one = model.sample(params, b"If a class ", 60, seed=1)
    assert one == model.sample(params, b"If a class ", 60, seed=1)
    assert one != model.sample(params, b"If a class ", 60, seed=2)
    # It sees the last five bytes, and a shorter prompt after spaces.
    assert one == model.sample(params, b"class ", 60, seed=1)
    assert model.sample(params, b"a", 60, seed=1) == model.sample(params, b"    a", 60, seed=1)
    for name in ("weights1", "weights2"):
        params[name][...] = 0
    params["bias2"][ord("e")] = 100
    assert model.sample(params, b"a", 7, seed=1) == "eeeeeee"


def test_samples_are_printable(task):
    run = FastRun(task, CPU, 0)
    run.params["bias2"][:32] = 100
    (said,) = report.samples([run], seed=0, length=50)
    assert said == "fastadam writes: The statement is executed by " + 50 * "\N{REPLACEMENT CHARACTER}"


def test_each_optimizer_trains_for_a_whole_turn_on_the_same_batches(task, monkeypatch):
    seen = []
    monkeypatch.setattr(TextbookRun, "find_gradients", lambda run, rows: seen.append((run.name, rows.tolist())))
    monkeypatch.setattr(FastRun, "find_gradients", lambda run, rows: seen.append((run.name, rows.tolist())))
    runs, advanced = [TextbookRun(task, CPU, 0), FastRun(task, CPU, 0)], []
    train_in_turns(runs, 5, lambda run: advanced.append(run.name))
    names = [name for name, _ in seen]
    assert names == advanced == (["textbook"] * 3 + ["fastadam"] * 3) * 2
    batches = [rows for _, rows in seen]
    assert batches[:3] == batches[3:6]
    assert batches[6:9] == batches[9:]
    assert batches[:3] != batches[6:9]
    assert all(len(rows) == 24 for rows in batches)
    assert [len(run.losses) for run in runs] == [len(run.seconds) for run in runs] == [2, 2]


def test_all_optimizers_agree_to_rounding_and_learn(task):
    task = replace(task, epochs=4, batches=10)
    warm_up_language(task, 0)
    runs = language_contenders(task, 0)
    start = float(task.model.loss(runs[0].params, *task.judged))
    train_in_turns(runs, 0, lambda run: None)
    assert report.furthest_apart(runs) < 1e-5
    for run in runs:
        assert len(run.step_seconds) == task.steps
        assert run.losses[-1] < start - 0.5
        for name, p in runs[0].params.items():
            np.testing.assert_allclose(run.params[name], p, rtol=0, atol=2e-4, err_msg=f"{run.name}, {name}")


def test_gradients_are_kept_in_the_same_arrays_where_the_optimizers_read_them(task):
    for run in (TextbookRun(task, CPU, 0), FastRun(task, CPU, 0)):
        before = dict(run.gradients)
        for rows in (np.arange(24), np.arange(24, 48)):
            run.train_on(rows)
        assert all(run.gradients[name] is gradient for name, gradient in before.items())
        if isinstance(run, FastRun):
            assert all(np.shares_memory(run._optimizer.grads[name], gradient) for name, gradient in before.items())


def test_the_model_in_torch_has_the_gradients_of_the_model_in_numpy(task):
    pytest.importorskip("torch")
    from fastadam.demo.torch_run import torch_runs

    rows = np.arange(300, 400)
    for run in torch_runs(task, 0):
        run.find_gradients(rows)
        expected = task.model.gradients(task.initial(0), task.x[rows], task.y[rows])
        assert run.gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            np.testing.assert_allclose(run.gradients[name].numpy(), gradient, rtol=1e-4, atol=1e-7, err_msg=name)


def test_torch_trains_the_arrays_on_which_the_loss_is_noted(task):
    pytest.importorskip("torch")
    from fastadam.demo.torch_run import torch_runs

    for run in torch_runs(task, 0):
        run.train_on(np.arange(24))
        assert not np.array_equal(run.params["weights1"], task.initial(0)["weights1"])


def test_without_torch_the_contenders_are_those_in_numpy(task, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert [run.name for run in language_contenders(task, 0)] == ["textbook", "fastadam"]


@pytest.fixture
def measured(task):
    """Runs with figures of our own: fastadam has the lower loss sooner."""
    runs = [TextbookRun(task, CPU, 0), FastRun(task, CPU, 0)]
    textbook, fast = runs
    textbook.losses, textbook.seconds = [3.0, 2.0, 2.5], [10.0, 20.0, 30.0]
    fast.losses, fast.seconds = [3.03, 1.99, 2.4], [5.0, 9.0, 14.0]
    textbook.step_seconds, textbook.gradient_seconds = [2.0, 2.0, 8.0], 18.0
    fast.step_seconds, fast.gradient_seconds = [0.5, 0.5, 0.4], 12.6
    return runs


def cells(runs):
    """The table of `runs`: heading -> cells."""
    return {" ".join(column.header.split()): list(column.cells) for column in report.table(runs).columns}


def test_the_table_has_the_figures_of_the_runs(measured):
    shown = cells(measured)
    assert shown["Optimizer"] == ["textbook", "fastadam"]
    assert shown["Held-out loss"] == ["2.5000", "2.4000"]
    assert shown["Median step"] == ["2000.00 ms", "500.00 ms"]
    assert shown["Step's share"] == ["40.0%", "10.0%"]
    assert shown["Time to loss 2.000"] == ["20.0 s", "9.0 s"]


def test_the_sentences_have_the_figures_of_the_table_whoever_is_faster(measured):
    (said,) = report.gain(measured)
    assert said == (
        "fastadam takes 10.0% of its training for steps, and reaches a loss of 2.000 in 9.0 s; textbook takes 40.0%, "
        "and reaches it in 20.0 s. Gradients, the same work for both, took 12.6 s and 18.0 s in all."
    )
    textbook, fast = measured
    textbook.seconds, fast.seconds = fast.seconds, textbook.seconds
    textbook.step_seconds, fast.step_seconds = fast.step_seconds, textbook.step_seconds
    textbook.gradient_seconds, fast.gradient_seconds = fast.gradient_seconds, textbook.gradient_seconds
    (said,) = report.gain(measured)
    assert "fastadam takes 40.0%" in said
    assert "in 20.0 s; textbook takes 10.0%, and reaches it in 9.0 s." in said
    assert "took 18.0 s and 12.6 s in all." in said


def test_losses_are_compared_after_the_same_steps(measured):
    textbook, fast = measured
    assert report.furthest_apart(measured) == pytest.approx(2.5 / 2.4 - 1)
    fast.losses[1] = np.nan
    assert np.isnan(report.furthest_apart(measured))
    textbook.losses, fast.losses = [2.0, np.nan, np.nan], [np.nan, np.nan, np.nan]
    assert report.time_to(fast, 2.0) == np.inf


def test_measured_times_add_up(task):
    run = FastRun(task, CPU, 0)
    train_in_turns([run], 0, lambda run: None)
    assert run.seconds[-1] == pytest.approx(run.gradient_seconds + sum(run.step_seconds), rel=1e-12)
    assert run.seconds == sorted(run.seconds)
    assert run.optimizer_share == pytest.approx(sum(run.step_seconds) / run.seconds[-1])


@pytest.fixture
def little(task, monkeypatch):
    """The demo with a small language model and next to nothing before it."""
    diabetes, digits = demo.diabetes(), demo.digits(0)
    monkeypatch.setattr(demo, "diabetes", lambda: replace(diabetes, epochs=2))
    monkeypatch.setattr(demo, "digits", lambda seed: replace(digits, epochs=1))
    monkeypatch.setattr(demo, "language", lambda: task)


def test_steps_of_the_language_model_take_one_thread_as_its_table_says(little, monkeypatch, tmp_path, capsys):
    counts, step = [], FastRun.step

    def counting(run):
        counts.append(fastadam.get_num_threads())
        step(run)

    monkeypatch.setattr(FastRun, "step", counting)
    before = fastadam.get_num_threads()
    assert demo.run("cpu", 0, tmp_path) == 0
    assert counts[-6:] == [1] * 6
    assert counts[0] == fastadam.get_num_threads() == before
    assert report.CAPTION in capsys.readouterr().out


@pytest.mark.parametrize(("version", "reason"), [(None, "which is not installed"), ("2.6.1", "got 2.6.1")])
def test_without_a_torch_that_is_new_enough_the_demo_says_why(little, monkeypatch, tmp_path, capsys, version, reason):
    if version is None:
        monkeypatch.setitem(sys.modules, "torch", None)
    else:
        monkeypatch.setattr(pytest.importorskip("torch"), "__version__", version)
    assert demo.run("cpu", 0, tmp_path) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Without torch's AdamW and ours in its place: fastadam.torch needs torch 2.7 or newer, " + reason in said
    assert "Language model of bytes, fastadam.torch" not in said


@pytest.mark.parametrize("error", [1.0, np.nan])
def test_losses_that_come_apart_are_an_error(little, monkeypatch, tmp_path, capsys, error):
    loss = ByteModel.loss
    noted = []

    def wrong(model, params, x, y):
        noted.append(params)
        return loss(model, params, x, y) + (error if len(noted) == 2 else 0)

    monkeypatch.setattr(ByteModel, "loss", wrong)
    assert demo.run("cpu", 0, tmp_path) == 1
    printed = capsys.readouterr()
    assert "the losses of the language model came" in " ".join(printed.err.split())
    assert "takes" not in printed.out.partition("Language model of bytes:")[2]


def test_the_language_model_is_left_out_where_small_models_differ_from_their_reference(
    little, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(demo, "_verdict", lambda *arguments: 1)
    assert demo.run("cpu", 0, tmp_path) == 1
    assert "Language model" not in capsys.readouterr().out


def test_an_interrupt_ends_the_demo_without_a_traceback(tmp_path):
    # Where the tests run in the background, SIGINT may be ignored, and a child inherits that.
    heard = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    module = "runpy.run_module('fastadam', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", f"{heard}; {module}", "demo", "--output", "here"]
    with Popen(command, cwd=tmp_path, stdout=PIPE, stderr=PIPE, text=True) as process:
        assert "kernels compiled" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in printed
    assert list(tmp_path.rglob("*.*")) == []


def test_a_model_without_choices_has_no_accuracy():
    with pytest.raises(NotImplementedError, match="LinearRegression"):
        demo.diabetes().model.accuracy({}, None, None)
