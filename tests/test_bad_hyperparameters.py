"""Hyperparameters out of range: the constructor, a group's assignment and `adam_step` refuse them alike."""

import numpy as np
import pytest
from refusal import F4, INF, NAN, adam_step_refuses, refuses

import fastadam

HYPERPARAMETERS = [
    ("lr", -1e-3, ValueError, r"`lr` must be >= 0, got -0\.001"),
    ("lr", NAN, ValueError, "`lr` must be finite, got nan"),
    ("lr", INF, ValueError, "`lr` must be finite, got inf"),
    ("lr", "0.1", TypeError, "`lr` must be a real number, got '0.1'"),
    ("lr", None, TypeError, "`lr` must be a real number, got None"),
    ("lr", 1j, TypeError, "`lr` must be a real number, got 1j"),
    ("lr", [0.1, 0.2], TypeError, "`lr` must be a real number"),
    ("lr", np.ones(2), TypeError, "`lr` must be a real number"),
    ("eps", -1e-8, ValueError, "`eps` must be >= 0, got -1e-08"),
    ("eps", NAN, ValueError, "`eps` must be finite, got nan"),
    ("weight_decay", -0.5, ValueError, r"`weight_decay` must be >= 0, got -0\.5"),
    ("weight_decay", NAN, ValueError, "`weight_decay` must be finite, got nan"),
    ("betas", (1.0, 0.999), ValueError, r"`betas\[0\]` must be in \[0, 1\), got 1\.0"),
    ("betas", (0.9, 1.5), ValueError, r"`betas\[1\]` must be in \[0, 1\), got 1\.5"),
    ("betas", (-0.1, 0.999), ValueError, r"`betas\[0\]` must be >= 0, got -0\.1"),
    ("betas", (0.9, NAN), ValueError, r"`betas\[1\]` must be finite, got nan"),
    ("betas", 0.9, TypeError, "`betas` must be a pair .*, got 0.9"),
    ("betas", (0.9,), TypeError, r"`betas` must be a pair .*, got \(0\.9,\)"),
    ("betas", "99", TypeError, "`betas` must be a pair .*, got '99'"),
    ("maximize", 1, TypeError, "`maximize` must be True or False, got 1"),
    ("decoupled_weight_decay", "no", TypeError, "`decoupled_weight_decay` must be True or False, got 'no'"),
]
hyperparameters = pytest.mark.parametrize(("key", "value", "error", "message"), HYPERPARAMETERS)


@hyperparameters
def test_hyperparameter_of_the_constructor(key, value, error, message):
    params = {"w": np.ones(4, F4)}
    refuses(lambda: fastadam.Adam(params, **{key: value}), error, message, params)
    refuses(lambda: fastadam.Adam([{"params": params, key: value}]), error, message, params)
    fastadam.Adam(params).step({"w": np.ones(4, F4)})


@hyperparameters
def test_hyperparameter_of_a_group(key, value, error, message):
    opt, added = fastadam.Adam({"w": np.ones(4, F4)}), {"added": np.ones(2, F4)}
    refuses(lambda: opt.param_groups[0].update({key: value}), error, message, opt)
    refuses(lambda: opt.param_groups[0].__setitem__(key, value), error, message, opt)
    refuses(lambda: opt.add_param_group({"params": added, key: value}), error, message, opt, added)


@hyperparameters
def test_hyperparameter_of_adam_step(key, value, error, message):
    adam_step_refuses({key: value}, error, message)


WRONG_SCHEDULES = {
    "no argument": (lambda: 0.1, "too many positional arguments"),
    "two arguments": (lambda step, total: 0.1, "missing a required argument: 'total'"),
    "a keyword": (lambda *, step: 0.1, "too many positional arguments"),
}


@pytest.mark.parametrize(("schedule", "reason"), WRONG_SCHEDULES.values(), ids=WRONG_SCHEDULES)
def test_schedule_that_cannot_be_called_with_a_step(schedule, reason):
    message = f"`lr` must be a number or a function of the number of earlier steps, got <function .*>: {reason}"
    params, opt = {"w": np.ones(4, F4)}, fastadam.Adam({"w": np.ones(4, F4)})
    refuses(lambda: fastadam.Adam(params, lr=schedule), TypeError, message, params)
    refuses(lambda: opt.param_groups[0].__setitem__("lr", schedule), TypeError, message, opt)


@pytest.mark.parametrize(
    "schedule", [lambda step: 0.5, lambda *steps: 0.5, lambda step, total=9: 0.5, max, {0: 0.5}.get]
)
def test_schedule_that_can_be_called_or_has_no_signature(schedule):
    assert fastadam.Adam({"w": np.ones(4, F4)}, lr=schedule).param_groups[0]["lr"] is schedule
