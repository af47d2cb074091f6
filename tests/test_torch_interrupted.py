"""An exception from outside, at any line of a step of `fastadam.torch`, leaves all as before it or as after it."""

from itertools import count

import pytest
from exceptions_anywhere import raised_at
from torch_training import fused, torch

CASES = {
    "AdamW": ("AdamW", {}),
    "NAdam, which carries a product": ("NAdam", {}),
    "clipped": ("Adam", {"max_grad_norm": 0.5}),
    "each clipped": ("Adam", {"max_grad_norm_per_param": 0.5}),
    "skipped": ("Adam", {"nonfinite": "skip"}),
    "zeroed": ("Adam", {"zero_grad": True}),
    "some": ("Adam", {}),
    "averaged": ("AdamW", {"ema_decay": 0.9, "copy_dtype": "float16"}),
}


def begun(case, steps):
    """An optimizer that has taken some steps."""
    name, options = CASES[case]
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).requires_grad_() for shape in [(5, 3), (7,), ()]]
    opt = getattr(fused, name)(params, lr=0.01, **options)
    for step in range(steps):
        give(case, opt, step)
        opt.step()
    return opt


def give(case, opt, step):
    """Let the parameters have the gradients of a step."""
    generator = torch.Generator().manual_seed(step)
    params = opt.param_groups[0]["params"]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    if case == "some" and step % 3 == 2:
        params[1].grad = None
    if case == "skipped" and step % 3 == 2:
        params[0].grad[0, 0] = torch.nan


def continued(case, opt):
    """All that there is after two more steps."""
    for step in (20, 21):
        give(case, opt, step)
        opt.step()
    params = opt.param_groups[0]["params"]
    kept = [{key: value.tolist() for key, value in opt.state[p].items()} for p in params]
    return [p.tolist() for p in params], kept


def test_at_some_lines_of_the_first_step():
    check("AdamW", 0, count(step=7))


@pytest.mark.parametrize("case", CASES)
def test_at_every_line_of_a_step(case):
    check(case, 2, count())


def check(case, steps, numbers):
    before = continued(case, begun(case, steps))
    after = continued(case, begun(case, steps + 1))
    for number in numbers:
        opt = begun(case, steps)
        give(case, opt, steps)
        versions = [p._version for p in opt.param_groups[0]["params"]]
        values = [p.detach().clone() for p in opt.param_groups[0]["params"]]
        if not raised_at(number, opt.step):
            break
        for p, version, value in zip(opt.param_groups[0]["params"], versions, values, strict=True):
            assert torch.equal(p, value) or p._version > version, f"line {number}: autograd does not know"
        assert continued(case, opt) in (before, after), f"line {number}"
    assert number > 20
