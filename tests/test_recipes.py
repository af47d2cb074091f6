"""The recipes of examples/: what each promises comes true. Those of Lightning and the Trainer run in tests/hosts."""

import re
import subprocess
import sys
from pathlib import Path

import larger_than_memory
import many_small_models
import numpy as np
import online_learning
import pytest
import splats
from oracle import bits

import fastadam

EXAMPLES = Path(larger_than_memory.__file__).parent


def printed(recipe):
    """What a recipe prints, run as its docstring says."""
    done = subprocess.run([sys.executable, EXAMPLES / recipe], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_in_the_gallery():
    page = (EXAMPLES.parent / "docs" / "how-to" / "recipes.md").read_text("utf-8")
    assert set(re.findall(r"\(\.\./\.\./examples/(\w+\.py)\)", page)) == {path.name for path in EXAMPLES.glob("*.py")}


def test_autograd_trains_to_what_its_own_adam_gives():
    pytest.importorskip("autograd")
    import hips_autograd as recipe
    from autograd import grad
    from autograd.misc.optimizers import adam

    params, (places, labels) = recipe.initial(), recipe.spirals()
    gradient = grad(recipe.loss)
    options = {"step_size": recipe.LEARNING_RATE, "num_iters": 60}
    theirs = adam(lambda p, _: gradient(p, places, labels), {name: p.copy() for name, p in params.items()}, **options)
    recipe.train(params, places, labels, steps=60)
    for name, p in params.items():
        np.testing.assert_allclose(p, theirs[name], rtol=1e-8, atol=1e-10, err_msg=name)
    recipe.train(params, places, labels)
    assert recipe.accuracy(params, places, labels) > 0.98


# --- a cloud of Gaussians


def test_gradients_of_the_cloud_are_the_slopes_of_its_error():
    params, target, corner = splats.cloud(), splats.picture(), np.array([20, 30])
    splats.train(params, target, steps=20)
    params = {name: p.astype(np.float64) for name, p in params.items()}
    rows = np.flatnonzero(splats.in_view(params, corner, splats.WINDOW))
    target = target.astype(np.float64)
    window = target[20 : 20 + splats.WINDOW, 30 : 30 + splats.WINDOW].reshape(-1, 3)

    def error(name, moved):
        image, *_ = splats.painted({**params, name: moved}, rows, corner, splats.WINDOW)
        return 0.5 * np.sum((image - window) ** 2)

    rng = np.random.default_rng(0)
    for name, gradient in splats.gradients(params, rows, corner, target).items():
        direction = np.zeros_like(params[name])
        direction[rows] = rng.standard_normal(gradient.shape)
        slope = (error(name, params[name] + 1e-5 * direction) - error(name, params[name] - 1e-5 * direction)) / 2e-5
        assert slope == pytest.approx(np.sum(gradient * direction[rows]), rel=1e-6), name


def test_what_is_out_of_view_stays_and_the_picture_is_found():
    params, target = splats.cloud(), splats.picture()
    splats.train(params, target, steps=20)  # colours are zero at first, and then nothing pulls at places
    opt = splats.optimizer(params)
    for corner in (np.array([0, 0]), np.array([40, 20]), np.array([0, 0])):
        before = {name: p.copy() for name, p in params.items()}
        moments = {name: entry["exp_avg"].copy() for name, entry in opt.state_dict()["state"].items()}
        mask = splats.step(params, opt, corner, target)
        assert 0.02 < mask.mean() < 0.5
        for name, p in params.items():
            assert np.array_equal(p[~mask], before[name][~mask])
            assert not np.array_equal(p[mask], before[name][mask])
            assert np.array_equal(opt.state_dict()["state"][name]["exp_avg"][~mask], moments[name][~mask])
    first = splats.quality(params, target)
    splats.train(params, target)
    assert splats.quality(params, target) > max(18, first + 5)


# --- a stream


def test_the_stream_is_followed_and_broken_readings_change_nothing():
    model, readings = online_learning.OnlineClassifier(), list(online_learning.stream())
    assert np.mean(online_learning.learn(model, readings)) > 0.94
    broken = [pair for pair in readings if not np.isfinite(pair[0]).all()]
    assert model.opt.skipped_steps == len(broken) > 50
    before = bits(model.params)
    online_learning.learn(model, broken[:50])
    assert bits(model.params) == before


def test_a_restart_of_the_stream_changes_no_bit(tmp_path):
    readings = list(online_learning.stream())[:400]
    whole, halves = online_learning.OnlineClassifier(), online_learning.OnlineClassifier()
    online_learning.learn(whole, readings)
    online_learning.learn(halves, readings[:200])
    halves.opt.save(tmp_path / "stream.safetensors")
    halves = online_learning.OnlineClassifier()
    halves.opt.load(tmp_path / "stream.safetensors")
    online_learning.learn(halves, readings[200:])
    assert bits(halves.params) == bits(whole.params)


# --- many small models


def test_an_agent_among_many_has_the_bits_of_one_alone():
    together, alone = many_small_models.population(), many_small_models.population()
    opt = many_small_models.optimizer(together)
    many_small_models.train(together, opt, steps=12)
    taken = {entry["step"] for entry in opt.state_dict()["state"].values()}
    assert max(taken) <= 12
    assert len(taken) > 3  # episodes end at different times
    for number in (1, 38):
        many_small_models.train(alone, many_small_models.optimizer(alone, [number]), [number], steps=12)
        assert bits(many_small_models.agent(alone, number)) == bits(many_small_models.agent(together, number))
    start = many_small_models.population()
    assert bits(many_small_models.agent(alone, 0)) == bits(many_small_models.agent(start, 0))


def test_the_population_finds_the_learning_rate():
    stacked = many_small_models.population()
    rewards = many_small_models.train(stacked, many_small_models.optimizer(stacked)).reshape(-1, 4).mean(axis=0)
    assert rewards.argmax() == many_small_models.RATES.index(0.03)
    assert rewards.max() > 0.8 > 0.4 > rewards[0]


# --- larger than memory


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts allocated memory on Linux")
def test_a_state_larger_than_the_limit_of_memory_trains():
    output = printed("larger_than_memory.py")
    assert "moments in memory: MemoryError: Unable to allocate 48.0 MiB" in output
    assert "in 4 files: 192 MiB, 32 MiB may be allocated" in output
    first, last = map(float, re.findall(r"(\d\.\d+) before", output))
    assert 0 < last < first / 5


def test_a_field_in_files_has_the_bits_of_one_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(larger_than_memory, "SIDE", 150)
    in_files = larger_than_memory.optimizer(tmp_path, (150, 150))
    in_memory = fastadam.Adam({"field": np.zeros((150, 150), np.float32)}, lr=0.1)
    for opt in (in_files, in_memory):
        for _ in range(4):
            larger_than_memory.step(opt)
    assert bits(in_files.params) == bits(in_memory.params)
    assert (tmp_path / "field").read_bytes() == in_memory.params["field"].tobytes()
    assert {path.name for path in tmp_path.iterdir()} == {"field", "0.m", "0.v", "0.g"}


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("hips_autograd.py", r"after:  loss 0\.\d+, (9[89]|100)% right"),
        ("splats.py", r"after 600 windows: (1[89]|2\d)\.\d dB; a window showed 1\d% of 1500"),
        ("online_learning.py", r"9\d\.\d%, and after a restart 9\d\.\d%"),
        ("many_small_models.py", r"learning rate 0\.03 +mean reward 0\.8"),
    ],
)
def test_it_says_what_came_out(recipe, told, capsys):
    module = pytest.importorskip(recipe.removesuffix(".py"))
    module.main()
    assert re.search(told, capsys.readouterr().out)
