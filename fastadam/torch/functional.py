"""`adamw_step`: AdamW on lists of CPU tensors, in one pass and one launch, for who keeps the state himself."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastadam.kernels import GRAD_SCALE, GRADIENT, thread_count
from fastadam.kernels.texts.member import SHARED_HYPER
from fastadam.kernels.texts.members import MEMBERS
from fastadam.settings.checks import fraction, integer, nonnegative
from fastadam.settings.recipes import STEP
from fastadam.threads import checked_count
from fastadam.torch.launches import ready_for
from fastadam.torch.lists import addresses_of, check_memory, checked_lengths, checked_shapes, resolved


def adamw_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    state_steps: Sequence[Any],
    compute_params: Sequence[Tensor] | None = None,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    gradient_scale: float = 1.0,
    num_threads: int | None = None,
    spans: Sequence[tuple[int, int]] | None = None,
) -> None:
    """Take a step of AdamW on CPU tensors, in place, in one pass and one launch: the step of an offloaded optimizer.

    With gradient g, decayed at rates beta1 and beta2, at step t of a parameter:

        g = gradient_scale * grad                  p *= 1 - lr * weight_decay
        m += (1 - beta1) * (g - m)                 p -= lr * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)
        v += (1 - beta2) * (g * g - v)             compute_param = p

    Each argument is a list with an entry for each parameter, whose tensors have one shape and lie alike in memory:
    contiguous, or dense in another order. Dtypes may differ from parameter to parameter, and number of steps too.
    bfloat16 gradients, float32 parameters and moments, and bfloat16 compute parameters move 28 bytes an element.
    Tensors are found anew at each call, and none is kept. The results are those of :func:`fastadam.adam_step` with
    `decoupled_weight_decay=True`, bit for bit, for any number of threads and any spans.

    The call may be made by any Python thread; others run meanwhile.

    Args:
        params: Parameters (masters), in place: float32, float64, bfloat16 or float16.
        grads: Gradients, only read: float32, bfloat16 or float16; float64 if the parameter is.
        exp_avgs: First moments, in place, zeros at first: float32 or bfloat16; float64 if the parameter is.
        exp_avg_sqs: Second moments, likewise.
        state_steps: Steps that each parameter has taken, tensors of one element, as in torch: they advance by one. An
            integer is the number of this step instead, from 1 on.
        compute_params: The new parameters are also written here, rounded to nearest: in the parameter's dtype, float32
            or float64, or in bfloat16 or float16. What these tensors held is not read.
        lr: Learning rate, >= 0.
        beta1: Decay rate of the first moments, in [0, 1).
        beta2: Decay rate of the second moments, in [0, 1).
        weight_decay: Decay of the parameters, decoupled from the gradient, >= 0.
        eps: Added to the root of the bias-corrected second moment, >= 0.
        gradient_scale: Factor on the gradients, >= 0.
        num_threads: Threads that this call takes; by default as many as :func:`fastadam.get_num_threads` says.
        spans: Elements (start, stop) of each parameter, in memory order: nothing else is stepped, read or written. A
            step counts once, however many spans it has: with spans, tensors in `state_steps` are only read, so that
            each span of a step finds the same number, in any order and from any thread. The caller advances them when
            the last span is done, as by `torch._foreach_add_(state_steps, 1)`.

    bfloat16 parameters and moments are rounded stochastically, as by :func:`fastadam.adam_step`.

    Raises:
        TypeError, ValueError: lists of different lengths; tensors of another kind, dtype, shape, device or order, or
            that share memory; a number out of range. Nothing has been written then.

    Example:
        >>> import torch, fastadam.torch
        >>> master, grad = torch.ones(3), torch.tensor([1.0, -1.0, 0.0], dtype=torch.bfloat16)
        >>> moments, step, model = torch.zeros(2, 3), torch.tensor(0.0), torch.empty(3, dtype=torch.bfloat16)
        >>> fastadam.torch.adamw_step(
        ...     [master], [grad], [moments[0]], [moments[1]], [step], [model],
        ...     lr=0.5, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8)
        >>> model, step
        (tensor([0.5000, 1.5000, 1.0000], dtype=torch.bfloat16), tensor(1.))

    References:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", https://arxiv.org/abs/1711.05101.
    """
    hyper = _hyper(lr, beta1, beta2, weight_decay, eps)
    gradient_scale = nonnegative(gradient_scale, "gradient_scale")
    count = None if num_threads is None else checked_count(num_threads, "num_threads")
    given = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    if compute_params is not None:
        given["compute_params"] = compute_params
    lists = checked_lengths(given | {"state_steps": state_steps} | ({} if spans is None else {"spans": spans}))
    ranges = None if spans is None else _ranges(lists.pop("spans"))
    steps = lists.pop("state_steps")
    numbers = _numbers(steps)
    shapes = checked_shapes(lists)
    if not shapes:
        return
    lists = resolved(lists, "grads")
    # The order of the columns in the table of addresses.
    lists = {"grads": lists.pop("grads"), **lists}
    ready = ready_for(lists, shapes, ranges, MEMBERS["adam"].small((beta1, beta2)))
    addresses = addresses_of(lists)
    check_memory(list(lists), addresses, ready.itemsizes, ready.ranges, "grads")
    tables = ready.tables
    tables.addresses[:, GRADIENT : len(lists)] = addresses
    tables.write("hyper", (slice(None), slice(len(hyper))), hyper)
    tables.write("carried", (slice(None), STEP), numbers - 1.0)
    tables.write("record", GRAD_SCALE, gradient_scale)
    if ranges is None:
        _advance(steps)  # what could fail last, and before anything else is written
    with thread_count.asking(count):
        ready.launch()
    del lists["grads"]
    torch.autograd.graph.increment_version([tensor for tensors in lists.values() for tensor in tensors])


def _hyper(lr, beta1, beta2, weight_decay, eps):
    values = {
        "lr": nonnegative(lr, "lr"),
        "beta1": fraction(beta1, "beta1"),
        "beta2": fraction(beta2, "beta2"),
        "eps": nonnegative(eps, "eps"),
        "weight_decay": nonnegative(weight_decay, "weight_decay"),
        "sign": 1.0,
    }
    return np.array([values.get(name, 0.0) for name in SHARED_HYPER])


# --- steps and spans

_STEP_DTYPES = {torch.float32, torch.float64, torch.int32, torch.int64}
_is_cpu, _dtype_of = Tensor.is_cpu.__get__, Tensor.dtype.__get__


def _numbers(steps):
    """The number of this step of each parameter, float64."""
    if set(map(type, steps)) <= {Tensor} and all(map(_is_cpu, steps)) and set(map(_dtype_of, steps)) <= _STEP_DTYPES:
        try:
            numbers = np.fromiter(map(Tensor.item, steps), np.float64, len(steps)) + 1.0
        except RuntimeError:  # more or less than one element
            numbers = np.zeros(1)
        if ((numbers >= 1.0) & (numbers == np.floor(numbers)) & (numbers < np.inf)).all():
            return numbers
    return np.array([_number(step, f"state_steps[{index}]") for index, step in enumerate(steps)], np.float64)


def _number(step, label):
    if not isinstance(step, Tensor):
        return integer(step, label, least=1)
    if not step.is_cpu or step.dtype not in _STEP_DTYPES or step.numel() != 1:
        raise TypeError(
            f"`{label}` must be an integer, or a CPU tensor of one float32, float64, int32 or int64, got "
            f"{step.dtype} of shape {tuple(step.shape)} on {step.device}"
        )
    taken = step.item()
    if not 0 <= taken < np.inf or taken != int(taken):
        raise ValueError(f"`{label}` must be a number of steps, an integer >= 0, got {taken}")
    return taken + 1


_ONE = {dtype: torch.ones((), dtype=dtype, device="cpu") for dtype in _STEP_DTYPES}


def _advance(steps):
    """Add one to each tensor among `steps`; to one that several parameters share, once."""
    tensors = list({step.data_ptr(): step for step in steps if isinstance(step, Tensor)}.values())
    if tensors:
        with torch.no_grad():
            # Lists of tensors take a third of the time that a number takes.
            torch._foreach_add_(tensors, [_ONE[step.dtype] for step in tensors])


def _ranges(spans):
    ranges = []
    for index, span in enumerate(spans):
        if not isinstance(span, (tuple, list)) or len(span) != 2:
            raise TypeError(f"`spans[{index}]` must be a pair (start, stop), got {span!r}")
        ranges.append(tuple(integer(edge, f"spans[{index}][{side}]", least=0) for side, edge in enumerate(span)))
    return tuple(ranges)
