"""The studies of storage formats: models have right gradients, formats train, and codes keep what is told of them."""

import json

import numpy as np
import pytest
import quantisation
import storage_study
from storage_models import CHARACTERS, characters_problem, digits_problem, text

PROBLEMS = {"digits": digits_problem, "characters": characters_problem}


@pytest.fixture(scope="module")
def problems():
    return {name: make() for name, make in PROBLEMS.items()}


def test_text_is_long_and_always_the_same():
    assert len(text()) == CHARACTERS
    assert text() == text()


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_are_the_slopes_of_the_loss(problems, name):
    problem, rng = problems[name], np.random.default_rng(0)
    params = {key: value.astype(np.float64) for key, value in problem.initial(rng).items()}
    x, y = problem.batch(rng)
    _, gradients = problem.gradients(params, x, y)
    for key, gradient in gradients.items():
        direction = rng.standard_normal(gradient.shape)
        losses = []
        for side in (1e-6, -1e-6):
            moved = {**params, key: params[key] + side * direction}
            losses.append(problem.gradients(moved, x, y)[0])
        slope = (losses[0] - losses[1]) / 2e-6
        assert slope == pytest.approx(np.sum(gradient * direction), rel=1e-3, abs=1e-7)


TRAININGS = [("digits", chosen) for chosen in storage_study.FORMATS]
TRAININGS += [("characters", chosen) for chosen in storage_study.FORMATS[::6]]


@pytest.mark.parametrize(("name", "chosen"), TRAININGS, ids=[f"{name}-{chosen.name}" for name, chosen in TRAININGS])
def test_every_format_trains(problems, name, chosen, monkeypatch):
    monkeypatch.setattr(storage_study, "STEPS", 120)
    run = storage_study.train(problems[name], chosen, seed=0)
    assert len(run.curve) == 6
    assert run.curve[-1] < 0.95 * run.curve[0]


def test_results_become_a_table_and_a_picture(tmp_path, monkeypatch):
    runs = {name: [storage_study.Run([2.0, 1.0], final) for final in (1.0, 1.5)] for name in ("float32", "worse")}
    runs["worse"] = [run._replace(final=3.0) for run in runs["worse"]]
    assert [row[-1] for row in storage_study.rows_of(runs)] == ["-", "**worse**"]
    storage_study.draw({"one": runs, "other": runs}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(storage_study, "DOCS", tmp_path)
    storage_study.save({"one": runs})
    saved = json.loads((tmp_path / "storage-study.json").read_text())
    assert saved["losses"] == {"one": {"float32": [1.0, 1.5], "worse": [3.0, 3.0]}}
    assert saved["tables"]["**one**"][1] == ["worse", "3.0000, 3.0000", "3.0000", "+3.50", "**worse**"]
    assert len(saved["columns"]) == 4


def test_what_moments_keep_is_measured_against_float64(monkeypatch):
    monkeypatch.setattr(quantisation, "STEPS", 30)
    names = ["fastadam, float32", *list(quantisation.CONTENDERS)[:2]]
    monkeypatch.setitem(quantisation.CONTENDERS, names[0], quantisation.of_fastadam)
    exact, codes, bfloat16 = quantisation.measure(quantisation.STREAMS["steady gradients"], names)
    assert exact[1:] == ["0.0000", "0.000", "+0.000", "0.0%", "0%"]
    for row in (codes, bfloat16):
        assert row[4:] == ["0.0%", "0%"]
    assert 0.3 > float(codes[1]) > float(bfloat16[1]) > 0
    assert 0.2 > float(codes[2]) > float(bfloat16[2]) > 0
