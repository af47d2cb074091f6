"""In every mode that a process can be in, the same bits come out, and nobody says a word."""

import pytest
from new_process import run

USE = """
import hashlib
import numpy as np, fastadam
np.seterr(all="raise")
digest = hashlib.sha256()
CASES = [
    {}, {"flat": True}, {"max_grad_norm": 1.0, "nonfinite": "skip"}, {"sparse": "exact"}, {"weight_decay": 0.0},
    {"moment_dtype": "float8", "ema_decay": 0.9}, {"copy_dtype": "bfloat16", "zero_grad": True},
    {"moment_dtype": "bfloat16", "seed": 3},
]
for options in CASES:
    params = {"w": np.ones((50, 128), np.float32), "b": np.ones((), np.float32)}
    opt = fastadam.AdamW(params, **options)
    for number in range(3):
        opt.step({"w": np.full((50, 128), 1e-30 + number, np.float32), "b": np.ones((), np.float32)})
        rows = fastadam.SparseRows([3, 3, 9], np.ones((3, 128), np.float32))
        opt.step({"w": rows, "b": None})
    nan = {"w": np.full((50, 128), np.nan, np.float32), "b": None}
    if "nonfinite" in options:
        opt.step(nan)
        assert opt.skipped_steps == 1
    other = fastadam.AdamW({name: array.copy() for name, array in opt.params.items()}, **options)
    other.load_state_dict(opt.state_dict())
    opt.masters, opt.memory_usage(), repr(opt), opt.get_last_lr()
    states = [opt.params, *opt.state_dict()["state"].values()]
    for state in states:
        for key, array in state.items():
            if hasattr(array, "tobytes"):
                digest.update(array.tobytes())
flat = [np.ones(5, np.float32) for _ in range(4)]
fastadam.adam_step(*flat, step=1)
fastadam.get_num_threads()
print(digest.hexdigest())
"""
OF_TORCH = """
import hashlib
import numpy as np, torch, fastadam.torch
np.seterr(all="raise")
digest = hashlib.sha256()
for options in [{}, {"max_grad_norm": 1.0, "nonfinite": "skip"}, {"moment_dtype": "float8", "ema_decay": 0.9}]:
    params = [torch.ones(50, 128, requires_grad=True), torch.ones((), requires_grad=True)]
    opt = fastadam.torch.AdamW(params, lr=0.1, **options)
    for number in range(3):
        (params[0].sum() * 1e-30 + params[1] * number).backward()
        opt.step()
        opt.zero_grad()
    params[0].grad = torch.full((50, 128), float("nan" if "nonfinite" in options else 1))
    opt.step()
    other = fastadam.torch.AdamW(params, lr=0.1, **options)
    other.load_state_dict(opt.state_dict())
    repr(opt)
    for values in [dict(enumerate(params)), *opt.state_dict()["state"].values()]:
        for value in values.values():
            digest.update(torch.as_tensor(value).detach().numpy().tobytes())
p, g, m, v = ([torch.ones(9)] for _ in range(4))
numbers = {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1, "eps": 1e-8}
fastadam.torch.adamw_step(p, g, m, v, [torch.tensor(0.0)], lr=0.1, **numbers)
digest.update(p[0].numpy().tobytes())
print(digest.hexdigest())
"""
MODES = {
    "warnings are errors": {"PYTHONWARNINGS": "error"},
    "no assertions, no docstrings": {"PYTHONOPTIMIZE": "2"},
    "another hash": {"PYTHONHASHSEED": "12345"},
    "another language": {"LC_ALL": "de_DE.UTF-8", "LANG": "tr_TR.UTF-8"},
    "ASCII": {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    "nothing is compiled": {"NUMBA_DISABLE_JIT": "1"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


@pytest.fixture(scope="module", params=[USE, OF_TORCH], ids=["arrays", "torch"])
def code(request):
    """What is run, and what it prints where nothing is set."""
    return request.param, run(request.param)


@pytest.mark.parametrize("mode", MODES)
def test_the_same_bits_in_silence(mode, code):
    assert run(code[0], **MODES[mode]) == code[1]


INFO = "import sys; sys.argv = ['fastadam', 'info']; from fastadam.cli import main; main()"


def test_info_where_nothing_is_compiled():
    assert "none: NUMBA_DISABLE_JIT is set" in run(INFO, NUMBA_DISABLE_JIT="1")


def test_info_for_another_program_has_the_whole_path_of_the_cache(tmp_path):
    folder = tmp_path / ("a long name " * 12) / "\N{LATIN SMALL LETTER E WITH ACUTE}"
    found = run(INFO, LC_ALL="C", PYTHONIOENCODING="ascii", NUMBA_CACHE_DIR=str(folder), COLUMNS="80")
    (row,) = (line for line in found.splitlines() if "kernel cache" in line)
    assert str(folder.parent / r"\xe9") in row
