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
MODES = {
    "warnings are errors": {"PYTHONWARNINGS": "error"},
    "no assertions, no docstrings": {"PYTHONOPTIMIZE": "2"},
    "another hash": {"PYTHONHASHSEED": "12345"},
    "another language": {"LC_ALL": "de_DE.UTF-8", "LANG": "tr_TR.UTF-8"},
    "ASCII": {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    "nothing is compiled": {"NUMBA_DISABLE_JIT": "1"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


@pytest.fixture(scope="module")
def expected():
    return run(USE)


@pytest.mark.parametrize("mode", MODES)
def test_the_same_bits_in_silence(mode, expected):
    assert run(USE, **MODES[mode]) == expected


@pytest.mark.parametrize("environment", [{"NUMBA_DISABLE_JIT": "1"}, {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}])
def test_info(environment):
    code = "import sys; sys.argv = ['fastadam', 'info']; from fastadam.cli import main; main()"
    found = run(code, **environment)
    assert "kernel cache" in found
    assert "none: NUMBA_DISABLE_JIT is set" in found or "NUMBA_DISABLE_JIT" not in environment
