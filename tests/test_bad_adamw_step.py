"""What `fastadam.torch.adamw_step` refuses, by name, before anything is written."""

import numba
import numpy as np
import pytest
from refusal import INF, NAN, exactly, table

torch = pytest.importorskip("torch")
from fastadam.torch import adamw_step  # noqa: E402

MOST = numba.config.NUMBA_NUM_THREADS
HYPER = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1, "eps": 1e-8}
DTYPES = "float32 or float64 or bfloat16 or float16"


class Shard(torch.Tensor):
    def to_local(self):
        return self.as_subclass(torch.Tensor)


def arguments():
    """Two parameters, of shapes (3, 4) and (5,)."""
    made = {
        name: [torch.full((3, 4), 0.1 * number), torch.full((5,), 0.2 * number)]
        for number, name in enumerate(("params", "grads", "exp_avgs", "exp_avg_sqs", "compute_params"), start=1)
    }
    return made | {"state_steps": [torch.tensor(1.0), torch.tensor(2.0)]} | HYPER


def refused(changes, error, message):
    """A call with `changes` (name -> value, or (name, index) -> entry) fails so, and writes nothing."""
    given = arguments()
    for place, value in changes.items():
        if isinstance(place, tuple):
            given[place[0]][place[1]] = value(given) if callable(value) else value
        else:
            given[place] = value(given) if callable(value) else value
    tensors = [
        each for value in given.values() if isinstance(value, list) for each in value if type(each) is torch.Tensor
    ]
    tensors = [each for each in tensors if each.is_cpu and each.layout is torch.strided]
    before = [(each.clone(), each._version) for each in tensors]
    with pytest.raises(error, match=exactly(message)):
        adamw_step(**given)
    for tensor, (values, version) in zip(tensors, before, strict=True):
        torch.testing.assert_close(tensor, values, rtol=0, atol=0, equal_nan=True)
        assert tensor._version == version
    adamw_step(**arguments())


def own(name, index=0):
    return lambda given: given[name][index]


