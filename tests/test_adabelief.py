"""examples/adabelief.py: a member of the family in one file has all that the others have."""

import importlib

import numpy as np
import pytest

from fastadam.kernels.texts.members import MEMBERS


@pytest.fixture
def adabelief():
    """Other tests go through all members, and so must not find this one."""
    module = importlib.import_module("adabelief")
    MEMBERS[module.MEMBER.name] = module.MEMBER
    yield module
    del MEMBERS[module.MEMBER.name]


def by_the_paper(p, gradients, lr=0.01, beta1=0.9, beta2=0.999, eps=1e-16):
    p, m, s = p.copy(), np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        m = beta1 * m + (1 - beta1) * g
        s = beta2 * s + (1 - beta2) * (g - m) ** 2 + eps
        p = p - lr * m / (1 - beta1**t) / (np.sqrt(s / (1 - beta2**t)) + eps)
    return p


def test_the_member_computes_what_its_paper_says(adabelief):
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal(1001), rng.standard_normal((50, 1001))
    params = {"w": start.copy()}
    opt = adabelief.AdaBelief(params, lr=0.01)
    for g in gradients:
        opt.step({"w": g})
    np.testing.assert_allclose(params["w"], by_the_paper(start, gradients), rtol=1e-11, atol=1e-12)


def test_options_formats_and_checkpoints_come_with_it(adabelief, tmp_path):
    rng = np.random.default_rng(1)
    gradients = rng.standard_normal((6, 8192)).astype(np.float32)
    ends = []
    for resumed in (False, True):
        params = {"w": np.ones(8192, np.float32)}
        options = {"lr": 0.01, "moment_dtype": "bfloat16", "max_grad_norm": 1.0, "ema_decay": 0.9}
        opt = adabelief.AdaBelief(params, **options)
        for number, g in enumerate(gradients):
            if resumed and number == 3:
                opt.save(tmp_path / "run.safetensors")
                opt = adabelief.AdaBelief(params, **options)
                opt.load(tmp_path / "run.safetensors")
            opt.step({"w": g})
        ends.append((params["w"].tobytes(), opt.ema["w"].tobytes()))
    assert ends[0] == ends[1]
    assert opt.state_dict()["state"]["w"]["exp_avg_sq"].any()
