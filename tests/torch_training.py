"""What the tests of `fastadam.torch` share: parameters of all kinds, and the same gradients for two optimizers."""

import pytest

torch = pytest.importorskip("torch")
fused = pytest.importorskip("fastadam.torch")

TORCHS = ("Adam", "AdamW", "NAdam", "Adamax", "RAdam")
ALL = (*TORCHS, "Lion", "AdEMAMix")
names = pytest.mark.parametrize("name", TORCHS)
every = pytest.mark.parametrize("name", ALL)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
# Off by so much after some 100 steps of 0.01; torch's NAdam rounds a product of momenta to float32.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def tolerance(name, dtype):
    return 1e-8 if (name, dtype) == ("NAdam", torch.float64) else TOLERANCE[dtype]


def make(dtype=torch.float32, seed=0):
    """Parameters: of no axis, empty, transposed, of channels last, large enough for threads, and a frozen one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    tensors = [
        normal(3, 5),
        normal(),
        normal(0, 4),
        normal(4, 6).t(),
        normal(2, 3, 4, 5).to(memory_format=torch.channels_last),
        normal(1, 7),
        normal(33_000),
    ]
    return [tensor.requires_grad_() for tensor in tensors] + [normal(2)]


def twins(params):
    """Copies that lie alike, trained by another optimizer."""
    return [torch.empty_like(p).copy_(p.detach()).requires_grad_(p.requires_grad) for p in params]


def give_gradients(params, others, generator, skipped=()):
    """Let both have the same random gradients; none for those at the positions `skipped`, and for frozen ones."""
    for index, (p, other) in enumerate(zip(params, others, strict=True)):
        if not p.requires_grad or index in skipped:
            p.grad = other.grad = None
            continue
        values = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        # In the order of the parameter, or in that of C.
        p.grad = values if index % 2 else torch.empty_like(p).copy_(values)
        other.grad = values.clone()


def train(opt, other, params, others, steps, seed=1, skipped=lambda step: ()):
    """Take the same steps with two optimizers."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        give_gradients(params, others, generator, skipped(step))
        opt.step()
        other.step()


def assert_close(params, others, tolerance):
    for p, other in zip(params, others, strict=True):
        torch.testing.assert_close(p.detach(), other.detach(), rtol=tolerance, atol=tolerance)


def pair(name, dtype, seed=0, **settings):
    """Ours, torch's for-loop, and the parameters of each."""
    params = make(dtype, seed)
    others = twins(params)
    ours = getattr(fused, name)(params, **settings)
    return ours, getattr(torch.optim, name)(others, **settings, foreach=False), params, others
