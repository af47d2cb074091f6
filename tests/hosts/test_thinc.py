"""Thinc: calls as of its own optimizer, its weights to rounding, configs, schedules, averages; and bad input."""

import copy
import doctest
import pickle
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest

import fastadam

pytest.importorskip("thinc")

from thinc.api import Adam as ThincAdam
from thinc.api import Optimizer, Relu, Softmax, chain, registry

import fastadam.thinc

KEY = (0, "W")


def arrays(shape=(5, 3), seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), dtype) for _ in range(2)]


# --- beside Thinc's own

CASES = {
    "defaults": {},
    "not clipped": {"grad_clip": 0.0},
    "clipped hard": {"grad_clip": 1e-2},
    "weight decay": {"L2": 0.1},
    "L2": {"L2": 0.1, "L2_is_weight_decay": False},
    "L2, not clipped": {"L2": 0.1, "L2_is_weight_decay": False, "grad_clip": 0.0},
    "no averages": {"use_averages": False},
    "large eps": {"eps": 0.1},
    "small betas": {"beta1": 0.2, "beta2": 0.3},
    "schedule": {"learn_rate": [0.01, 0.005, 0.02]},
    "schedule of clipping": {"grad_clip": [1.0, 0.1, 0.0]},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_weights_are_those_of_thinc(options):
    options = {"learn_rate": 0.01, **options}
    ours, theirs = fastadam.thinc.Adam(**copy.deepcopy(options)), ThincAdam(**copy.deepcopy(options))
    shapes = {(0, "W"): (40, 250), (0, "b"): (40,), (7, "E"): (3, 2, 2)}
    weights = {key: arrays(shape)[0] for key, shape in shapes.items()}
    twins = {key: array.copy() for key, array in weights.items()}
    for step in range(40):
        for key, shape in shapes.items():
            gradient = arrays(shape, step)[1] * np.float32(10.0 ** (step % 3 - 2))
            twin = gradient.copy()
            found = ours(key, weights[key], gradient, lr_scale=0.5 if step % 4 == 1 else 1.0)
            assert found[0] is weights[key]
            assert found[1] is gradient
            assert not gradient.any()
            twins[key], _ = theirs(key, twins[key], twin, lr_scale=0.5 if step % 4 == 1 else 1.0)
        ours.step_schedules()
        theirs.step_schedules()
    for key, array in weights.items():
        np.testing.assert_allclose(array, twins[key], rtol=1e-4, atol=2e-6)
        np.testing.assert_allclose(ours.mom2[key], theirs.mom2[key], rtol=1e-4, atol=1e-9)
        if ours.averages is not None:
            np.testing.assert_allclose(ours.averages[key], theirs.averages[key], rtol=1e-4, atol=2e-6)
    assert ours.nr_update == theirs.nr_update
    assert (ours.averages is None) == (theirs.averages is None)


# --- the cases of Thinc's own tests


def endless():
    while True:
        yield 0.456


SCHEDULES = {
    "number": (lambda: 0.123, [0.123, 0.123, 0.123]),
    "generator": (endless, [0.456, 0.456, 0.456]),
    "more values": (lambda: (i for i in [0.2, 0.1, 0.4, 0.5]), [0.2, 0.1, 0.4]),
    "fewer values": (lambda: (i for i in [0.333, 0.666]), [0.333, 0.666, 0.666]),
    "list": (lambda: [0.9, 0.8, 0.7], [0.9, 0.8, 0.7]),
    "from zero": (lambda: [0.0, 0.123], [0.0, 0.123, 0.123]),
}


@pytest.mark.parametrize("from_config", [False, True])
@pytest.mark.parametrize(("make", "rates"), SCHEDULES.values(), ids=SCHEDULES)
def test_schedules(make, rates, from_config):
    if from_config:
        config = {"optimizer": {"@optimizers": "fastadam.Adam.v1", "learn_rate": make()}}
        optimizer = registry.resolve(config)["optimizer"]
    else:
        optimizer = fastadam.thinc.Adam(make())
    assert type(optimizer) is fastadam.thinc.Adam
    assert isinstance(optimizer, Optimizer)
    found = [optimizer.learn_rate]
    for _ in rates[1:]:
        optimizer.step_schedules()
        found.append(optimizer.learn_rate)
    assert found == rates
    optimizer.learn_rate = 1.0
    assert optimizer.learn_rate == 1.0


@pytest.mark.parametrize("make", [lambda: "hello", lambda: iter(()), lambda: (_ for _ in []), lambda: []])
def test_what_is_no_schedule(make):
    with pytest.raises(ValueError, match="Invalid schedule for 'learn_rate'"):
        fastadam.thinc.Adam(make())


def test_calls_of_one_optimizer():
    optimizer = fastadam.thinc.Adam(0.123, use_averages=False, L2=0.1, L2_is_weight_decay=False)
    empty = np.zeros(0)
    assert optimizer((0, "x"), np.zeros((1, 2)), empty)[1] is empty
    assert optimizer.nr_update == {}
    weights, gradient = np.array([1, 0, 0, 1], "f"), np.array([-1, 0, 0, 1], "f")
    optimizer((0, "x"), weights, gradient)
    fastadam.thinc.Adam(0.123, beta1=0.1, beta2=0.1)((1, "x"), weights, gradient)
    assert np.isfinite(weights).all()


def test_an_unknown_key_of_a_config_is_named():
    with pytest.raises(Exception, match="learn_rates"):
        registry.resolve({"optimizer": {"@optimizers": "fastadam.Adam.v1", "learn_rates": 0.1}})


def test_a_model_is_trained_and_its_averages_used():
    results = []
    for kind in (fastadam.thinc.Adam, ThincAdam):
        rng = np.random.default_rng(0)
        model = chain(Relu(8, 4), Softmax(3, 8)).initialize()
        for node in model.walk():
            for name in node.param_names:
                node.set_param(name, np.asarray(rng.standard_normal(node.get_param(name).shape), "f"))
        optimizer, inputs = kind(0.01), np.asarray(rng.standard_normal((20, 4)), "f")
        targets = np.eye(3, dtype="f")[rng.integers(0, 3, 20)]
        for _ in range(30):
            outputs, backprop = model.begin_update(inputs)
            backprop((outputs - targets) / 20)
            model.finish_update(optimizer)
            optimizer.step_schedules()
        with model.use_params(optimizer.averages):
            averaged = model.predict(inputs)
        results.append((model.predict(inputs), averaged))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    assert np.abs(results[0][0] - results[0][1]).max() > 1e-4


def test_import_of_fastadam_alone_does_not_import_thinc():
    program = "import sys, fastadam; sys.exit('thinc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_the_example_in_the_docstring():
    assert doctest.testmod(fastadam.thinc.optimizer).attempted == 5
    assert doctest.testmod(fastadam.thinc.optimizer).failed == 0


# --- what else it must bear


@pytest.mark.parametrize("options", [{}, {"grad_clip": 0.0, "use_averages": False}], ids=str)
@pytest.mark.parametrize("when", range(0, 200, 7))
def test_an_interrupted_call_is_as_before_or_as_after_it(options, when):
    """KeyboardInterrupt at some line of fastadam within a call."""
    weights, gradient = arrays()
    optimizer, lines = fastadam.thinc.Adam(0.1, **options), iter(range(when))
    optimizer(KEY, weights, gradient.copy())
    twin = copy.deepcopy(optimizer)
    states = [weights.copy(), weights.copy()]
    twin(KEY, states[1], gradient.copy())

    def trace(frame, event, _):
        if "fastadam" not in frame.f_code.co_filename:
            return None
        if event == "line" and next(lines, None) is None:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        with suppress(KeyboardInterrupt):
            optimizer(KEY, weights, np.asfortranarray(gradient))
    finally:
        sys.settrace(None)
    number = optimizer.nr_update[KEY] - 1
    np.testing.assert_array_equal(weights, states[number])
    if not number:
        optimizer(KEY, weights, gradient.copy())
        np.testing.assert_array_equal(weights, states[1])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_go_on_bit_for_bit(duplicate):
    weights, gradient = arrays()
    optimizer = fastadam.thinc.Adam(0.1)
    optimizer(KEY, weights, gradient.copy())
    other, twin = duplicate(optimizer), weights.copy()
    for each, array in ((optimizer, weights), (other, twin)):
        each(KEY, array, gradient.copy())
    np.testing.assert_array_equal(weights, twin)
    np.testing.assert_array_equal(optimizer.averages[KEY], other.averages[KEY])
    assert optimizer.averages[KEY] is not other.averages[KEY]


def test_other_arrays_and_other_moments_are_found():
    results = []
    for moves in (False, True):
        weights, gradient = arrays(dtype=np.float64)
        optimizer = fastadam.thinc.Adam(0.1)
        for _ in range(4):
            optimizer(KEY, weights, np.asfortranarray(gradient) if moves else gradient.copy())
            if moves:
                weights = weights.copy()
                optimizer.mom1[KEY] = optimizer.mom1[KEY].copy()
        results.append(weights)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("name", ["mom1", "mom2", "averages"])
def test_what_is_replaced_in_the_state_counts(name):
    results = []
    for replaces in (False, True):
        optimizer, (weights, gradient) = fastadam.thinc.Adam(0.1), arrays()
        given = gradient.copy()
        for _ in range(2):
            given[...] = gradient
            optimizer(KEY, weights, given)
            kept = getattr(optimizer, name)
            if replaces:
                kept[KEY] = np.full_like(kept[KEY], 0.5)
            else:
                kept[KEY][...] = 0.5
        given[...] = gradient
        optimizer(KEY, weights, given)
        results.append((weights, optimizer.averages[KEY]))
    np.testing.assert_array_equal(*results)


def read_only(array):
    array.flags.writeable = False
    return array


W = np.ones((4, 3), np.float32)
BAD = {
    "list": (lambda: (W.copy(), [[1.0] * 3] * 4), TypeError, "`gradient` must be a NumPy array, got list"),
    "integers": (lambda: (np.ones(3, int), np.ones(3, int)), TypeError, "`weights` must be float32 or float64"),
    "dtype": (lambda: (W.copy(), W.astype("d")), TypeError, "`gradient` must be float32 like the weights, got float64"),
    "shape": (lambda: (W.copy(), np.ones(4, "f")), ValueError, r"`gradient` must have shape \(4, 3\)"),
    "read-only": (lambda: (read_only(W.copy()), W.copy()), ValueError, "`weights` must be writable"),
    "strides": (lambda: (W.T, W.T.copy()), ValueError, "`weights` must be C-contiguous"),
    "overlap": (lambda: (W, W), ValueError, "`gradient` must not overlap `weights`"),
}


@pytest.mark.parametrize(("make", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arrays(make, error, message):
    optimizer = fastadam.thinc.Adam()
    with pytest.raises(error, match=message):
        optimizer(KEY, *make())
    assert optimizer.nr_update == optimizer.mom1 == {}
    assert (W == 1.0).all()


SETTINGS = {
    "learn_rate": (-0.1, "`learn_rate` must be >= 0, got -0.1"),
    "beta1": (1.0, r"`beta1` must be in \[0, 1\), got 1.0"),
    "beta2": (-1.0, "`beta2` must be >= 0, got -1.0"),
    "eps": (float("nan"), "`eps` must be finite, got nan"),
    "L2": (-1, "`L2` must be >= 0, got -1.0"),
    "grad_clip": (-1.0, "`grad_clip` must be >= 0, got -1.0"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_bad_settings(name):
    value, message = SETTINGS[name]
    with pytest.raises(ValueError, match=message):
        fastadam.thinc.Adam(**{name: value})
    optimizer, (weights, gradient) = fastadam.thinc.Adam(), arrays()
    kept = weights.copy(), gradient.copy()
    setattr(optimizer, {"beta1": "b1", "beta2": "b2"}.get(name, name), value)
    with pytest.raises(ValueError, match=message):
        optimizer(KEY, weights, gradient)
    np.testing.assert_array_equal(kept, (weights, gradient))
    with pytest.raises(AttributeError):
        optimizer.learning_rate = 0.1
