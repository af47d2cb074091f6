"""Whatever is wrong with the cache of compiled kernels costs a compilation and a warning, never a step."""

import os
import pickle
import random
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

USE = """
import warnings, numpy as np, fastadam
warnings.simplefilter("always")
opt = fastadam.Adam({"w": np.ones(100, np.float32)}, lr=0.1, max_grad_norm=1.0)
for _ in range(3):
    opt.step({"w": np.ones(100, np.float32)})
print(opt.params["w"].tobytes().hex()[:16], opt.state_dict()["state"]["w"]["step"])
"""


def start(folder, code=USE):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process):
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out.strip(), err


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filled")
    return folder, ended(start(folder))[0]


def files(folder, ending):
    found = sorted(path for path in folder.rglob(f"*{ending}"))
    assert found
    return found


def cut_off(folder):
    for path in files(folder, ".nbc"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(folder):
    for path in files(folder, ".nb[ci]"):
        path.write_bytes(b"")


def garbage(folder):
    for path in files(folder, ".nbi"):
        path.write_bytes(random.Random(0).randbytes(200))


def cut_off_index(folder):
    for path in files(folder, ".nbi"):
        path.write_bytes(path.read_bytes()[:-9])


def another_pickle(folder):
    for path in files(folder, ".nbc"):
        path.write_bytes(b"\x80\x04K\x01.")


def a_bit_of_each(folder):
    chosen = random.Random(0)
    for path in files(folder, ".nbc"):
        readable = False
        while not readable:
            data = bytearray(path.read_bytes())
            data[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
            with suppress(Exception):
                readable = pickle.loads(data) is not None
        path.write_bytes(data)


def directories(folder):
    for path in files(folder, ".nbi"):
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize(
    "spoil",
    [cut_off, empty, garbage, cut_off_index, another_pickle, a_bit_of_each, directories],
    ids=lambda spoil: spoil.__name__,
)
def test_a_cache_that_is_broken(spoil, filled, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(filled[0], folder)
    spoil(folder)
    out, err = ended(start(folder))
    assert out == filled[1]
    assert "RuntimeWarning: the cache of compiled kernels in" in err
    assert str(folder) in err
    out, err = ended(start(folder))
    assert out == filled[1]
    # What was broken has been replaced, where it can be.
    assert ("RuntimeWarning" in err) == (spoil is directories)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_bits_of_any_file(seed, filled, tmp_path):
    folder, chosen = tmp_path / "cache", random.Random(seed)
    shutil.copytree(filled[0], folder)
    for path in files(folder, ".nb[ci]"):
        data = bytearray(path.read_bytes())
        data[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
        path.write_bytes(data)
    assert ended(start(folder))[0] == filled[1]


def test_a_cache_that_is_gone_and_a_disk_that_is_full(filled, tmp_path):
    folder = tmp_path / "cache"
    gone = f"import os, shutil\n{USE.replace('opt = ', f'shutil.rmtree({str(folder)!r}, ignore_errors=True); opt = ')}"
    assert ended(start(folder, gone))[0] == filled[1]
    full = "import numba.core.caching as caching, errno\n"
    full += "def no_space(self, name, data): raise OSError(errno.ENOSPC, 'No space left on device')\n"
    full += "caching.IndexDataCacheFile._save_data = no_space\n"
    out, err = ended(start(tmp_path / "full", full + USE))
    assert out == filled[1]
    assert "No space left on device" in err


def test_several_processes_at_once_while_it_is_broken(filled, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(filled[0], folder)
    cut_off(folder)
    assert {ended(process)[0] for process in [start(folder) for _ in range(3)]} == {filled[1]}


def test_the_folder_that_is_named_has_the_kernels(tmp_path):
    named = "from fastadam.bench.machine import kernel_cache; print(kernel_cache())"
    folder = Path(ended(start(tmp_path, f"{USE}\n{named}"))[0].splitlines()[-1])
    assert folder.is_relative_to(tmp_path)
    for kernel in ("adam", "fold", "squares", "drive_serial", "clip"):
        assert list(folder.glob(f"*.{kernel}_*.nbi")), kernel
