"""What works right after an installation, in the environment that runs this file: `make test-pythons` does."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import fastadam


def trained():
    """Parameters of many blocks and of one element after three steps."""
    rng = np.random.default_rng(0)
    params = {"w": rng.standard_normal((301, 67), np.float32), "b": np.ones((), np.float32)}
    opt = fastadam.AdamW(params, lr=0.01, weight_decay=0.1, max_grad_norm=1.0)
    for _ in range(3):
        opt.step({name: rng.standard_normal(p.shape, np.float32) for name, p in params.items()})
    return params, opt


def bits(params):
    return b"".join(p.tobytes() for p in params.values()).hex()


def command(name, *arguments):
    """What a command of this environment prints."""
    script = Path(sys.executable).parent / name
    return subprocess.run([script, *arguments], capture_output=True, text=True, check=True).stdout


def check_kernels():
    """The compiled kernels have the bits of the NumPy reference, which runs where Numba compiles nothing."""
    alone = [sys.executable, "-c", "import installed; print(installed.bits(installed.trained()[0]))"]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(Path(__file__).parent)}
    reference = subprocess.run(alone, env=environment, capture_output=True, text=True, check=True).stdout
    assert bits(trained()[0]) == reference.strip()


def check_checkpoint():
    params, opt = trained()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.safetensors")
        opt.save(path)
        resumed = {name: np.zeros_like(p) for name, p in params.items()}
        fastadam.AdamW(resumed, lr=0.01, weight_decay=0.1, max_grad_norm=1.0).load(path)
        assert bits(resumed) == bits(params)
        if importlib.util.find_spec("typer"):  # the extra `checkpoint`
            assert "Every byte is as it was saved." in command("fastadam", "checkpoint", path, "--verify")


def check_torch():
    """The extra `torch`, where it is installed: the adapter has the bits of the optimizer of arrays."""
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    import fastadam.torch

    p, array = torch.nn.Parameter(torch.ones(5)), np.ones(5, np.float32)
    p.grad = torch.arange(5.0)
    fastadam.torch.AdamW([p], lr=0.1).step()
    fastadam.AdamW([array], lr=0.1).step([np.arange(5, dtype=np.float32)])
    assert p.detach().numpy().tobytes() == array.tobytes()


def check_thinc():
    """The extra `thinc`, where it is installed: a config finds the optimizer, which takes a step as Thinc's own."""
    if importlib.util.find_spec("thinc") is None:
        return
    from thinc.api import registry

    ends = []
    for name in ("fastadam.Adam.v1", "Adam.v1"):
        optimizer = registry.resolve({"optimizer": {"@optimizers": name, "learn_rate": 0.1}})["optimizer"]
        weights, _ = optimizer((0, "W"), np.ones(5, np.float32), np.arange(5, dtype=np.float32))
        ends.append(weights)
    np.testing.assert_allclose(*ends, rtol=1e-5)


def main():
    assert Path(fastadam.__file__).is_relative_to(sys.prefix), f"not what is installed here: {fastadam.__file__}"
    assert importlib.metadata.version("fastadam") == fastadam.__version__
    assert command("fastadam", "--version").startswith(f"fastadam {fastadam.__version__}, Python")
    assert "kernel cache" in command("fastadam", "info")
    check_kernels()
    check_checkpoint()
    check_torch()
    check_thinc()


if __name__ == "__main__":
    main()
