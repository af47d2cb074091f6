"""Options of the classes that are wrong, or do not go together: nothing is re-bound."""

import numpy as np
import pytest
from refusal import F4, FLOAT16, FREE, INF, MASTERS, NAN, NO_AMSGRAD, exactly, refuses

import fastadam

CONVENTIONS = "'torch', 'optax', 'keras', 'sklearn', 'apex'"
EPS_ROOT = "`eps_root` must be 0 unless `convention` is 'optax' and the optimizer divides by a root, got 0.5 with '{}'"
MOMENTS, GRADS = (
    "'float32', 'float64', 'bfloat16', 'float16', 'float8'",
    "'float32', 'float64', 'bfloat16', 'float16'",
)
ALL, NO_APEX = (
    ("Adam", "AdamW", "NAdam", "Adamax", "RAdam", "Lion", "AdEMAMix"),
    "`convention` must be one of {} for this optimizer, got '{}'",
)
TRIPLE = "`betas` must be a triple (beta1, beta2, beta3), got (0.9, 0.999)"
ROOTS = tuple(name for name in ALL if name not in ("Adamax", "Lion"))
OPTIONS = [
    (ALL, {"convention": "jax"}, ValueError, f"`convention` must be one of {CONVENTIONS}, got 'jax'"),
    (ALL, {"convention": None}, TypeError, f"`convention` must be one of {CONVENTIONS}, got None"),
    (["NAdam", "Adamax"], {"convention": "apex"}, ValueError, NO_APEX.format(["torch", "optax", "keras"], "apex")),
    (["RAdam"], {"convention": "keras"}, ValueError, NO_APEX.format(["torch", "optax"], "keras")),
    (ALL, {"eps_root": 0.5}, ValueError, EPS_ROOT.format("torch")),
    (["Adam", "AdamW"], {"eps_root": 0.5, "convention": "keras"}, ValueError, EPS_ROOT.format("keras")),
    (ALL, {"eps_root": -0.5, "convention": "optax"}, ValueError, "`eps_root` must be >= 0, got -0.5"),
    (["Adamax", "Lion"], {"eps_root": 0.5, "convention": "optax"}, ValueError, EPS_ROOT.format("optax")),
    (
        ALL,
        {"clip_value": 1, "max_grad_norm": 2.0},
        ValueError,
        "`clip_value` must be None with `max_grad_norm`, got 1.0 and 2.0: it would not be clear which comes first",
    ),
    (
        ALL,
        {"max_grad_norm": 1, "max_grad_norm_per_param": 2.0},
        ValueError,
        "`max_grad_norm` must be None with `max_grad_norm_per_param`, got 1.0 and 2.0: it would not be clear which "
        "comes first",
    ),
    (
        ALL,
        {"clip_value": 1, "max_grad_norm_per_param": 2.0},
        ValueError,
        "`clip_value` must be None with `max_grad_norm_per_param`, got 1.0 and 2.0: it would not be clear which "
        "comes first",
    ),
    (ALL, {"max_grad_norm_per_param": 0}, ValueError, "`max_grad_norm_per_param` must be > 0, got 0.0"),
    (["Adam", "AdamW"], {"amsgrad": True, "convention": "sklearn"}, ValueError, NO_AMSGRAD.format("sklearn")),
    (["Adam", "AdamW"], {"amsgrad": True, "convention": "apex"}, ValueError, NO_AMSGRAD.format("apex")),
    (["Adam", "AdamW"], {"amsgrad": 1}, TypeError, "`amsgrad` must be True or False, got 1"),
    (["Adam", "NAdam", "Adamax", "RAdam"], {"decouple_lr": True}, ValueError, FREE),
    (["Adam"], {"decouple_lr": True, "convention": "sklearn", "weight_decay": 0.1}, ValueError, FREE),
    (["NAdam"], {"momentum_decay": -1}, ValueError, "`momentum_decay` must be >= 0, got -1.0"),
    (["NAdam"], {"momentum_decay": NAN}, ValueError, "`momentum_decay` must be finite, got nan"),
    (["NAdam"], {"momentum_decay": "1"}, TypeError, "`momentum_decay` must be a real number, got '1'"),
    (["NAdam"], {"momentum_decay": [1, 2]}, TypeError, "`momentum_decay` must be a real number, got [1, 2]"),
    (["NAdam"], {"momentum_decay": np.ones(1)}, TypeError, "`momentum_decay` must be a real number, got array([1.])"),
    (
        ["NAdam"],
        {"momentum_decay": np.ones(2)},
        TypeError,
        "`momentum_decay` must be a real number, got array([1., 1.])",
    ),
    (["AdEMAMix"], {"alpha": -1}, ValueError, "`alpha` must be >= 0, got -1.0"),
    (["AdEMAMix"], {"alpha": "5"}, TypeError, "`alpha` must be a real number, got '5'"),
    (["AdEMAMix"], {"betas": (0.9, 0.999)}, TypeError, TRIPLE),
    (["AdEMAMix"], {"betas": (0.9, 0.999, 1.0)}, ValueError, "`betas[2]` must be in [0, 1), got 1.0"),
    (ALL, {"clip_value": 0.0}, ValueError, "`clip_value` must be > 0, got 0.0"),
    (ALL, {"clip_value": "1"}, TypeError, "`clip_value` must be a real number, got '1'"),
    (ALL, {"max_grad_norm": -1}, ValueError, "`max_grad_norm` must be > 0, got -1.0"),
    (ALL, {"max_grad_norm": INF}, ValueError, "`max_grad_norm` must be finite, got inf"),
    (ALL, {"nonfinite": "ignore"}, ValueError, "`nonfinite` must be one of 'propagate', 'skip', 'raise', got 'ignore'"),
    (
        ALL,
        {"max_skipped_steps": 3},
        ValueError,
        "`max_skipped_steps` must be None unless `nonfinite` is 'skip', got 3 with 'propagate'",
    ),
    (ALL, {"max_skipped_steps": -1}, ValueError, "`max_skipped_steps` must be >= 0, got -1"),
    (ALL, {"max_skipped_steps": 1.5}, TypeError, "`max_skipped_steps` must be an integer, got 1.5"),
    (ALL, {"nonfinite": None}, TypeError, "`nonfinite` must be one of 'propagate', 'skip', 'raise', got None"),
    (ALL, {"ema_decay": 1.0}, ValueError, "`ema_decay` must be in [0, 1), got 1.0"),
    (ALL, {"ema_decay": -0.1}, ValueError, "`ema_decay` must be >= 0, got -0.1"),
    (ALL, {"copy_dtype": "float32"}, ValueError, "`copy_dtype` must be one of 'bfloat16', 'float16', got 'float32'"),
    (ALL, {"zero_grad": 1}, TypeError, "`zero_grad` must be True or False, got 1"),
    (ALL, {"decouple_lr": "yes"}, TypeError, "`decouple_lr` must be True or False, got 'yes'"),
    (ALL, {"sparse": "fast"}, ValueError, "`sparse` must be one of 'lazy', 'exact', got 'fast'"),
    (ALL, {"moment_dtype": "int8"}, ValueError, f"`moment_dtype` must be one of {MOMENTS}, got 'int8'"),
    (ALL, {"moment_dtype": (None, "f4")}, ValueError, f"`moment_dtype[1]` must be one of {MOMENTS}, got 'f4'"),
    (ALL, {"moment_dtype": (8, None)}, TypeError, f"`moment_dtype[0]` must be one of {MOMENTS}, got 8"),
    (ALL, {"moment_dtype": 8}, TypeError, "`moment_dtype` must be a string, a pair of them or None, got 8"),
    (
        ALL,
        {"moment_dtype": ("float32",)},
        TypeError,
        "`moment_dtype` must be a string, a pair of them or None, got ('float32',)",
    ),
    (ALL, {"moment_dtype": F4}, TypeError, f"`moment_dtype` must be a string, a pair of them or None, got {F4}"),
    (
        ALL,
        {"moment_dtype": "float64"},
        ValueError,
        "`moment_dtype` must not be float64 without float64 parameters, got 'float64'",
    ),
    # Adamax and Lion have no squares.
    (ROOTS, {"moment_dtype": "float16"}, ValueError, FLOAT16),
    (ROOTS, {"moment_dtype": (None, "float16"), "eps": 2.4e-4}, ValueError, FLOAT16.replace("1e-08", "0.00024")),
    (ALL, {"grad_dtype": "float8"}, ValueError, f"`grad_dtype` must be one of {GRADS}, got 'float8'"),
    (ALL, {"grad_dtype": ("float16", None)}, TypeError, f"`grad_dtype` must be one of {GRADS}, got ('float16', None)"),
    (ALL, {"grad_dtype": F4}, TypeError, f"`grad_dtype` must be one of {GRADS}, got {F4}"),
    (
        ALL,
        {"grad_dtype": "float64"},
        ValueError,
        "`grad_dtype` must not be float64 without float64 parameters, got 'float64'",
    ),
    (ALL, {"master_weights": 1}, TypeError, "`master_weights` must be True or False, got 1"),
    (ALL, {"master_weights": True}, ValueError, MASTERS.format("float32")),
    (ALL, {"rounding": "up"}, ValueError, "`rounding` must be one of 'stochastic', 'nearest', got 'up'"),
    (ALL, {"rounding": None}, TypeError, "`rounding` must be one of 'stochastic', 'nearest', got None"),
    (ALL, {"seed": -1}, ValueError, "`seed` must be >= 0, got -1"),
    (ALL, {"seed": 1.0}, TypeError, "`seed` must be an integer, got 1.0"),
    (ALL, {"seed": "1"}, TypeError, "`seed` must be an integer, got '1'"),
    (ALL, {"seed": None}, TypeError, "`seed` must be an integer, got None"),
    (
        ALL,
        {"exclude_from_weight_decay": ["b"]},
        TypeError,
        "`exclude_from_weight_decay` must be a function of a parameter's name, got ['b']",
    ),
]


@pytest.mark.parametrize(("names", "options", "error", "message"), OPTIONS, ids=[str(row[1]) for row in OPTIONS])
def test_option_of_the_classes(names, options, error, message):
    for name in names:
        params = {"w": np.ones((3, 4), F4), "b": np.ones((), F4)}
        refuses(lambda: getattr(fastadam, name)(params, **options), error, exactly(message), params)  # noqa: B023
        getattr(fastadam, name)(params)