LISTS = {
    "a tensor": ({"params": torch.ones(2, 3)}, TypeError, "`params` must be a list, got Tensor"),
    "a number": ({"grads": 3}, TypeError, "`grads` must be a list, got int"),
    "a set": ({"grads": {torch.ones(3, 4), torch.ones(5)}}, TypeError, "`grads` must be a list, got set"),
    "None": ({"exp_avgs": None}, TypeError, "`exp_avgs` must be a list, got NoneType"),
    "too short": (
        {"grads": [torch.ones(3, 4)]},
        ValueError,
        "`grads` must have 2 entries like `params`, got 1",
    ),
    "no copies": ({"compute_params": []}, ValueError, "`compute_params` must have 2 entries like `params`, got 0"),
    "steps": ({"state_steps": [1, 2, 3]}, ValueError, "`state_steps` must have 2 entries like `params`, got 3"),
    "spans": ({"spans": [(0, 1)]}, ValueError, "`spans` must have 2 entries like `params`, got 1"),
}
TENSORS = {
    "an array": (
        {("exp_avgs", 1): np.ones(5, np.float32)},
        TypeError,
        "`exp_avgs[1]` must be a torch.Tensor, got ndarray",
    ),
    "a missing gradient": ({("grads", 0): None}, TypeError, "`grads[0]` must be a torch.Tensor, got NoneType"),
    "a shard": (
        {("params", 0): lambda given: given["params"][0].as_subclass(Shard)},
        TypeError,
        "`params[0]` must be a plain torch.Tensor, got Shard: pass what its `to_local()` returns",
    ),
    "sparse": (
        {("grads", 1): torch.ones(5).to_sparse()},
        TypeError,
        "`grads[1]` must be a strided tensor, got torch.sparse_coo: pass `x.to_dense()`",
    ),
    "another device": (
        {("params", 1): torch.ones(5, device="meta")},
        ValueError,
        "`params[1]` must be on the CPU, got a tensor on meta",
    ),
    "another shape": (
        {("grads", 0): torch.ones(4, 3)},
        ValueError,
        "`grads[0]` must have shape (3, 4) like `params[0]`, got (4, 3)",
    ),
    "another order": (
        {("exp_avg_sqs", 0): torch.ones(4, 3).T},
        ValueError,
        "`exp_avg_sqs[0]` must have strides (4, 1) like `params[0]`, got (1, 3): its elements lie in another order",
    ),
    "gaps": (
        {("grads", 1): torch.ones(10)[::2]},
        ValueError,
        "`grads[1]` must be contiguous, or dense in another order, got shape (5,) with strides (2,)",
    ),
    "expanded": (
        {("grads", 0): torch.ones(()).expand(3, 4)},
        ValueError,
        "`grads[0]` must be contiguous, or dense in another order, got shape (3, 4) with strides (0, 0)",
    ),
    "integers": (
        {("params", 0): torch.ones(3, 4, dtype=torch.int32)},
        TypeError,
        "`params[0]` must be float32 or float64 beside `compute_params`, got int32",
    ),
    "16-bit parameters with copies": (
        {("params", 1): torch.ones(5, dtype=torch.bfloat16)},
        TypeError,
        "`params[1]` must be float32 or float64 beside `compute_params`, got bfloat16",
    ),
    "complex parameters": (
        {("params", 1): torch.ones(5, dtype=torch.complex64), "compute_params": None},
        TypeError,
        f"`params[1]` must be {DTYPES}, got complex64",
    ),
    "float64 gradients": (
        {("grads", 1): torch.ones(5, dtype=torch.float64)},
        TypeError,
        "`grads[1]` must be float32 or bfloat16 or float16 beside `params[1]` of float32, got float64",
    ),
    "float16 moments": (
        {("exp_avgs", 0): torch.ones(3, 4, dtype=torch.float16)},
        TypeError,
        "`exp_avgs[0]` must be float32 or bfloat16 beside `params[0]` of float32, got float16",
    ),
    "float64 copies": (
        {("compute_params", 0): torch.ones(3, 4, dtype=torch.float64)},
        TypeError,
        "`compute_params[0]` must be float32 or bfloat16 or float16 beside `params[0]` of float32, got float64",
    ),
    "float64 parameters alone": (
        {("params", 1): torch.ones(5, dtype=torch.float64)},
        TypeError,
        "`grads[1]` must be float64 beside `params[1]` of float64, got float32",
    ),
}
MEMORY = {
    "one moment twice": (
        {("exp_avg_sqs", 0): own("exp_avgs")},
        ValueError,
        "`exp_avg_sqs[0]` must not overlap `exp_avgs[0]`, got tensors that share memory",
    ),
    "gradient in place": (
        {("grads", 0): own("params")},
        ValueError,
        "`params[0]` must not overlap `grads[0]`, got tensors that share memory",
    ),
    "copy in place": (
        {("compute_params", 1): own("params", 1)},
        ValueError,
        "`compute_params[1]` must not overlap `params[1]`, got tensors that share memory",
    ),
    "spans that meet": (
        {name: lambda given, name=name: 2 * given[name][1:] for name in arguments() if name not in HYPER}
        | {"grads": [torch.ones(5), torch.ones(5)], "spans": [(0, 3), (2, 5)]},
        ValueError,
        "`params[1]` must not overlap `params[0]`, got tensors that share memory",
    ),
}
STEPS = {
    "negative": (
        {("state_steps", 1): torch.tensor(-1.0)},
        ValueError,
        "`state_steps[1]` must be a number of steps, an integer >= 0, got -1.0",
    ),
    "a half": (
        {("state_steps", 0): torch.tensor(0.5)},
        ValueError,
        "`state_steps[0]` must be a number of steps, an integer >= 0, got 0.5",
    ),
    "NaN": (
        {("state_steps", 0): torch.tensor(NAN)},
        ValueError,
        "`state_steps[0]` must be a number of steps, an integer >= 0, got nan",
    ),
    "infinite": (
        {("state_steps", 0): torch.tensor(INF)},
        ValueError,
        "`state_steps[0]` must be a number of steps, an integer >= 0, got inf",
    ),
    "two numbers": (
        {("state_steps", 0): torch.zeros(2)},
        TypeError,
        "`state_steps[0]` must be an integer, or a CPU tensor of one float32, float64, int32 or int64, got "
        "torch.float32 of shape (2,) on cpu",
    ),
    "a bool": (
        {("state_steps", 0): torch.tensor(True)},
        TypeError,
        "`state_steps[0]` must be an integer, or a CPU tensor of one float32, float64, int32 or int64, got "
        "torch.bool of shape () on cpu",
    ),
    "zero": ({("state_steps", 0): 0}, ValueError, "`state_steps[0]` must be >= 1, got 0"),
    "a float": ({("state_steps", 1): 2.0}, TypeError, "`state_steps[1]` must be an integer, got 2.0"),
}
SPANS = {
    "a number": ({"spans": [3, (0, 1)]}, TypeError, "`spans[0]` must be a pair (start, stop), got 3"),
    "three": ({"spans": [(0, 1), (0, 1, 2)]}, TypeError, "`spans[1]` must be a pair (start, stop), got (0, 1, 2)"),
    "a float": ({"spans": [(0, 1.0), (0, 1)]}, TypeError, "`spans[0][1]` must be an integer, got 1.0"),
    "below": ({"spans": [(-1, 2), (0, 1)]}, ValueError, "`spans[0][0]` must be >= 0, got -1"),
    "beyond": (
        {"spans": [(0, 12), (0, 6)]},
        ValueError,
        "`spans[1]` must be elements (start, stop) of the 5 of `params[1]`, got (0, 6)",
    ),
    "backwards": (
        {"spans": [(4, 3), (0, 5)]},
        ValueError,
        "`spans[0]` must be elements (start, stop) of the 12 of `params[0]`, got (4, 3)",
    ),
}
NUMBERS = {
    "lr": ({"lr": -0.1}, ValueError, "`lr` must be >= 0, got -0.1"),
    "a schedule": ({"lr": lambda given: max}, TypeError, f"`lr` must be a real number, got {max!r}"),
    "beta1": ({"beta1": 1.0}, ValueError, "`beta1` must be in [0, 1), got 1.0"),
    "beta2": ({"beta2": NAN}, ValueError, "`beta2` must be finite, got nan"),
    "eps": ({"eps": -1.0}, ValueError, "`eps` must be >= 0, got -1.0"),
    "weight_decay": ({"weight_decay": "1"}, TypeError, "`weight_decay` must be a real number, got '1'"),
    "gradient_scale": ({"gradient_scale": INF}, ValueError, "`gradient_scale` must be finite, got inf"),
    "no threads": ({"num_threads": 0}, ValueError, "`num_threads` must be >= 1, got 0"),
    "many threads": (
        {"num_threads": MOST + 1},
        ValueError,
        f"`num_threads` must be <= {MOST}, the number of threads that Numba has here, got {MOST + 1}. The environment "
        "variable NUMBA_NUM_THREADS sets it",
    ),
}


KINDS = {"lists": LISTS, "tensors": TENSORS, "memory": MEMORY, "steps": STEPS, "spans": SPANS, "numbers": NUMBERS}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    table({f"{kind}: {name}": row for kind, rows in KINDS.items() for name, row in rows.items()}),
)
def test_is_refused(changes, error, message):
    refused(changes, error, message)


def test_an_unaligned_tensor_is_refused():
    odd = torch.frombuffer(bytearray(25), dtype=torch.float32, count=5, offset=1)
    assert odd.data_ptr() % 4
    refused({("grads", 1): odd}, ValueError, "`grads[1]` must be aligned to 4 bytes, got a tensor that is not")
