"""One command for a machine with a GPU: every part a process with a limit, in the order of their worth.

    python bench/gpu/day.py --save fastadam-gpu --limit 600

It needs Python 3.10, NumPy, Numba, torch, CuPy and pytest, no network and no installation: it works in a copy of the
checkout in which `fastadam.kernels` and `fastadam.bench` are found. What is found is in `gpu.json`, whole after every
figure. A part that takes too long is ended, and the next begins; nothing is waited for and nothing is resumed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Part -> the most seconds that it gets: machine and tests first, what others can do as well last.
PARTS = {
    "machine": 20,
    "tests": 120,
    "smallest": 20,
    "flat": 60,
    "counts": 60,
    "host": 60,
    "torch_steps": 60,
    "graphs": 30,
    "adapter": 20,
    "streams": 20,
    "memory": 20,
    "kernels": 20,
    "ncu": 60,
    "sanitizer": 60,
}
# Seconds without which a part is not begun: the imports take as long.
LEAST = 5.0


def main(arguments: list[str] | None = None) -> int:
    """Run the day, or one part of it; the exit status is 1 if a part did not end well."""
    parser = argparse.ArgumentParser(description="Tests and times of fastadam on a GPU.")
    parser.add_argument("--save", type=Path, default=Path("fastadam-gpu"), help="folder for gpu.json")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for all parts together")
    parser.add_argument("--dry", action="store_true", help="small, on NumPy and without times: where there is no GPU")
    parser.add_argument("--only", action="append", choices=list(PARTS), help="this part; may be repeated")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.part:
        run_part(chosen.part, chosen.save, dry=chosen.dry)
        return 0
    chosen.save.mkdir(parents=True, exist_ok=True)
    (chosen.save / "gpu.json").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        copy_checkout(Path(__file__).resolve().parents[2], Path(folder))
        return run_parts(chosen.only or list(PARTS), Path(folder), chosen.save.resolve(), chosen.limit, dry=chosen.dry)


def copy_checkout(checkout: Path, folder: Path) -> None:
    """A copy of what the day needs, in which the packages are where they are when they are installed."""
    places = {"fastadam": "fastadam", "kernels": "fastadam/kernels", "bench": "fastadam/bench", "tests": "tests"}
    left_out = shutil.ignore_patterns("__pycache__")
    for name, place in places.items():
        if name == "fastadam":
            left_out_here = shutil.ignore_patterns("__pycache__", "kernels", "bench")
            shutil.copytree(checkout / name, folder / place, ignore=left_out_here)
        else:
            shutil.copytree(checkout / name, folder / place, ignore=left_out)
    shutil.copy(checkout / "pyproject.toml", folder)


def run_parts(parts: list[str], folder: Path, save: Path, limit: float, *, dry: bool) -> int:
    """Run each of `parts` in a process in `folder`, as long as there is time."""
    began, ends = time.monotonic(), {}
    found = [str(folder), str(folder / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, found)), "PYTHONUNBUFFERED": "1"}
    for part in parts:
        left, start = limit - (time.monotonic() - began), time.monotonic()
        if left < LEAST:
            ended = "not begun: no time was left"
        else:
            command = [sys.executable, "-m", "fastadam.bench.gpu.day", "--part", part, "--save", str(save)]
            ended = _ended([*command, *(["--dry"] if dry else [])], folder, environment, min(PARTS[part], left))
        ends[part] = {"ended": ended, "seconds": round(time.monotonic() - start, 1)}
        print(f"==== {part}: {ended}, {ends[part]['seconds']} s", flush=True)
        note(save / "gpu.json", ends)
    return int(any(each["ended"] != "done" for each in ends.values()))


def note(path: Path, ends: dict) -> None:
    """Write how the parts ended beside what they found."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**found, "parts": ends}, indent=1) + "\n", encoding="utf-8")


def _ended(command, folder, environment, seconds):
    """How a process ended; what it has started in its group ends with it."""
    process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"cut off after {seconds:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()
    return "done" if status == 0 else f"exit status {status}"


def run_part(part: str, save: Path, *, dry: bool) -> None:
    """Run one part in this process."""
    from fastadam.bench.gpu import checks, graphs, profile, smallest, speed, torch_steps
    from fastadam.bench.gpu.results import Results
    from fastadam.bench.gpu.rig import Rig

    functions = [checks.machine, checks.tests, speed.flat, speed.counts, speed.host]
    functions += [graphs.graphs, graphs.adapter, graphs.streams, graphs.memory, checks.sanitizer]
    functions += [smallest.smallest, torch_steps.torch_steps, profile.kernels, profile.ncu]
    run = {function.__name__: function for function in functions}[part]
    run(Rig(dry), Results(save / "gpu.json", part))


if __name__ == "__main__":
    raise SystemExit(main())
