"""What happens to the user's process: imports, disk cache, threads, forks. Each check is a fresh Python process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest
from new_process import run

import fastadam.kernels

# Processes that are timed or forked, or whose memory is measured: one at a time.
pytestmark = pytest.mark.xdist_group("processes")

LONG_STEP = """
import numpy as np, fastadam
def step(size=200_000, count=1):
    p, g = np.ones(size, np.float32), np.full(size, 0.5, np.float32)
    m, v = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for number in range(1, count + 1):
        fastadam.adam_step(p, g, m, v, step=number, lr=0.1)
    return p
"""


def test_import_loads_no_backend():
    loaded = run("import sys, fastadam; print({'numba', 'cupy', 'torch', 'typer', 'rich'} & set(sys.modules))")
    assert loaded == "set()"


@pytest.fixture
def copy(tmp_path):
    """A copy of the package, as installed, and the beginning of code that imports it."""
    package = tmp_path / "fastadam"
    shutil.copytree(Path(fastadam.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    kernels = Path(fastadam.kernels.__file__).parent
    shutil.copytree(kernels, package / "kernels", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    beginning = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport fastadam\n"
    return package, beginning + f"assert fastadam.__file__.startswith({str(tmp_path)!r})\n"


def test_an_edited_update_text_never_meets_a_stale_cache(tmp_path, copy):
    package, beginning = copy
    text = package / "kernels" / "texts" / "shared.py"
    code = f"""
{beginning}
import numpy as np
from fastadam.kernels.cpu.jit import leaf
from fastadam.kernels.cpu.loop import loop_of
from fastadam.kernels.texts.update import Recipe, update_of
p, g, m, v = np.zeros(4), np.ones(4), np.zeros(4), np.zeros(4)
fastadam.adam_step(p, g, m, v, step=1)
print(m[0], leaf(loop_of(update_of(Recipe()), p.dtype)).cache_hits)
"""
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    assert run(code, **environment) == "0.09999999999999998 0"
    assert run(code, **environment) == "0.09999999999999998 1"
    # An edit that keeps the file's size and time, which is all that Numba's own check looks at.
    before = text.stat()
    text.write_text(text.read_text().replace("m += blend1", "m -= blend1"))
    os.utime(text, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert text.stat().st_size == before.st_size
    assert run(code, **environment) == "-0.09999999999999998 0"


def test_a_place_without_a_writable_directory_is_no_obstacle(tmp_path, copy):
    # A read-only installation and no home, as in many containers: Numba then finds no place for its cache.
    package, beginning = copy
    (package / "kernels" / "cpu" / "__pycache__").write_text("")
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    places = {name: str(nowhere / "below") for name in ("HOME", "XDG_CACHE_HOME", "IPYTHONDIR", "LOCALAPPDATA")}
    code = beginning + LONG_STEP + "print(step(100)[0].round(3), step(100_000)[0].round(3))"
    assert run(code, PYTHONDONTWRITEBYTECODE="1", NUMBA_CACHE_DIR="", **places) == "0.9 0.9"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads Linux's page fault counts by thread")
@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
def test_two_threads_work_with_a_warm_cache():
    # The first touch of fresh pages tells which thread did the work: one that only waits has no page faults.
    code = """
import pathlib, numpy as np, fastadam
def faults():
    return {task.name: int((task / "stat").read_text().rsplit(")")[-1].split()[7])
            for task in pathlib.Path("/proc/self/task").iterdir()}
def state(size):
    return [np.zeros(size, np.float32) for _ in range(4)]
fastadam.adam_step(*state(100), step=1)
fastadam.adam_step(*state(100_000), step=1)
fresh = state(20_000_000)
before = faults()
fastadam.adam_step(*fresh, step=1)
shares = sorted(count - before.get(name, 0) for name, count in faults().items())[-2:]
print(shares[0] / sum(shares))
"""
    run(code)
    assert float(run(code)) > 0.3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore")
def test_a_forked_child_steps_on():
    code = (
        LONG_STEP
        + """
import os, warnings
expected = step()
child = os.fork()
if child == 0:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        equal = all(np.array_equal(step(), expected) for _ in range(2))
    ours = [str(w.message) for w in caught if "forked" in str(w.message) and "fastadam" in str(w.message)]
    import numba
    os._exit(0 if equal and len(ours) == (numba.threading_layer() == "omp") else 1)
status = os.waitpid(child, 0)[1]
assert np.array_equal(step(), expected)
print(status)
"""
    )
    assert run(code) == "0"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_is_forked_after_torch_has_run_steps_on():
    pytest.importorskip("torch")
    code = """
import os, signal, warnings
import torch
torch.set_num_threads(2)
torch.ones(1_000_000).add_(1)
child = os.fork()
if child == 0:
    signal.alarm(60)
    warnings.simplefilter("ignore")
    os._exit(int(abs(step()[0] - 0.9) > 1e-6))
print(os.waitpid(child, 0)[1])
"""
    assert run(LONG_STEP + code) == "0"


@pytest.mark.parametrize("layer", ["workqueue", "default"])
def test_python_threads_step_at_the_same_time(layer):
    code = (
        LONG_STEP
        + """
import concurrent.futures
expected = step(count=40)
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    results = list(pool.map(lambda _: step(count=40), range(8)))
print(all(np.array_equal(result, expected) for result in results))
"""
    )
    assert run(code, NUMBA_THREADING_LAYER=layer) == "True"


def test_torch_keeps_its_thread_count():
    pytest.importorskip("torch")
    code = "import torch; torch.set_num_threads(7)" + LONG_STEP + "step(); print(torch.get_num_threads())"
    assert run(code) == "7"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two threads")
def test_steps_run_on_the_threads_of_torch():
    pytest.importorskip("torch")
    code = """
import torch
torch.set_num_threads(2)
torch.ones(1_000_000).exp()
import os, numpy as np, fastadam
def threads_after_step(size):
    fastadam.adam_step(*np.ones((4, size), np.float32), step=1)
    return len(os.listdir("/proc/self/task"))
serial = threads_after_step(100)
print(threads_after_step(1_000_000) - serial)
"""
    assert run(code, NUMBA_NUM_THREADS="2", NUMBA_THREADING_LAYER="omp") == "0"


def test_updates_that_are_loaded_from_the_cache_do_not_meet_each_others_code(tmp_path):
    # Numba links by name: the second process loads machine code that several processes compiled, each on its own.
    code = f"""
import sys, numpy as np
sys.path.insert(0, {str(Path(__file__).parent)!r})
import members
for name in sys.argv[1:]:
    update = members.MEMBERS[name]
    members.check(members.launch_of(update, members.random_flats(update, np.float64, 50)), members.by_cpu(False), name)
"""
    names = ["adam", "adam_l2", "amsgrad", "nadam", "clip_value"]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    for order in (*([name] for name in names), names, names[::-1]):
        subprocess.run([sys.executable, "-c", code, *order], env=environment, check=True)
