"""Processes that are ranks of gloo or of MPI."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
HAS_MPI = MPIEXEC is not None and importlib.util.find_spec("mpi4py") is not None
HAS_GLOO = importlib.util.find_spec("torch") is not None
needs_mpi = pytest.mark.skipif(not HAS_MPI, reason="needs mpi4py and mpiexec: install `fastadam[mpi]`")
needs_gloo = pytest.mark.skipif(not HAS_GLOO, reason="needs torch")
_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE), "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def gloo_ranks(size, program, *arguments):
    """`size` processes that run a program of tests/ with `arguments`, as ranks of gloo; not waited for."""
    command = [sys.executable, str(HERE / program), *map(str, arguments)]
    ranks = [{**_ENVIRONMENT, "RANK": str(rank), "WORLD_SIZE": str(size)} for rank in range(size)]
    return [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for environment in ranks
    ]


def mpi_ranks(size, program, *arguments):
    """One `mpiexec` of `size` processes that run a program of tests/ with `arguments`; not waited for."""
    command = [MPIEXEC, "-n", str(size), sys.executable, str(HERE / program), *map(str, arguments)]
    return [subprocess.Popen(command, env=_ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)]


def outputs(processes, timeout=300):
    """(exit status, output) of each process; all have ended then, whatever happens."""
    try:
        texts = [process.communicate(timeout=timeout)[0] for process in processes]
        return [(process.returncode, text) for process, text in zip(processes, texts, strict=True)]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()


def run(processes, timeout=300):
    """Wait for processes that must all succeed."""
    for status, text in outputs(processes, timeout):
        assert status == 0, text[-3_000:]
