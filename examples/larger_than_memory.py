"""Train a state that is larger than the memory that the process may have: it lies in files.

    python examples/larger_than_memory.py    train 192 MiB of state in a process that may allocate 32 MiB (Linux)

Parameters, gradients and both moments are memory maps of files, which `memory=` hands to the optimizer. The operating
system reads pages when the step comes to them, and writes them back when it needs their place, so the state may be
larger than the machine's memory too; a step then takes what the disk takes. Gradients are made and written piece by
piece.
"""

import tempfile
from pathlib import Path

import numpy as np

import fastadam

SIDE, STRIP, STEPS = 3548, 64, 8  # 4 * 3548**2 bytes are 48 MiB
ALLOWANCE = 32 * 2**20


def mapped(path, dtype, shape):
    return np.memmap(path, dtype, "w+", shape=shape)


def limit_memory(allowance=ALLOWANCE):
    """Let this process allocate `allowance` bytes more, and no byte beyond. Files that are mapped do not count."""
    import resource  # there is none on Windows

    status = Path("/proc/self/status").read_text()
    (held,) = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData")]
    resource.setrlimit(resource.RLIMIT_DATA, (held + allowance, held + allowance))


def target(rows):
    """What the field shall become in these rows."""
    x = np.linspace(0, 20, SIDE, dtype=np.float32)
    return np.sin(x[rows, None]) * np.cos(x)


def strips():
    return (slice(start, min(start + STRIP, SIDE)) for start in range(0, SIDE, STRIP))


def optimizer(folder, shape=(SIDE, SIDE)):
    """The optimizer of a field of zeros, all of it in files in `folder`."""
    field = mapped(folder / "field", np.float32, shape)
    return fastadam.Adam({"field": field}, lr=0.1, memory=lambda name, size, dtype: mapped(folder / name, dtype, size))


def step(opt):
    """One step of Adam on half the squared distance from the target; return the mean squared distance before it."""
    field, gradient, total = opt.params["field"], opt.grads["field"], 0.0
    for rows in strips():
        error = field[rows] - target(rows)
        gradient[rows] = error
        total += float(np.vdot(error, error))
    opt.step()
    return total / field.size


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "small").mkdir()
        small = optimizer(folder / "small", (STRIP, SIDE))
        small.grads["field"] = 1.0
        small.step()  # compiles the kernel
        limit_memory()
        try:
            fastadam.Adam({"field": mapped(folder / "other", np.float32, (SIDE, SIDE))})
        except MemoryError as error:
            print(f"moments in memory: MemoryError: {error}")
        opt = optimizer(folder)
        losses = [step(opt) for _ in range(STEPS)]
        files = [path for path in folder.iterdir() if path.name in ("field", "0.m", "0.v", "0.g")]
        held = sum(path.stat().st_size for path in files)
    print(f"in {len(files)} files: {held / 2**20:.0f} MiB, {ALLOWANCE / 2**20:.0f} MiB may be allocated")
    print(f"mean squared distance: {losses[0]:.3f} before the first step, {losses[-1]:.3f} before the last")


if __name__ == "__main__":
    main()
