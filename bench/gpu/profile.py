"""What kernels take: registers and occupancy by the driver, bytes and instructions by Nsight Compute."""

import csv
import io
import os
import shutil
import subprocess
import sys
from typing import Any

from fastadam.bench.gpu.results import Results
from fastadam.bench.gpu.rig import FORMATS, Rig

SIZE = 20_000_000
# Number of an attribute of a function, in CUDA's driver.
_LOCAL_BYTES, _REGISTERS = 3, 4
READ, WRITTEN, INSTRUCTIONS = "dram__bytes_read.sum", "dram__bytes_write.sum", "smsp__inst_executed.sum"
WARP = 32
# Of the step of a format: over nothing, to be compiled; and two.
LAUNCHES = 3


def kernels(rig: Rig, results: Results) -> None:
    """Registers, spilled bytes and occupancy of the step in each format, of what has run here."""
    for stored in FORMATS:
        results.attempt(stored, _kernel, rig, stored)


def _kernel(rig, stored):
    from fastadam.kernels.cuda.source import THREADS
    from fastadam.kernels.cuda.step import step_kernel

    optimizer = rig.flat(rig.size(1_000_000), stored)
    optimizer.step()
    plan = optimizer._engine.plan
    kernel = step_kernel(plan.update_of(0), plan.parameters[0].arithmetic, False)
    if rig.dry:
        return {"kernel": kernel.name, "threads": THREADS}
    driver, device = rig.xp.cuda.driver, rig.xp.cuda.Device()
    (function,) = kernel._elementwise_kernel_memo.values()
    blocks = driver.occupancyMaxActiveBlocksPerMultiprocessor(function.ptr, THREADS, 0)
    return {
        "kernel": kernel.name,
        "threads": THREADS,
        "registers": driver.funcGetAttribute(_REGISTERS, function.ptr),
        "local bytes": driver.funcGetAttribute(_LOCAL_BYTES, function.ptr),
        "occupancy": round(blocks * THREADS / device.attributes["MaxThreadsPerMultiProcessor"], 3),
    }


def ncu(rig: Rig, results: Results) -> None:
    """Bytes of device memory and instructions of an element, where Nsight Compute is installed."""
    if shutil.which("ncu") is None:
        results.put("formats", {"not run": "ncu, of Nsight Compute, is not installed"})
    else:
        results.attempt("formats", _counted, rig)


def _counted(rig):
    command = ["ncu", "--csv", "--page", "raw", "--print-units", "base", "--kernel-name", "regex:fastadam_.*_step"]
    command += ["--metrics", f"{READ},{WRITTEN},{INSTRUCTIONS}"]
    command += [sys.executable, "-m", "fastadam.bench.gpu.profile", *(["--dry"] if rig.dry else [])]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    counted = table(done.stdout)
    if len(counted) != LAUNCHES * len(FORMATS):
        # Counters may be for administrators alone.
        return {"not run": (done.stdout + done.stderr)[-500:]}
    last = counted[LAUNCHES - 1 :: LAUNCHES]
    return {stored: an_element(row, rig.size(SIZE)) for stored, row in zip(FORMATS, last, strict=True)}


def table(text: str) -> list[dict[str, str]]:
    """The kernels in what `ncu --csv --page raw` prints, beside what the program prints."""
    lines = text.splitlines()
    first = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    rows = csv.DictReader(io.StringIO("\n".join(line for line in lines[first:] if line.startswith('"'))))
    # The first row has the units.
    return [row for row in rows if row["ID"]]


def an_element(counts: dict[str, str], size: int) -> dict[str, Any]:
    """Bytes and instructions of an element; those of a warp are of all of its lanes."""
    read, written, warps = (float(counts[name].replace(",", "")) for name in (READ, WRITTEN, INSTRUCTIONS))
    return {
        "kernel": counts["Kernel Name"],
        "bytes read": round(read / size, 2),
        "bytes written": round(written / size, 2),
        "instructions": round(warps * WARP / size, 1),
    }


def main(*, dry: bool) -> None:
    """Take two steps in each format, for ncu to look at."""
    rig = Rig(dry)
    for stored in FORMATS:
        optimizer = rig.flat(rig.size(SIZE), stored)
        for _ in range(LAUNCHES - 1):
            optimizer.step()
        rig.wait()


if __name__ == "__main__":
    main(dry="--dry" in sys.argv)
